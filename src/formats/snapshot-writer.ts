/** The seam for changing the snapshots within an image. */
import type { WritableStore } from '../io/store.js'

/** A snapshot that is to be taken. */
export interface NewSnapshot {
  /** 1 to MAX_NEW_SNAPSHOT_NAME_BYTES bytes without NUL. */
  readonly name: Buffer
  /** Seconds since 1970. */
  readonly dateSeconds: number
  readonly dateNanoseconds: number
}

export interface SnapshotWriting {
  /** Called with the part that is done, 0 to 1. */
  readonly progress?: (part: number) => void
  /**
   * Called when all is on the disk but the write that makes the new state valid. Until then only space is written that the old
   * state does not use. If it throws, the old state stays.
   */
  readonly beforeSwitch?: () => void
  /** Called when the new state is on the disk, before the space that only the old one used is given back. */
  readonly afterSwitch?: () => void
}

/**
 * Changes the snapshots of an image that nobody else has open. Indexes are those of the image's table. After a power cut or an
 * error the image has its old state or the new one. All methods throw ImageError, SystemError.
 */
export interface SnapshotWriter {
  create(store: WritableStore, snapshot: NewSnapshot, options?: SnapshotWriting): void
  /** Deletes several at once. */
  delete(store: WritableStore, indexes: readonly number[], options?: SnapshotWriting): void
  /** Gives a snapshot another tag: 1 to MAX_NEW_SNAPSHOT_NAME_BYTES bytes without NUL. */
  rename(store: WritableStore, index: number, name: Buffer, options?: SnapshotWriting): void
  /**
   * Makes the disk what a snapshot is. It takes the snapshot `keep` of the present state first, unless an existing one shows the
   * same. Without `keep` the present state is lost.
   */
  revert(
    store: WritableStore,
    index: number,
    keep: NewSnapshot | undefined,
    options?: SnapshotWriting,
  ): { readonly hasKept: boolean }
}
