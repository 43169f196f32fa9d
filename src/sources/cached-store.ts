/** Reads an object of which blocks are kept in files of this machine. What is missing there, the network thread fetches. */
import type { ImageError } from '../errors.js'
import type { SourceSpec } from '../io/file-spec.js'
import type { Store } from '../io/store.js'
import { BlockFile, type BlockFiles } from './cache/block-file.js'
import { Mail, unreachable } from './mail.js'

/** How a thread reads an object: plain data. */
export interface CachedSource extends SourceSpec {
  readonly kind: 'cached'
  /** The number of the object in this process. */
  readonly object: number
  readonly sizeBytes: number
  readonly blockBytes: number
  /** Where blocks are kept, the first that has one counts. */
  readonly tiers: readonly BlockFiles[]
  readonly mail: SharedArrayBuffer
  readonly counters: SharedArrayBuffer
  /** See `ObjectState`. */
  readonly state: SharedArrayBuffer
}

const CHANGED = 0
const FIRST_MARK = 1
export const MARKS = 8

/** The state of an object that all threads share: whether it has changed, and which blocks make the network thread read ahead. */
export class ObjectState {
  private readonly words: Int32Array

  constructor(memory: SharedArrayBuffer) {
    this.words = new Int32Array(memory)
  }

  static memory(): SharedArrayBuffer {
    return new SharedArrayBuffer(4 * (FIRST_MARK + MARKS))
  }

  /** Whether the object is another one than it was when it was opened. */
  get isChanged(): boolean {
    return Atomics.load(this.words, CHANGED) === 1
  }

  change(): void {
    Atomics.store(this.words, CHANGED, 1)
  }

  /** Makes a read of `block` ring the bell. */
  mark(index: number, block: number): void {
    Atomics.store(this.words, FIRST_MARK + index, block + 1)
  }

  /** Returns the block of a mark that was reached, and takes it back; -1 if it was not. */
  reached(index: number): number {
    const value = Atomics.load(this.words, FIRST_MARK + index)
    if (value >= 0) return -1
    Atomics.compareExchange(this.words, FIRST_MARK + index, value, 0)
    return -value - 1
  }

  /** Notes a read of the blocks from `first` to `last`. Returns whether it has reached a mark. */
  pass(first: number, last: number): boolean {
    let isReached = false
    for (let i = FIRST_MARK; i < FIRST_MARK + MARKS; i++) {
      const value = Atomics.load(this.words, i)
      if (value <= first || value > last + 1) continue
      if (Atomics.compareExchange(this.words, i, value, -value) === value) isReached = true
    }
    return isReached
  }
}

/** The most blocks that one read asks for at once. */
const MOST_BLOCKS = 256
/** How often a block may be lost again before it is read. */
const MOST_TRIES = 20

export class CachedStore implements Store {
  private readonly mail: Mail
  private readonly state: ObjectState
  private readonly tiers: readonly BlockFile[]
  /** The block that was read last, checked. */
  private readonly bytes: Buffer
  private block = -1

  constructor(
    readonly path: string,
    private readonly source: CachedSource,
  ) {
    const { blockBytes, sizeBytes } = source
    this.mail = new Mail(source.mail)
    this.state = new ObjectState(source.state)
    this.tiers = source.tiers.map(files => new BlockFile(files, blockBytes, sizeBytes))
    this.bytes = Buffer.allocUnsafeSlow(blockBytes)
  }

  get sizeBytes(): number {
    return this.source.sizeBytes
  }

  read(target: Buffer, start: number, length: number, at: number): number {
    const { blockBytes, sizeBytes } = this.source
    const end = Math.min(at + length, sizeBytes)
    if (end <= at) return 0
    const last = Math.floor((end - 1) / blockBytes)
    let tries = 0
    for (let pos = at; pos < end; ) {
      const block = Math.floor(pos / blockBytes)
      if (!this.hold(block)) {
        if (tries++ > MOST_TRIES) throw this.error('its blocks are lost faster than they are read')
        this.ask(block, Math.min(last - block + 1, MOST_BLOCKS))
        continue
      }
      tries = 0
      const from = pos - block * blockBytes
      const bytes = Math.min(end - pos, blockBytes - from)
      this.bytes.copy(target, start + (pos - at), from, from + bytes)
      pos += bytes
    }
    if (this.state.pass(Math.floor(at / blockBytes), last)) this.mail.ring()
    return end - at
  }

  /** Where the object has holes is not known. */
  nextData(at: number): number {
    return at < this.sizeBytes ? at : -1
  }

  nextHole(): number {
    return this.sizeBytes
  }

  /** Returns false if the block is not here. Throws ImageError if the object has changed. */
  private hold(block: number): boolean {
    if (this.state.isChanged) throw this.changed()
    if (block === this.block) return true
    this.block = -1
    if (!this.tiers.some(tier => tier.read(block, this.bytes))) return false
    this.block = block
    return true
  }

  private ask(first: number, count: number): void {
    try {
      this.mail.ask(this.source.object, first, count, this.path)
    } catch (error) {
      throw this.state.isChanged ? this.changed() : error
    }
  }

  /** The log gets its line by the network thread. */
  private changed(): ImageError {
    const error = this.error(HAS_CHANGED)
    error.context.isRepeated = true
    return error
  }

  private error(why: string): ImageError {
    return unreachable(this.path, why)
  }
}

/** Fetches what is missing of a range, without blocking the thread. Rejects with ImageError. */
export async function fetchRange(
  path: string,
  { blockBytes, sizeBytes, object, tiers, mail }: CachedSource,
  at: number,
  length: number,
): Promise<void> {
  const files = tiers.map(each => new BlockFile(each, blockBytes, sizeBytes))
  const last = Math.floor((Math.min(at + length, sizeBytes) - 1) / blockBytes)
  for (let block = Math.floor(at / blockBytes); block <= last; block++) {
    if (files.some(file => file.has(block))) continue
    const count = Math.min(last - block + 1, MOST_BLOCKS)
    await new Mail(mail).askApart(object, block, count, path)
    block += count - 1
  }
}

export const HAS_CHANGED =
  'it has been changed on the server since it was opened: nothing more is read of it until it is opened anew'
