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

/**
 * Changes the snapshots of an image that nobody else has open. Indexes are those of the image's table. After a power cut or an
 * error the image has its old state or the new one. All methods throw ImageError, SystemError.
 */
export interface SnapshotWriter {
  create(store: WritableStore, snapshot: NewSnapshot): void
  /** Deletes several at once. */
  delete(store: WritableStore, indexes: readonly number[]): void
  /**
   * Makes the disk what a snapshot is. It takes the snapshot `keep` of the present state first, unless an existing one shows the
   * same. Without `keep` the present state is lost.
   */
  revert(
    store: WritableStore,
    index: number,
    keep: NewSnapshot | undefined,
  ): { readonly hasKept: boolean }
}
