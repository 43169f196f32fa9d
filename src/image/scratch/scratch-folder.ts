/** The folder that takes what is written to scratch copies. */
import fs from 'node:fs'
import path from 'node:path'
import { ImageError, inWords } from '../../errors.js'
import type { FileSpec } from '../../io/file-spec.js'
import { openUnnamed } from '../../io/unnamed-file.js'

/** For images that are not on this machine. */
const REMOTE_FOLDER = '/var/tmp'
const O_PATH = 0o10000000
const { O_DIRECTORY } = fs.constants
/** The types of statfs(2) of file systems that keep files in memory: tmpfs, which devtmpfs is, too, and ramfs. */
const IN_MEMORY = new Set([0x01021994, 0x858458f6])

/** A folder that is held open: what is mounted over it later changes nothing. */
export interface ScratchFolder {
  readonly path: string
  /** Opens a file that is gone with its last descriptor. Throws Node's error. */
  newFile(): number
  close(): void
}

/**
 * Opens the folder for the scratch files of an image, and makes a file in it to see that this is possible. Throws ImageError.
 * @param image the path of the image, whose folder is the default, and its open file
 * @param named the folder that the user named
 */
export function openScratchFolder(
  image: Pick<FileSpec, 'path' | 'fd' | 'source' | 'part'>,
  named: string | undefined,
): ScratchFolder {
  const own = image.source ? REMOTE_FOLDER : folderOf(image.part?.path ?? image.path)
  const folder = named === undefined ? own : path.resolve(named)
  const hint = `name ${named === undefined ? 'a' : 'another'} folder with -o scratch-dir=DIR`
  const refuse = (what: string): never => {
    throw new ImageError('REFUSED', what, { path: folder, hint })
  }
  let fd: number
  try {
    fd = fs.openSync(folder, O_PATH | O_DIRECTORY)
  } catch (error) {
    return refuse(`this folder cannot take the scratch file: ${inWords(error)}`)
  }
  const held = `/proc/self/fd/${fd}`
  const made = { path: folder, newFile: () => openUnnamed(held), close: () => fs.closeSync(fd) }
  try {
    if (named === undefined && isInMemory(held) && !isInMemory(`/proc/self/fd/${image.fd}`)) {
      refuse('this folder is in memory, and the image is not')
    }
    fs.closeSync(made.newFile())
    return made
  } catch (error) {
    made.close()
    if (error instanceof ImageError) throw error
    return refuse(`this folder cannot take the scratch file: ${inWords(error)}`)
  }
}

/** Reports whether the file system keeps its files in memory. A device is never there, whatever its node's folder is. */
function isInMemory(name: string): boolean {
  return !fs.statSync(name).isBlockDevice() && IN_MEMORY.has(fs.statfsSync(name).type)
}

function folderOf(image: string): string {
  try {
    return path.dirname(fs.realpathSync(image))
  } catch {
    return path.dirname(image)
  }
}
