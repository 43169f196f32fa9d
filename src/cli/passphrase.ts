/**
 * Where passphrases come from: files, standard input, the terminal. They are never arguments, nor in the
 * environment, nor strings, which nobody can wipe.
 */
import fs from 'node:fs'
import type { ReadStream } from 'node:tty'
import { MountError, printable } from '../errors.js'
import type { AskPassphrase, EncryptionMethod } from '../formats/encryption.js'

/** Names a file to read the passphrase from where no option does. */
const FILE_VARIABLE = 'VIMGFS_PASSPHRASE_FILE'
/** Standard input, as the name of a file. */
const STDIN = '-'
const STDIN_FD = 0
/** What cryptsetup takes of a key file. */
const MAX_PASSPHRASE_BYTES = 8 * 2 ** 20

/**
 * @param files of --passphrase-file, each for one encrypted layer in the order they are asked for; the
 *   last one is for all that follow
 */
export function passphraseSource(files: readonly string[]): AskPassphrase {
  const { [FILE_VARIABLE]: variable = '' } = process.env
  const named = files.length > 0 ? files : variable === '' ? [] : [variable]
  if (named.length === 0) return askOnTerminal
  let asked = 0
  let input: Buffer | undefined
  return async () => {
    const name = named[Math.min(asked++, named.length - 1)] as string
    if (name !== STDIN) return candidates(readNamed(name))
    // It can be read once, and may be asked for by several layers.
    input ??= readAll(STDIN_FD, 'standard input')
    return candidates(Buffer.from(input))
  }
}

/** What nobody wakes anyone by. */
const NEVER = new Int32Array(new SharedArrayBuffer(4))

/** Most files are lines that an editor or echo has ended; a few are keys whose last byte happens to be one. */
function candidates(content: Buffer): Buffer[] {
  if (content.length === 0) throw new MountError('the passphrase is empty')
  const ending = content.at(-1) !== LINE_FEED ? 0 : content.at(-2) === CARRIAGE_RETURN ? 2 : 1
  if (ending === 0) return [content]
  const line = Buffer.from(content.subarray(0, content.length - ending))
  return line.length > 0 ? [line, content] : [content]
}

const LINE_FEED = 0x0a
const CARRIAGE_RETURN = 0x0d

function readNamed(name: string): Buffer {
  const what = `the passphrase file ${printable(name)}`
  let fd: number
  try {
    fd = fs.openSync(name, 'r')
  } catch (error) {
    throw new MountError(`${what} cannot be opened: ${(error as NodeJS.ErrnoException).code}`)
  }
  try {
    return readAll(fd, what)
  } finally {
    fs.closeSync(fd)
  }
}

function readAll(fd: number, what: string): Buffer {
  let content = Buffer.alloc(4096)
  let used = 0
  for (;;) {
    if (used === content.length) {
      if (used >= MAX_PASSPHRASE_BYTES) {
        content.fill(0)
        throw new MountError(`${what} is too long: ${MAX_PASSPHRASE_BYTES} bytes are taken at most`)
      }
      const larger = Buffer.alloc(used * 2)
      content.copy(larger)
      content.fill(0)
      content = larger
    }
    let got: number
    try {
      got = fs.readSync(fd, content, used, content.length - used, null)
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code !== 'EAGAIN') throw new MountError(`${what} cannot be read: ${code}`)
      // Somebody's pipe, set not to be waited for.
      Atomics.wait(NEVER, 0, 0, 10)
      continue
    }
    if (got === 0) return content.subarray(0, used)
    used += got
  }
}

async function askOnTerminal(path: string, method: EncryptionMethod): Promise<Buffer[]> {
  const { stdin } = process
  if (!stdin.isTTY) {
    throw new MountError(
      `${printable(path)}: it is encrypted; name a file with its passphrase with --passphrase-file FILE (- for standard input)`,
    )
  }
  const typed = await prompt(stdin, `Passphrase of ${printable(path)}: `)
  if (typed.length === 0) throw new MountError('the passphrase is empty')
  if (method === 'AES') {
    // Nothing but the one who types can tell that it is wrong.
    const again = await prompt(stdin, 'The same again: ')
    const isSame = again.equals(typed)
    again.fill(0)
    if (!isSame) {
      typed.fill(0)
      throw new MountError('the two passphrases differ')
    }
  }
  return [typed]
}

const KEY = { interrupt: 0x03, end: 0x04, backspace: 0x08, eraseLine: 0x15, delete: 0x7f } as const

/** Reads a line without showing it. */
function prompt(terminal: ReadStream, text: string): Promise<Buffer> {
  // Before anybody is told to type.
  terminal.setRawMode(true)
  process.stderr.write(text)
  const line = Buffer.alloc(4096)
  let used = 0
  return new Promise((resolve, reject) => {
    const finish = (settle: () => void) => {
      terminal.off('data', take)
      terminal.setRawMode(false)
      terminal.pause()
      process.stderr.write('\n')
      settle()
    }
    const take = (typed: Buffer) => {
      for (const byte of typed) {
        if (byte === LINE_FEED || byte === CARRIAGE_RETURN || byte === KEY.end) {
          typed.fill(0)
          finish(() => resolve(line.subarray(0, used)))
          return
        }
        if (byte === KEY.interrupt) {
          line.fill(0)
          finish(() => reject(new MountError('interrupted; nothing is mounted')))
          return
        }
        if (byte === KEY.eraseLine) used = 0
        else if (byte === KEY.backspace || byte === KEY.delete) used = withoutLast(line, used)
        else if (used < line.length) line[used++] = byte
      }
      typed.fill(0)
    }
    terminal.on('data', take)
    terminal.resume()
  })
}

/** The length without the last character of UTF-8. */
function withoutLast(line: Buffer, used: number): number {
  let length = Math.max(0, used - 1)
  while (length > 0 && ((line[length] as number) & 0xc0) === 0x80) length--
  return length
}
