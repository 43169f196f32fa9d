/**
 * Reads files beside an image. Nothing there is a reason to fail: files that cannot be read are skipped.
 */
import fs from 'node:fs'
import { pathOfDescriptor } from '../io/beneath.js'
import type { Folder } from '../io/folders.js'

/** Returns the names in the folder as bytes, since they may have no known encoding; none if it cannot be listed. */
export const entriesOf = ({ fd }: Folder): Buffer[] =>
  attempted(() => fs.readdirSync(pathOfDescriptor(fd), { encoding: 'buffer' })) ?? []

/** Returns the `length` bytes of a file at `at`, or fewer at the end of the file. */
export function readAt(fd: number, at: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  return bytes.subarray(0, fs.readSync(fd, bytes, 0, length, at))
}

/** Returns what `act` returns; undefined if the system refuses it. */
export function attempted<T>(act: () => T): T | undefined {
  try {
    return act()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === undefined) throw error
    return undefined
  }
}
