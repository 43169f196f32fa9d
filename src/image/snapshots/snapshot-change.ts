/** Changes the snapshots within an image that is open. */
import type { InternalSnapshots, LayerSpec } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import type { NewSnapshot, SnapshotWriter, SnapshotWriting } from '../../formats/snapshot-writer.js'
import { OPENED_FILES } from '../opening/store-source.js'

export type SnapshotChange =
  | { readonly kind: 'create'; readonly snapshot: NewSnapshot }
  | { readonly kind: 'delete'; readonly indexes: readonly number[] }
  | { readonly kind: 'rename'; readonly index: number; readonly name: Buffer }
  | { readonly kind: 'revert'; readonly index: number; readonly keep: NewSnapshot | undefined }

/** Plain data. */
export interface SnapshotSetup {
  /** Its file is open for writing. */
  readonly layer: LayerSpec
  readonly change: SnapshotChange
}

/** Makes the change in this thread. Returns whether it has taken a snapshot. Throws ImageError, SystemError. */
export async function changeSnapshots(
  { layer, change }: SnapshotSetup,
  options: SnapshotWriting,
): Promise<boolean> {
  const { writing } = formatOf(layer).internalSnapshots as InternalSnapshots<unknown>
  const writer = await (writing as NonNullable<typeof writing>).load()
  return makeChange(writer, layer, change, options)
}

/** Does the same with the writer of the image's format, without waiting for anything. */
export function makeChange(
  writer: SnapshotWriter,
  layer: LayerSpec,
  change: SnapshotChange,
  options: SnapshotWriting,
): boolean {
  const store = OPENED_FILES.writable(layer, BigInt64Array.of(BigInt(layer.sizeBytes)))
  switch (change.kind) {
    case 'create':
      writer.create(store, received(change.snapshot), options)
      return true
    case 'delete':
      writer.delete(store, change.indexes, options)
      return false
    case 'rename':
      writer.rename(store, change.index, Buffer.from(change.name), options)
      return false
    case 'revert': {
      const keep = change.keep && received(change.keep)
      return writer.revert(store, change.index, keep, options).hasKept
    }
  }
}

/** A message between threads turns a Buffer into a Uint8Array. */
const received = ({ name, ...rest }: NewSnapshot): NewSnapshot => ({
  ...rest,
  name: Buffer.from(name),
})
