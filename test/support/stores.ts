/**
 * Stores for tests: in memory, recording, failing, full. A driver uses them like files, so all code above runs unchanged.
 */
import { SystemError } from '../../src/errors.js'
import type { WritableStore } from '../../src/io/store.js'

const CHUNK_BYTES = 4096
/** Chunks are parts of larger buffers: the collector's work grows with their number. */
const SLAB_BYTES = 32 * CHUNK_BYTES
let slab = Buffer.alloc(0)

/** Returns a chunk of zeros. */
function newChunk(): Buffer {
  if (slab.length === 0) slab = Buffer.alloc(SLAB_BYTES)
  const chunk = slab.subarray(0, CHUNK_BYTES)
  slab = slab.subarray(CHUNK_BYTES)
  return chunk
}

/** A file in memory, with holes. A clone shares all chunks that neither of the two has written since. */
export class MemoryStore implements WritableStore {
  private chunks: (Buffer | undefined)[] = []
  /** By index: whether this store alone has the chunk. */
  private owned: boolean[] = []
  private size = 0

  constructor(
    readonly path: string,
    content?: Buffer,
  ) {
    if (content === undefined) return
    this.size = content.length
    for (let at = 0; at < content.length; at += CHUNK_BYTES) {
      const chunk = content.subarray(at, at + CHUNK_BYTES)
      if (isZero(chunk)) continue
      chunk.copy(this.own(at / CHUNK_BYTES))
    }
  }

  get sizeBytes(): number {
    return this.size
  }

  /** The space that it takes: all chunks that are not holes. */
  get allocatedBytes(): number {
    let bytes = 0
    for (const chunk of this.chunks) if (chunk) bytes += CHUNK_BYTES
    return bytes
  }

  clone(): MemoryStore {
    const copy = new MemoryStore(this.path)
    copy.size = this.size
    copy.chunks = this.chunks.slice()
    this.owned = []
    return copy
  }

  /** Returns the whole content. */
  bytes(): Buffer {
    const all = Buffer.alloc(this.size)
    this.read(all, 0, this.size, 0)
    return all
  }

  read(target: Buffer, start: number, length: number, at: number): number {
    const got = Math.max(0, Math.min(length, this.size - at))
    for (let done = 0; done < got; ) {
      const inChunk = (at + done) % CHUNK_BYTES
      const step = Math.min(got - done, CHUNK_BYTES - inChunk)
      const chunk = this.chunks[(at + done - inChunk) / CHUNK_BYTES]
      const to = start + done
      if (chunk) chunk.copy(target, to, inChunk, inChunk + step)
      else target.fill(0, to, to + step)
      done += step
    }
    return got
  }

  write(source: Buffer, start: number, length: number, at: number): void {
    for (let done = 0; done < length; ) {
      const inChunk = (at + done) % CHUNK_BYTES
      const step = Math.min(length - done, CHUNK_BYTES - inChunk)
      const chunk = this.own((at + done - inChunk) / CHUNK_BYTES)
      source.copy(chunk, inChunk, start + done, start + done + step)
      done += step
    }
    if (length > 0) this.size = Math.max(this.size, at + length)
  }

  sync(): void {}

  punch(at: number, length: number): boolean {
    this.clear(at, Math.min(at + length, this.size))
    return true
  }

  truncate(sizeBytes: number): void {
    this.clear(sizeBytes, this.size)
    this.size = sizeBytes
  }

  nextData(at: number): number {
    for (let i = Math.floor(at / CHUNK_BYTES); i * CHUNK_BYTES < this.size; i++) {
      if (this.chunks[i]) return Math.max(at, i * CHUNK_BYTES)
    }
    return -1
  }

  nextHole(at: number): number {
    for (let i = Math.floor(at / CHUNK_BYTES); i * CHUNK_BYTES < this.size; i++) {
      if (!this.chunks[i]) return Math.max(at, i * CHUNK_BYTES)
    }
    return this.size
  }

  /** Returns how many bytes a write there would allocate. */
  missingBytes(at: number, length: number): number {
    let missing = 0
    for (let i = Math.floor(at / CHUNK_BYTES); i * CHUNK_BYTES < at + length; i++) {
      if (!this.chunks[i]) missing += CHUNK_BYTES
    }
    return missing
  }

  private clear(from: number, to: number): void {
    for (let at = from; at < to; ) {
      const inChunk = at % CHUNK_BYTES
      const step = Math.min(to - at, CHUNK_BYTES - inChunk)
      const index = (at - inChunk) / CHUNK_BYTES
      if (step === CHUNK_BYTES || (inChunk === 0 && to >= this.size)) this.chunks[index] = undefined
      else if (this.chunks[index]) this.own(index).fill(0, inChunk, inChunk + step)
      at += step
    }
  }

  /** Returns the chunk for writing. */
  private own(index: number): Buffer {
    const chunk = this.chunks[index]
    if (chunk && this.owned[index]) return chunk
    const mine = newChunk()
    chunk?.copy(mine)
    this.chunks[index] = mine
    this.owned[index] = true
    return mine
  }
}

/** The operations on files, in order; `file` tells the files apart. */
export type JournalEntry<Mark> =
  | { readonly kind: 'write'; readonly file: number; readonly at: number; readonly bytes: Buffer }
  | { readonly kind: 'punch'; readonly file: number; readonly at: number; readonly length: number }
  | { readonly kind: 'truncate'; readonly file: number; readonly sizeBytes: number }
  /** Wholly done, and on the disk. */
  | { readonly kind: 'replace'; readonly file: number; readonly bytes: Buffer }
  | { readonly kind: 'sync'; readonly file: number }
  /** A failed sync: the data that it should have written may be lost, whatever later syncs report. */
  | { readonly kind: 'failed sync'; readonly file: number }
  /** A mark of the test itself. */
  | { readonly kind: 'mark'; readonly mark: Mark }

export type Journal<Mark> = JournalEntry<Mark>[]

/** Passes all calls to another store; the base of wrappers that change a few. */
export class WrappedStore implements WritableStore {
  constructor(protected readonly inner: WritableStore) {}

  get path(): string {
    return this.inner.path
  }
  get sizeBytes(): number {
    return this.inner.sizeBytes
  }
  get holesReadAsZeros(): boolean {
    return this.inner.holesReadAsZeros !== false
  }
  read(target: Buffer, start: number, length: number, at: number, offset?: number): number {
    return this.inner.read(target, start, length, at, offset)
  }
  nextData(at: number): number {
    return this.inner.nextData(at)
  }
  nextHole(at: number): number {
    return this.inner.nextHole(at)
  }
  write(source: Buffer, start: number, length: number, at: number, offset?: number): void {
    this.inner.write(source, start, length, at, offset)
  }
  sync(): void {
    this.inner.sync()
  }
  punch(at: number, length: number): boolean {
    return this.inner.punch(at, length)
  }
  truncate(sizeBytes: number): void {
    this.inner.truncate(sizeBytes)
  }
  replace(content: Buffer): void {
    if (this.inner.replace) {
      this.inner.replace(content)
      return
    }
    this.inner.write(content, 0, content.length, 0)
    this.inner.truncate(content.length)
  }
}

/** Records the operations on a store in a journal, which stores may share. */
export class RecordingStore<Mark> extends WrappedStore {
  constructor(
    inner: WritableStore,
    private readonly journal: Journal<Mark>,
    private readonly file: number,
  ) {
    super(inner)
  }

  override write(source: Buffer, start: number, length: number, at: number): void {
    const bytes = Buffer.from(source.subarray(start, start + length))
    this.journal.push({ kind: 'write', file: this.file, at, bytes })
    super.write(source, start, length, at)
  }

  override sync(): void {
    super.sync()
    this.journal.push({ kind: 'sync', file: this.file })
  }

  /** Records a failed sync. */
  syncFailed(): void {
    this.journal.push({ kind: 'failed sync', file: this.file })
  }

  override punch(at: number, length: number): boolean {
    const punched = super.punch(at, length)
    if (punched) this.journal.push({ kind: 'punch', file: this.file, at, length })
    return punched
  }

  override truncate(sizeBytes: number): void {
    this.journal.push({ kind: 'truncate', file: this.file, sizeBytes })
    super.truncate(sizeBytes)
  }

  override replace(content: Buffer): void {
    this.journal.push({ kind: 'replace', file: this.file, bytes: Buffer.from(content) })
    super.replace(content)
  }
}

export type Call = 'write' | 'punch' | 'truncate' | 'sync'

export interface Fault {
  /** The number of the call that fails first, of those in `calls`, from 0 on. */
  readonly nth: number
  readonly calls: readonly Call[]
  readonly errno: number
  /** Whether all calls fail from then on, until `heal`. If not, only one fails. */
  readonly persists: boolean
  /**
   * The part of its data that a failing write has written: down to whole sectors of the file; or, if it made the file longer,
   * to the byte, as at a limit of the file's size.
   */
  readonly part: number
}

/** Counts and fails the calls of several stores: a fault hits the nth call of all. */
export class FaultPlan {
  /** Calls so far, of each kind. */
  readonly counts: Record<Call, number> = { write: 0, punch: 0, truncate: 0, sync: 0 }
  /** The calls that failed, for messages. */
  readonly failed: string[] = []
  private seen = 0

  constructor(private fault?: Fault) {}

  heal(): void {
    this.fault = undefined
  }

  /** Returns the fault for this call, if it has to fail. */
  strikes(call: Call): Fault | undefined {
    this.counts[call]++
    const { fault } = this
    if (!fault?.calls.includes(call)) return undefined
    const index = this.seen++
    if (index < fault.nth || (index > fault.nth && !fault.persists)) return undefined
    this.failed.push(`${call} ${this.counts[call]}`)
    return fault
  }
}

/** Fails by a plan. A failing punch returns false, as on a file system; a part may have been punched. */
export class FaultStore extends WrappedStore {
  constructor(
    inner: WritableStore,
    private readonly plan: FaultPlan,
  ) {
    super(inner)
  }

  override write(source: Buffer, start: number, length: number, at: number): void {
    const fault = this.plan.strikes('write')
    if (!fault) {
      super.write(source, start, length, at)
      return
    }
    const end = at + Math.floor((length - 1) * fault.part)
    const kept = end > this.sizeBytes ? end : end - (end % 512)
    if (kept > at) super.write(source, start, kept - at, at)
    throw new SystemError('write', fault.errno, this.path)
  }

  override sync(): void {
    const fault = this.plan.strikes('sync')
    if (fault) {
      if (this.inner instanceof RecordingStore) this.inner.syncFailed()
      throw new SystemError('fdatasync', fault.errno, this.path)
    }
    super.sync()
  }

  override punch(at: number, length: number): boolean {
    return this.plan.strikes('punch') ? false : super.punch(at, length)
  }

  override truncate(sizeBytes: number): void {
    const fault = this.plan.strikes('truncate')
    if (fault) throw new SystemError('ftruncate', fault.errno, this.path)
    super.truncate(sizeBytes)
  }

  override replace(content: Buffer): void {
    const fault = this.plan.strikes('write')
    if (fault) throw new SystemError('rename', fault.errno, this.path)
    super.replace(content)
  }
}

const ENOSPC = 28

/** A disk with room for a number of bytes: a write that needs a new block fails if none is left. */
export class FullDiskStore extends WrappedStore {
  /** The number of bytes. Raise it to make room again. */
  limitBytes = Number.POSITIVE_INFINITY

  constructor(protected override readonly inner: MemoryStore) {
    super(inner)
  }

  get usedBytes(): number {
    return this.inner.allocatedBytes
  }

  override write(source: Buffer, start: number, length: number, at: number): void {
    for (let done = 0; done < length; ) {
      const step = Math.min(length - done, CHUNK_BYTES - ((at + done) % CHUNK_BYTES))
      const missing = this.inner.missingBytes(at + done, step)
      if (missing > 0 && this.inner.allocatedBytes + missing > this.limitBytes) {
        throw new SystemError('write', ENOSPC, this.path)
      }
      super.write(source, start + done, step, at + done)
      done += step
    }
  }
}

const isZero = (bytes: Buffer): boolean => bytes.equals(ZEROS.subarray(0, bytes.length))
const ZEROS = Buffer.alloc(CHUNK_BYTES)
