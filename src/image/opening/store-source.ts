/** Makes stores of the files of layers. */
import type { LayerSpec } from '../../formats/format.js'
import type { StoreCipher } from '../../io/cipher-store.js'
import type { FileSpec } from '../../io/file-spec.js'
import { type Store, WritableFileStore, type WritableStore } from '../../io/store.js'
import { writableRemoteStore } from '../../sources/registry.js'
import { partStore, storeOf } from '../layer.js'

/** A store that may notice that another process has made it shorter. */
export type WrittenStore = WritableStore & Partial<Pick<WritableFileStore, 'requireWhole'>>

/** A part of a file (`part`) is only read. */
type WrittenFile = Pick<FileSpec, 'path' | 'fd' | 'source' | 'part'>

export interface StoreSource {
  readable(file: FileSpec): Store
  /** @param size the file's size in bytes, which all threads share */
  writable(file: WrittenFile, size: BigInt64Array): WrittenStore
  /** How the data of a layer are decrypted, where that is not by the layer's own key. */
  cipher?(layer: LayerSpec): StoreCipher | undefined
}

/** Files that were opened by their names: files of this machine by their descriptors, others by their sources. */
export const OPENED_FILES: StoreSource = {
  readable: storeOf,
  writable({ path, fd, source, part }, size) {
    const sizeBytes = Number(size[0])
    if (part) return partStore({ path, fd, sizeBytes, part, ...(source && { source }) })
    return source
      ? writableRemoteStore({ path, fd, sizeBytes, source }, size)
      : new WritableFileStore(path, fd, size)
  },
}
