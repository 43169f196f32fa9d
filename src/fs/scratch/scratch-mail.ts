/**
 * How workers get scratch copies from the main thread, which makes them. Workers block in system calls and have no event loop, so
 * they ask by a message, wait in shared memory, and take the answer from a port of their own.
 */
import { MessageChannel, type MessagePort, receiveMessageOnPort } from 'node:worker_threads'
import { constants } from 'node:os'
import { errnoOf, SystemError } from '../../errors.js'
import type { ScratchSource, SharedScratch } from './scratch-disks.js'
import type { ScratchMaker } from './scratch-maker.js'

/** The state of each file, by place in the catalog. Below 0: the errno of the last attempt. */
const NONE = 0
const ASKED = 1
const MADE = 2

/** One worker's end: plain data, and a port that has to be transferred. */
export interface MailboxSetup {
  readonly states: SharedArrayBuffer
  readonly port: MessagePort
  /** The folder of the files, for messages. */
  readonly folder: string
}

/** A worker's message to the main thread. */
export type ScratchMessage =
  /** The scratch copy of the file at this place of the catalog is needed. */
  | { readonly scratch: number }
  /** The thread that drops pages of the file at this place is needed. */
  | { readonly pageDrops: number }

/** The main thread's end. */
export class ScratchMail {
  private readonly states: Int32Array
  private readonly ports: MessagePort[] = []

  /** @param files the number of files in the catalog */
  constructor(
    files: number,
    private readonly maker: ScratchMaker,
  ) {
    this.states = new Int32Array(new SharedArrayBuffer(4 * files))
    for (const { place } of maker.all()) this.states[place] = MADE
  }

  /** Returns the end of one more worker. */
  mailbox(): MailboxSetup {
    const { port1, port2 } = new MessageChannel()
    // It must not keep the process alive.
    port1.unref()
    // A worker that starts later gets what has been made before.
    for (const made of this.maker.all()) port1.postMessage(made)
    this.ports.push(port1)
    const states = this.states.buffer as SharedArrayBuffer
    return { states, port: port2, folder: this.maker.path }
  }

  /**
   * Answers a worker that asked for the file at `place`.
   * @returns what was thrown, if it could not be made
   */
  answer(place: number): unknown {
    if (Atomics.load(this.states, place) === MADE) return undefined
    let state = MADE
    let failure: unknown
    try {
      const made = this.maker.make(place)
      for (const port of this.ports) port.postMessage(made)
    } catch (error) {
      failure = error
      state = -(errnoOf(error) || constants.errno.EIO)
    }
    Atomics.store(this.states, place, state)
    Atomics.notify(this.states, place)
    return failure
  }
}

/** A worker's end. */
export class ScratchMailbox implements ScratchSource {
  private readonly states: Int32Array
  private readonly received = new Map<number, SharedScratch>()

  /**
   * @param tell sends a message to the main thread: the place of a file that is needed, or whose pages have to be dropped
   */
  constructor(
    private readonly setup: MailboxSetup,
    private readonly tell: (message: ScratchMessage) => void,
  ) {
    this.states = new Int32Array(setup.states)
  }

  find(place: number): SharedScratch | undefined {
    if (Atomics.load(this.states, place) !== MADE) return undefined
    while (!this.received.has(place)) this.receive()
    return this.received.get(place)
  }

  make(place: number): SharedScratch {
    for (;;) {
      const found = this.find(place)
      if (found) return found
      const state = Atomics.load(this.states, place)
      if (state === MADE) continue
      const isFirst =
        state !== ASKED && Atomics.compareExchange(this.states, place, state, ASKED) === state
      if (isFirst) this.tell({ scratch: place })
      Atomics.wait(this.states, place, ASKED)
      const now = Atomics.load(this.states, place)
      if (now < NONE) throw new SystemError('open', -now, this.setup.folder)
    }
  }

  startPageDropper(place: number): void {
    this.tell({ pageDrops: place })
  }

  all(): Iterable<SharedScratch> {
    while (this.receive());
    return this.received.values()
  }

  /** Takes one message from the port. Returns false if there is none. */
  private receive(): boolean {
    const got = receiveMessageOnPort(this.setup.port) as { message: SharedScratch } | undefined
    if (got) this.received.set(got.message.place, got.message)
    return got !== undefined
  }
}
