/** The file of a scratch copy that is thrown away: nothing in it has to survive, and no other process can shorten it. */
import { WritableFileStore } from '../../io/store.js'
import { storeOf } from '../layer.js'
import type { StoreSource } from '../opening/store-source.js'

class ScratchStore extends WritableFileStore {
  override sync(): void {}
  override requireWhole(): void {}
}

export const SCRATCH_FILES: StoreSource = {
  readable: storeOf,
  writable: ({ path, fd }, size) => new ScratchStore(path, fd, size),
}
