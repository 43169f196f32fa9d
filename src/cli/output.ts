/**
 * Prints for the commands. If a write fails, Node's own streams throw or end the program. Here a result that cannot be
 * written is one error, and a remark that cannot be written is lost.
 */
import fs from 'node:fs'
import { inWords, MountError } from '../errors.js'

const STDOUT = 1
const STDERR = 2
const PIECE_CHARACTERS = 64 * 1024
/** How long to wait before the next try if the reader of a non-blocking pipe is slow. */
const RETRY_MS = 10

/**
 * Prints all of a command's result. A reader that stops early (`| head -1`) is not an error. Throws MountError if the text
 * cannot be written.
 */
export function print(text: string): void {
  try {
    writeAll(STDOUT, text)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EPIPE') return
    throw new MountError(`standard output cannot be written: ${inWords(error)}`)
  }
}

/**
 * Prints texts in pieces of about PIECE_CHARACTERS, also what comes before an error. Throws what `texts` and `requireSound` throw,
 * and MountError.
 * @param requireSound called before something is printed; throws if all of it may be wrong
 */
export function printAll(texts: Iterable<string>, requireSound: () => void): void {
  let text = ''
  const printed = () => {
    requireSound()
    print(text)
    text = ''
  }
  try {
    for (const each of texts) {
      text += each
      if (text.length >= PIECE_CHARACTERS) printed()
    }
  } finally {
    if (text !== '') printed()
  }
}

/** Prints a remark that may be lost, on standard output. Never throws. */
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
    // There is no other place to print it.
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
