/** Files that have no name, so that nothing is left of them however the program ends (open(2), O_TMPFILE). */
import { randomBytes } from 'node:crypto'
import fs from 'node:fs'

const { O_RDWR, O_CREAT, O_EXCL, O_DIRECTORY } = fs.constants
/** Node does not know the flag. */
const O_TMPFILE = 0o20000000 | O_DIRECTORY
/** The errors of file systems that cannot make such files; old kernels answer ENOENT. */
const NO_TMPFILE = new Set(['EOPNOTSUPP', 'ENOTSUP', 'EISDIR', 'EINVAL', 'ENOENT'])

/** Opens a file without a name in `folder`, for reading and writing. Throws Node's error. */
export const openTmpfile = (folder: string, mode = 0o666): number =>
  fs.openSync(folder, O_TMPFILE | O_RDWR, mode)

/** Reports whether `error` says that the file system has no files without names. */
export const lacksTmpfile = (error: unknown): boolean =>
  NO_TMPFILE.has((error as NodeJS.ErrnoException).code ?? '')

/**
 * Opens a new file in `folder` that is gone with its last descriptor, and that only this user may open meanwhile. Where the file
 * system has no files without names, it has one for a moment. Throws Node's error.
 * @param open opens a file without a name; tests replace it
 */
export function openUnnamed(folder: string, open = openTmpfile): number {
  try {
    return open(folder, 0o600)
  } catch (error) {
    if (!lacksTmpfile(error)) throw error
  }
  const name = `${folder}/.vimgfs-${process.pid}-${randomBytes(6).toString('hex')}`
  const fd = fs.openSync(name, O_RDWR | O_CREAT | O_EXCL, 0o600)
  try {
    fs.unlinkSync(name)
  } catch (error) {
    fs.closeSync(fd)
    throw error
  }
  return fd
}
