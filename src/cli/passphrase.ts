/**
 * Gets passphrases from files, standard input or the terminal. They are never arguments, never in the environment, and
 * never strings, because strings cannot be wiped.
 */
import fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ReadStream } from 'node:tty'
import { promisify } from 'node:util'
import { inWords, MountError, printable } from '../errors.js'
import type { AskPassphrase, Passphrases } from '../image/opening/encryption.js'
import { Interrupted, orInterrupted } from '../interruption.js'
import { Note } from './note.js'

/** Names the file with the passphrase if no option does. */
const FILE_VARIABLE = 'VIMGFS_PASSPHRASE_FILE'
/** Standard input, as the name of a file. */
const STDIN = '-'
const STDIN_FD = 0
/** The limit of cryptsetup for a key file. */
const MAX_PASSPHRASE_BYTES = 8 * 2 ** 20

export interface PassphraseSource {
  readonly ask: AskPassphrase
  /** Gets the passphrase of a new image; on a terminal it is asked for twice. Throws Interrupted, MountError. */
  askNew(path: string): Promise<Buffer>
  /** Wipes the passphrases that are kept for the next layer. Call it when no more are needed. */
  close(): void
}

/**
 * @param files the files of --passphrase-file, one for each encrypted layer in the order in which they are asked for; the
 *   last one is for all layers that follow
 * @param signal ends asking: then `ask` throws Interrupted
 * @param option the option that names these files, for messages
 */
export function passphraseSource(
  files: readonly string[],
  signal: AbortSignal,
  option = '--passphrase-file',
): PassphraseSource {
  const { [FILE_VARIABLE]: variable = '' } = process.env
  const named = files.length > 0 ? files : variable === '' ? [] : [variable]
  let asked = 0
  let lastTyped: string | undefined
  let input: Buffer | undefined
  let note: Note | undefined
  // Legacy AES cannot tell a typing error, and neither can a new image.
  const ask: AskPassphrase = async (path, method) => {
    note?.end()
    const given = await get(path, method === 'AES')
    if (method !== 'LUKS') return given
    // A key may take seconds to derive, so that guessing takes long.
    const deriving = new Note(`deriving the key of ${printable(path)}`)
    note = deriving
    return Object.assign(given, { whenUsed: () => deriving.end() })
  }
  const get = async (path: string, isTwice: boolean): Promise<Passphrases> => {
    if (signal.aborted) throw new Interrupted()
    const isAgain = path === lastTyped
    const name = named[Math.min(isAgain ? asked - 1 : asked++, named.length - 1)]
    const isInput = name === STDIN && !process.stdin.isTTY
    if (name === undefined || (name === STDIN && !isInput)) {
      lastTyped = path
      return askOnTerminal(path, { isTwice, isAgain, option }, signal)
    }
    if (!isInput) return candidates(await orInterrupted(readNamed(name), signal))
    // Standard input can be read only once, and several layers may need it.
    input ??= await orInterrupted(readAll(STDIN_FD, 'standard input'), signal)
    return candidates(Buffer.from(input))
  }
  const askNew = async (path: string) => {
    const [line, content] = (await get(path, true)) as [Buffer, Buffer?]
    content?.fill(0)
    return line
  }
  const close = () => {
    note?.end()
    input?.fill(0)
  }
  return { ask, askNew, close }
}

/** Most files end with a newline from an editor or echo. A few are keys whose last byte happens to be a newline. */
function candidates(content: Buffer): Buffer[] {
  const ending = content.at(-1) !== LINE_FEED ? 0 : content.at(-2) === CARRIAGE_RETURN ? 2 : 1
  const line = Buffer.from(content.subarray(0, content.length - ending))
  if (line.length === 0) throw new MountError('the passphrase is empty')
  if (ending > 0) return [line, content]
  content.fill(0)
  return [line]
}

const LINE_FEED = 0x0a
const CARRIAGE_RETURN = 0x0d

async function readNamed(name: string): Promise<Buffer> {
  const what = `the passphrase file ${printable(name)}`
  let file: fs.promises.FileHandle
  try {
    file = await fs.promises.open(name)
  } catch (error) {
    throw new MountError(`${what} cannot be opened: ${inWords(error)}`)
  }
  try {
    return await readAll(file.fd, what)
  } finally {
    await file.close()
  }
}

const read = promisify(fs.read)

async function readAll(fd: number, what: string): Promise<Buffer> {
  let content = Buffer.alloc(4096)
  for (let used = 0; ; ) {
    if (used === content.length) {
      const full = content
      content = Buffer.alloc(used * 2)
      full.copy(content)
      full.fill(0)
    }
    if (used > MAX_PASSPHRASE_BYTES) {
      content.fill(0)
      throw new MountError(`${what} is too long: ${MAX_PASSPHRASE_BYTES} bytes are taken at most`)
    }
    try {
      const { bytesRead } = await read(fd, content, used, content.length - used, null)
      if (bytesRead === 0) return content.subarray(0, used)
      used += bytesRead
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') {
        content.fill(0)
        throw new MountError(`${what} cannot be read: ${inWords(error)}`)
      }
      // A pipe that another program has made non-blocking.
      await sleep(10)
    }
  }
}

async function askOnTerminal(
  path: string,
  { isTwice, isAgain, option }: { isTwice: boolean; isAgain: boolean; option: string },
  signal: AbortSignal,
): Promise<Passphrases> {
  const { stdin } = process
  if (!stdin.isTTY) {
    throw new MountError(
      `${printable(path)}: it is encrypted; name a file with its passphrase with ${option} FILE (- for standard input)`,
    )
  }
  const wrong = isAgain ? 'That is not its passphrase. ' : ''
  const typed = await prompt(stdin, `${wrong}Passphrase of ${printable(path)}: `, signal)
  if (typed.length === 0) throw new MountError('the passphrase is empty')
  if (isTwice) {
    const again = await prompt(stdin, 'The same again: ', signal)
    const isSame = again.equals(typed)
    again.fill(0)
    if (!isSame) {
      typed.fill(0)
      throw new MountError('the two passphrases differ')
    }
  }
  return Object.assign([typed], { isTyped: true })
}

const KEY = { interrupt: 0x03, end: 0x04, backspace: 0x08, eraseLine: 0x15, delete: 0x7f } as const

/** Reads a line without showing it. Throws Interrupted, also if the terminal goes away. */
function prompt(terminal: ReadStream, text: string, signal: AbortSignal): Promise<Buffer> {
  const line = Buffer.alloc(4096)
  let used = 0
  return new Promise((resolve, reject) => {
    const finish = (settle: () => void) => {
      terminal.off('data', take)
      for (const event of ENDS) terminal.off(event, interrupt)
      signal.removeEventListener('abort', interrupt)
      try {
        terminal.setRawMode(false)
      } catch {
        // The terminal has gone, and its mode with it.
      }
      terminal.pause()
      process.stderr.write('\n')
      settle()
    }
    const interrupt = () => {
      line.fill(0)
      finish(() => reject(new Interrupted()))
    }
    const take = (typed: Buffer) => {
      for (const [i, byte] of typed.entries()) {
        if (byte === LINE_FEED || byte === CARRIAGE_RETURN || byte === KEY.end) {
          // The bytes after the line answer the next question.
          const rest = Buffer.from(typed.subarray(i + 1))
          typed.fill(0)
          finish(() => resolve(line.subarray(0, used)))
          if (rest.length > 0) terminal.unshift(rest)
          return
        }
        if (byte === KEY.interrupt) {
          typed.fill(0)
          interrupt()
          return
        }
        if (byte === KEY.eraseLine) used = 0
        else if (byte === KEY.backspace || byte === KEY.delete) used = withoutLast(line, used)
        else if (used < line.length) line[used++] = byte
        else {
          line.fill(0)
          finish(() => reject(new MountError('the passphrase is too long to be typed')))
          break
        }
      }
      typed.fill(0)
    }
    signal.addEventListener('abort', interrupt)
    for (const event of ENDS) terminal.on(event, interrupt)
    terminal.on('data', take)
    // Turn the echo off before the prompt is shown.
    terminal.setRawMode(true)
    terminal.resume()
    process.stderr.write(text)
  })
}

/** The events of a terminal that goes away. */
const ENDS = ['end', 'close', 'error'] as const

/** Returns the length of the line without its last UTF-8 character. */
function withoutLast(line: Buffer, used: number): number {
  let length = Math.max(0, used - 1)
  while (length > 0 && ((line[length] as number) & 0xc0) === 0x80) length--
  return length
}
