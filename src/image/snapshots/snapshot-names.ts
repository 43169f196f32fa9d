/** Finds snapshots by their names, names new ones, and refuses names that cannot be. */
import { ImageError, printable } from '../../errors.js'
import type { InternalSnapshot, InternalSnapshots, LayerSpec } from '../../formats/format.js'
import { MAX_NEW_SNAPSHOT_NAME_BYTES } from '../../formats/limits.js'
import { formatOf } from '../../formats/registry.js'
import { SnapshotLimit } from '../../formats/snapshot-limit.js'
import type { NewSnapshot } from '../../formats/snapshot-writer.js'

/** Names a snapshot by its tag or by its ID. */
export type SnapshotName = { readonly tag: string } | { readonly id: string }

/** The snapshots within an image, in the order of its table. */
export interface SnapshotList {
  readonly path: string
  readonly snapshots: readonly InternalSnapshot[]
}

/** Returns the index of a snapshot. Throws ImageError if there is none, or more than one. */
export function indexOfSnapshot(image: SnapshotList, name: SnapshotName): number {
  const [index, ...others] = indexesOf(image, name)
  if (index === undefined) throw missing(image, name)
  if (others.length === 0) return index
  const ids = [index, ...others].map(one => image.snapshots[one]?.id)
  const what =
    'tag' in name
      ? `it has ${ids.length} snapshots "${printable(name.tag)}"`
      : `it has ${ids.length} snapshots with the ID ${printable(name.id)}`
  const hint =
    'tag' in name
      ? `name one by its ID: --id ${ids.join(' or --id ')}`
      : 'repair a copy of it with vimgfs check --repair all'
  throw new ImageError('REFUSED', what, { path: image.path, hint })
}

/** Returns the indexes of all snapshots of a name. */
export function indexesOf({ snapshots }: SnapshotList, name: SnapshotName): number[] {
  const isNamed = (one: InternalSnapshot) =>
    'id' in name ? one.id === name.id : one.name.equals(Buffer.from(name.tag))
  return snapshots.flatMap((one, index) => (isNamed(one) ? [index] : []))
}

/** Throws ImageError if there is a snapshot of this tag. */
export function requireFreeTag(image: SnapshotList, tag: string): void {
  if (indexesOf(image, { tag }).length === 0) return
  const what = `it has a snapshot "${printable(tag)}" already`
  throw new ImageError('REFUSED', what, { path: image.path, hint: 'choose another tag' })
}

/** Throws ImageError for a tag that none can have. */
export function newSnapshot(tag: string, now: Date, path: string): NewSnapshot {
  const name = tagBytes(tag, path)
  const dateSeconds = Math.floor(now.getTime() / 1000)
  return { name, dateSeconds, dateNanoseconds: (now.getTime() % 1000) * 1e6 }
}

/** Returns a tag as bytes. Throws ImageError for one that none can have. */
function tagBytes(tag: string, path: string): Buffer {
  const name = Buffer.from(tag)
  if (name.length > 0 && name.length <= MAX_NEW_SNAPSHOT_NAME_BYTES && !name.includes(0))
    return name
  const what = `a tag has 1 to ${MAX_NEW_SNAPSHOT_NAME_BYTES} bytes, not ${name.length}`
  throw new ImageError('REFUSED', what, { path, hint: 'choose another one' })
}

/** Returns the change that gives a snapshot another tag. Throws ImageError if another snapshot has that. */
export function renaming(image: SnapshotList, name: SnapshotName, tag: string) {
  const index = indexOfSnapshot(image, name)
  const bytes = tagBytes(tag, image.path)
  if (image.snapshots[index]?.name.equals(bytes) !== true) requireFreeTag(image, tag)
  return { kind: 'rename', index, name: bytes } as const
}

/** Returns the snapshot that keeps the state before a revert, with a tag that is free. */
export function snapshotBeforeRevert(
  image: SnapshotList,
  now: Date,
): { readonly tag: string; readonly snapshot: NewSnapshot } {
  const first = `before-revert-${stamp(now)}`
  for (let number = 1; ; number++) {
    const tag = number === 1 ? first : `${first}-${number}`
    if (indexesOf(image, { tag }).length > 0) continue
    return { tag, snapshot: newSnapshot(tag, now, image.path) }
  }
}

/** Returns what `revert` returns. If there is no room for a snapshot, the error says how to do without. */
export async function offeringDiscard<T>(revert: () => Promise<T>): Promise<T> {
  try {
    return await revert()
  } catch (error) {
    if (!(error instanceof SnapshotLimit)) throw error
    const hint = `${error.context.hint}; --discard reverts without keeping the present state`
    throw new SnapshotLimit(error.message, { ...error.context, hint })
  }
}

/** Returns how snapshots within images of this format change. Throws ImageError if nothing changes them. */
export function requireSnapshotWriting(
  layer: LayerSpec,
): NonNullable<InternalSnapshots<unknown>['writing']> {
  const { internalSnapshots, externalSnapshots } = formatOf(layer)
  if (internalSnapshots?.writing) return internalSnapshots.writing
  const { path, format } = layer
  throw new ImageError('UNSUPPORTED', `${format} images have no snapshots in them`, {
    path,
    hint:
      externalSnapshots !== undefined
        ? 'snapshots of it are child disks: commit merges a child into it, and without the child it is as it was'
        : 'convert it to qcow2, or copy it',
  })
}

function missing(image: SnapshotList, name: SnapshotName): ImageError {
  const what =
    'tag' in name
      ? `it has no snapshot "${printable(name.tag)}"`
      : `it has no snapshot with the ID ${printable(name.id)}`
  const isId = 'tag' in name && indexesOf(image, { id: name.tag }).length > 0
  const hint = isId
    ? `--id ${(name as { tag: string }).tag} names a snapshot by its ID`
    : 'vimgfs snapshot list shows them'
  return new ImageError('MISSING', what, { path: image.path, hint })
}

/** Returns the local time for a tag: 2026-11-30-14-05-09. */
function stamp(date: Date): string {
  const two = (value: number) => String(value).padStart(2, '0')
  const day = [date.getMonth() + 1, date.getDate()]
  const time = [date.getHours(), date.getMinutes(), date.getSeconds()]
  return [date.getFullYear(), ...[...day, ...time].map(two)].join('-')
}
