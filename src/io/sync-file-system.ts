/** syncfs(2), off the thread that calls it. */
import { loadLibc } from './native.js'

/**
 * Writes all that the kernel has kept of the file system that `fd` is in. Ignores errors of that: who has written learns of them by
 * fsync(2) and close(2).
 */
export function syncFileSystem(fd: number): Promise<void> {
  const syncfs = loadLibc().func('int syncfs(int fd)')
  return new Promise((resolve, reject) => {
    syncfs.async(fd, (error: unknown) => (error ? reject(error) : resolve()))
  })
}
