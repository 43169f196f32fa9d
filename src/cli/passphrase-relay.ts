/**
 * Passes passphrases to the server in the background. The server has no terminal, so it asks the command that started it,
 * which answers over a pipe. An answer is a count and that many passphrases; or 0 and the reason why there is none. Each
 * of them follows its length in 32 bits. The count's highest bit says that somebody has typed it.
 */
import fs from 'node:fs'
import { Socket } from 'node:net'
import type { Writable } from 'node:stream'
import { isExpected, MountError, oneLine } from '../errors.js'
import type { AskPassphrase } from '../image/opening/encryption.js'
import type { EncryptionMethod } from '../formats/format.js'
import { Interrupted } from '../interruption.js'

/** A question in the server's report. */
export interface Question {
  readonly path: string
  readonly method: EncryptionMethod
}

const LENGTH_BYTES = 4
const TYPED = 0x80

/** The server's side. */
export class PassphraseRelay {
  private answers: Answers | undefined

  /** @param fd the descriptor to read answers from; `close` closes it */
  constructor(
    private readonly fd: number,
    private readonly tell: (question: Question) => void,
  ) {}

  readonly ask: AskPassphrase = async (path, method) => {
    this.answers ??= new Answers(this.fd)
    const { answers } = this
    this.tell({ path, method })
    const first = (await answers.take(1)).readUInt8()
    const count = first & ~TYPED
    if (count === 0) throw new MountError((await takeOne(answers)).toString())
    const passphrases: Buffer[] = []
    for (let i = 0; i < count; i++) passphrases.push(await takeOne(answers))
    return Object.assign(passphrases, { isTyped: (first & TYPED) !== 0 })
  }

  /** Call this when no more passphrases are needed. */
  close(): void {
    if (this.answers) this.answers.close()
    else fs.closeSync(this.fd)
  }
}

const takeOne = async (answers: Answers) =>
  answers.take((await answers.take(LENGTH_BYTES)).readUInt32LE())

/** Collects bytes as they arrive, and wipes them when they are taken. */
class Answers {
  private readonly socket: Socket
  private received: Buffer = Buffer.alloc(0)
  private hasEnded = false
  private wake: () => void = () => {}

  constructor(fd: number) {
    this.socket = new Socket({ fd, readable: true, writable: false })
    this.socket.on('data', part => {
      const before = this.received
      this.received = Buffer.concat([before, part])
      before.fill(0)
      part.fill(0)
      this.wake()
    })
    const end = () => {
      this.hasEnded = true
      this.wake()
    }
    this.socket.on('end', end)
    this.socket.on('error', end)
  }

  async take(bytes: number): Promise<Buffer> {
    while (this.received.length < bytes) {
      if (this.hasEnded) throw new Interrupted()
      await new Promise<void>(resolve => {
        this.wake = resolve
      })
    }
    const taken = Buffer.from(this.received.subarray(0, bytes))
    this.received.fill(0, 0, bytes)
    this.received = this.received.subarray(bytes)
    return taken
  }

  close(): void {
    this.socket.destroy()
  }
}

/** Answers a question with the passphrases of `source`, over `pipe`. */
export async function answer(
  { path, method }: Question,
  source: AskPassphrase,
  pipe: Writable,
): Promise<void> {
  let parts: readonly Buffer[]
  let count = 0
  try {
    const given = await source(path, method)
    parts = given
    count = given.length | (given.isTyped ? TYPED : 0)
  } catch (error) {
    if (!isExpected(error)) throw error
    parts = [Buffer.from(oneLine(error))]
  }
  pipe.write(Buffer.of(count))
  for (const part of parts) {
    const length = Buffer.alloc(LENGTH_BYTES)
    length.writeUInt32LE(part.length)
    pipe.write(length)
    pipe.write(part, () => part.fill(0))
  }
}
