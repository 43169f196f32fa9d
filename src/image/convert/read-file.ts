/** Reads at a place of a file without blocking the thread, wherever the file lies. */
import { readAt } from '../../io/async-file.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { Store } from '../../io/store.js'
import { fetchRemote } from '../../sources/registry.js'
import { storeOf } from '../layer.js'

const stores = new WeakMap<FileSpec, Store>()

/**
 * Reads into all of `target`. Resolves to the bytes read; fewer only at the end of the file. Rejects with SystemError, and for a
 * file that is not on this machine with ImageError.
 */
export async function readFileAt(file: FileSpec, target: Buffer, at: number): Promise<number> {
  const { fd, path, source } = file
  if (!source) return readAt(fd, target, at, path)
  const whole = wholeOf(file)
  await fetchRemote({ ...whole, source }, at, target.length)
  const store = stores.get(file) ?? storeOf(whole)
  stores.set(file, store)
  return store.read(target, 0, target.length, at)
}

/** Places of a part of a file count in the whole file. */
function wholeOf({ part, ...file }: FileSpec): FileSpec {
  return part ? { ...file, path: part.path, sizeBytes: part.wholeBytes } : file
}
