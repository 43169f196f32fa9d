/** The internal snapshots of an image: listing, taking and deleting them, and going back to one. */
import { ImageError, printable } from '../errors.js'
import type { InternalSnapshot } from '../formats/format.js'
import { MAX_NEW_SNAPSHOT_NAME_BYTES } from '../formats/limits.js'
import { formatOf } from '../formats/registry.js'
import { SnapshotLimit } from '../formats/snapshot-limit.js'
import type { NewSnapshot } from '../formats/snapshot-writer.js'
import { isLongWork, runApart } from './apart.js'
import { type Chain, closeChain, type OpenOptions } from './chain.js'
import { unlessMounted } from './mounted.js'
import { openChain } from './open-chain.js'
import { recoverChain } from './recovery.js'
import { changeSnapshots, type SnapshotChange } from './snapshot-change.js'
import { LOCAL_FILES } from './store-source.js'

export type SnapshotOptions = Pick<OpenOptions, 'format'>

/** Names a snapshot by its tag or by its ID. */
export type SnapshotName = { readonly tag: string } | { readonly id: string }

/** An image whose snapshots may change. It is open for writing, and locked with QEMU's locks. */
export class SnapshotImage {
  readonly warnings: readonly string[]
  /** In the order of the image's table. */
  readonly snapshots: readonly InternalSnapshot[]

  private constructor(
    private readonly chain: Chain,
    private readonly progress: ((part: number) => void) | undefined,
  ) {
    this.warnings = chain.warnings
    const [layer] = chain.layers
    const store = LOCAL_FILES.writable(layer, BigInt64Array.of(BigInt(layer.sizeBytes)))
    this.snapshots = formatOf(layer).internalSnapshots?.read(store, layer.spec) ?? []
  }

  /**
   * Opens the image. Recovers it first if it was not closed cleanly.
   * @param options `changesDisk` refuses an image that another one needs, unless `force` is set. Throws ImageError, and then
   *   leaves nothing open. `progress` is told what part of a change is done, 0 to 1
   */
  static async open(
    name: string,
    options: SnapshotOptions &
      Pick<OpenOptions, 'changesDisk' | 'force'> & {
        readonly progress?: (part: number) => void
      } = {},
  ): Promise<SnapshotImage> {
    // An image that has no internal snapshots is not opened for writing.
    requireInternalSnapshots(name, options)
    const opened = unlessMounted(() =>
      openChain(name, { ...options, describe: 'image', access: 'write', takesLocks: true }),
    )
    try {
      return new SnapshotImage(recoverChain(opened), options.progress)
    } catch (error) {
      closeChain(opened)
      throw error
    }
  }

  /** Returns the index of a snapshot. Throws ImageError if there is none, or more than one. */
  indexOf(name: SnapshotName): number {
    const [index, ...others] = this.indexesOf(name)
    if (index === undefined) throw this.missing(name)
    if (others.length === 0) return index
    const ids = [index, ...others].map(one => this.snapshots[one]?.id)
    const what =
      'tag' in name
        ? `it has ${ids.length} snapshots "${printable(name.tag)}"`
        : `it has ${ids.length} snapshots with the ID ${printable(name.id)}`
    const hint =
      'tag' in name
        ? `name one by its ID: --id ${ids.join(' or --id ')}`
        : 'repair a copy of it with vimgfs check --repair all'
    throw new ImageError('REFUSED', what, { path: this.path, hint })
  }

  /** Takes a snapshot. Throws ImageError if there is one of this tag, SystemError. */
  async create(tag: string, now = new Date()): Promise<void> {
    const snapshot = newSnapshot(tag, now, this.path)
    if (this.indexesOf({ tag }).length > 0) {
      const what = `it has a snapshot "${printable(tag)}" already`
      throw new ImageError('REFUSED', what, { path: this.path, hint: 'choose another tag' })
    }
    await this.change({ kind: 'create', snapshot })
  }

  /** Deletes snapshots, all at once. Throws ImageError, SystemError. */
  async delete(indexes: readonly number[]): Promise<void> {
    await this.change({ kind: 'delete', indexes })
  }

  /**
   * Makes the disk what a snapshot is. Unless `discard` is set, it takes a snapshot of the present state first, and returns its
   * tag; undefined if a snapshot shows the present state already. Throws ImageError, SystemError.
   */
  async revert(index: number, discard: boolean, now = new Date()): Promise<string | undefined> {
    if (discard) {
      await this.change({ kind: 'revert', index, keep: undefined })
      return undefined
    }
    const tag = this.freeTag(`before-revert-${stamp(now)}`)
    try {
      const keep = newSnapshot(tag, now, this.path)
      const hasKept = await this.change({ kind: 'revert', index, keep })
      return hasKept ? tag : undefined
    } catch (error) {
      if (!(error instanceof SnapshotLimit)) throw error
      const hint = `${error.context.hint}; --discard reverts without keeping the present state`
      throw new SnapshotLimit(error.message, { ...error.context, hint })
    }
  }

  close(): void {
    closeChain(this.chain)
  }

  /** Makes one change. Returns whether it has taken a snapshot. */
  private change(change: SnapshotChange): Promise<boolean> {
    const { progress } = this
    const [layer] = this.chain.layers
    const setup = { layer, change }
    return isLongWork(layer)
      ? runApart('snapshots', setup, progress)
      : changeSnapshots(setup, { ...(progress && { progress }) })
  }

  private get path(): string {
    return this.chain.layers[0].path
  }

  private indexesOf(name: SnapshotName): number[] {
    const isNamed = (one: InternalSnapshot) =>
      'id' in name ? one.id === name.id : one.name.equals(Buffer.from(name.tag))
    return this.snapshots.flatMap((one, index) => (isNamed(one) ? [index] : []))
  }

  private missing(name: SnapshotName): ImageError {
    const what =
      'tag' in name
        ? `it has no snapshot "${printable(name.tag)}"`
        : `it has no snapshot with the ID ${printable(name.id)}`
    const isId = 'tag' in name && this.indexesOf({ id: name.tag }).length > 0
    const hint = isId
      ? `--id ${(name as { tag: string }).tag} names a snapshot by its ID`
      : 'vimgfs snapshot list shows them'
    return new ImageError('MISSING', what, { path: this.path, hint })
  }

  private freeTag(tag: string): string {
    for (let number = 1; ; number++) {
      const tried = number === 1 ? tag : `${tag}-${number}`
      if (this.indexesOf({ tag: tried }).length === 0) return tried
    }
  }
}

/** Throws ImageError if nothing changes snapshots within images of this format. */
function requireInternalSnapshots(name: string, options: SnapshotOptions): void {
  const chain = openChain(name, { ...options, describe: 'file' })
  closeChain(chain)
  const [{ path, format }] = chain.layers
  const writing = formatOf(chain.layers[0]).internalSnapshots?.writing
  if (writing) return
  const areChildren = formatOf(chain.layers[0]).externalSnapshots !== undefined
  throw new ImageError('UNSUPPORTED', `${format} images have no snapshots in them`, {
    path,
    hint: areChildren
      ? 'snapshots of it are child disks: commit merges a child into it, and without the child it is as it was'
      : 'convert it to qcow2, or copy it',
  })
}

function newSnapshot(tag: string, now: Date, path: string): NewSnapshot {
  const name = Buffer.from(tag)
  if (name.length === 0 || name.length > MAX_NEW_SNAPSHOT_NAME_BYTES || name.includes(0)) {
    const what = `a tag has 1 to ${MAX_NEW_SNAPSHOT_NAME_BYTES} bytes, not ${name.length}`
    throw new ImageError('REFUSED', what, { path, hint: 'choose another one' })
  }
  const dateSeconds = Math.floor(now.getTime() / 1000)
  return { name, dateSeconds, dateNanoseconds: (now.getTime() % 1000) * 1e6 }
}

/** Returns the local time for a tag: 2026-11-30-14-05-09. */
function stamp(date: Date): string {
  const two = (value: number) => String(value).padStart(2, '0')
  const day = [date.getMonth() + 1, date.getDate()]
  const time = [date.getHours(), date.getMinutes(), date.getSeconds()]
  return [date.getFullYear(), ...[...day, ...time].map(two)].join('-')
}
