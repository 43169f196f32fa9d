/**
 * What the commands print. Node's own streams throw, or end the program, where a write fails; here a
 * result that cannot be written is one error, and a remark that cannot be written is none.
 */
import fs from 'node:fs'
import { inWords, MountError } from '../errors.js'

const STDOUT = 1
const STDERR = 2
/** How long to wait before the next try where the reader of a non-blocking pipe is slow. */
const RETRY_MS = 10

/**
 * Prints the result of a command, all of it. A reader that stops early (`| head -1`) is no error. Throws
 * MountError where the text cannot be written.
 */
export function print(text: string): void {
  try {
    writeAll(STDOUT, text)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EPIPE') return
    throw new MountError(`standard output cannot be written: ${inWords(error)}`)
  }
}

/** Prints what the user may do without, on standard output. Never throws. */
export function mention(text: string): void {
  tryWrite(STDOUT, text)
}

/** Prints on standard error. Never throws. */
export function complain(text: string): void {
  tryWrite(STDERR, text)
}

function tryWrite(fd: number, text: string): void {
  try {
    writeAll(fd, text)
  } catch {
    // There is no other place to say it.
  }
}

function writeAll(fd: number, text: string): void {
  for (let rest = Buffer.from(text); rest.length > 0; ) {
    try {
      rest = rest.subarray(fs.writeSync(fd, rest))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, RETRY_MS)
    }
  }
}
