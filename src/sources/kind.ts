/** The seam between images and the sources that they may lie on. */
import type { FileSpec, SourceSpec } from '../io/file-spec.js'
import type { Access, OpenedFile } from '../io/opened-file.js'
import type { Store, WritableStore } from '../io/store.js'

export interface SourceKind {
  /** The `kind` of its specs. */
  readonly name: string
  /** The schemes of its addresses, in lower case. */
  readonly schemes: readonly string[]
  /**
   * Opens what lies at `address`, and waits for it, for a bounded time. The result has a `source` of this kind. Throws ImageError;
   * WriteProtected if it can only be read.
   */
  open(address: string, access: Access): OpenedFile
  /** Makes a store for the calling thread. It throws ImageError, SystemError. */
  store(file: RemoteFile): Store
  /** Undefined if it is only read. @param size the file's size in bytes, which all threads share */
  writable?(file: RemoteFile, size: BigInt64Array): WritableStore
  /** Fetches a range without blocking the thread, so that the store need not wait for it. Rejects with ImageError. */
  fetch?(file: RemoteFile, at: number, length: number): Promise<void>
  /** Returns the counts of `stats.json`, of all sources of this kind in this process. */
  stats?(source: SourceSpec): Readonly<Record<string, number>>
  /** Calls `tell` for each line that a log should have of what is open. */
  onLine?(tell: (line: { readonly path: string; readonly message: string }) => void): void
  /** Makes all reads that wait for the network fail, in all threads, and those that come. */
  endWaiting?(): void
  /** Lets go of what `open` has opened; the descriptor of the file is closed by the caller. */
  close(source: SourceSpec): void
}

export type RemoteFile = Pick<FileSpec, 'path' | 'fd' | 'sizeBytes'> & {
  readonly source: SourceSpec
}
