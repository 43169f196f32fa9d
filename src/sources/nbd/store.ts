/** An export as a store. Its size is fixed. */
import { constants } from 'node:os'
import { SystemError } from '../../errors.js'
import type { Store, WritableStore } from '../../io/store.js'
import { type NbdSpec, Pool } from './pool.js'
import { FLAG } from './protocol.js'

const { EINVAL, ENOSPC } = constants.errno
/** How much one question about holes is about. */
const STATUS_BYTES = 2 ** 30

export class NbdStore implements Store {
  protected readonly pool: Pool
  readonly sizeBytes: number

  constructor(
    readonly path: string,
    protected readonly spec: NbdSpec,
  ) {
    this.pool = new Pool(spec, path)
    this.sizeBytes = spec.info.sizeBytes
  }

  read(target: Buffer, start: number, length: number, at: number): number {
    const { blockBytes, mostBytes } = this.spec.info
    const inside = Math.max(0, Math.min(length, this.sizeBytes - at))
    for (let done = 0; done < inside; ) {
      const from = at + done
      const skip = from % blockBytes
      const bytes = Math.min(inside - done, mostBytes - skip)
      if (skip === 0 && bytes % blockBytes === 0) {
        this.readWhole(target, start + done, bytes, from)
      } else {
        const whole = Buffer.alloc(Math.ceil((skip + bytes) / blockBytes) * blockBytes)
        this.readWhole(whole, 0, this.clipped(from - skip, whole.length), from - skip)
        whole.copy(target, start + done, skip, skip + bytes)
      }
      done += bytes
    }
    return inside
  }

  nextData(at: number): number {
    return this.next(at, false)
  }

  nextHole(at: number): number {
    const found = this.next(at, true)
    return found < 0 ? this.sizeBytes : found
  }

  /** Reads whole blocks. */
  protected readWhole(target: Buffer, start: number, length: number, at: number): void {
    this.pool.run('read', (connection, deadline) =>
      connection.read(target, start, length, at, deadline),
    )
  }

  /** The last block may be cut off by the end of the export. */
  protected clipped(at: number, length: number): number {
    return Math.min(length, this.sizeBytes - at)
  }

  /** Returns where zeros, or anything else, begin from `at` on; -1 if nowhere. */
  private next(at: number, isZero: boolean): number {
    const { holes, blockBytes } = this.spec.info
    if (holes === undefined) return isZero || at >= this.sizeBytes ? -1 : at
    for (let from = at - (at % blockBytes); from < this.sizeBytes; ) {
      const length = Math.min(STATUS_BYTES, this.sizeBytes - from)
      const runs = this.pool.run('read', (connection, deadline) =>
        connection.status(from, length, holes, deadline),
      )
      // A server that tells nothing: all may be data.
      if (runs.length === 0) return isZero ? -1 : Math.max(at, from)
      for (const run of runs) {
        const end = from + run.length
        if (run.isZero === isZero && end > at) return Math.max(at, from)
        from = end
      }
    }
    return -1
  }
}

export class WritableNbdStore extends NbdStore implements WritableStore {
  write(source: Buffer, start: number, length: number, at: number): void {
    if (at + length > this.sizeBytes) throw new SystemError('write', ENOSPC, this.path)
    const { blockBytes, mostBytes } = this.spec.info
    for (let done = 0; done < length; ) {
      const from = at + done
      const skip = from % blockBytes
      const bytes = Math.min(length - done, mostBytes - skip)
      const part = source.subarray(start + done, start + done + bytes)
      if (skip === 0 && bytes % blockBytes === 0) this.writeWhole(part, from)
      else this.pool.alone(() => this.writePart(part, from - skip, skip))
      done += bytes
    }
  }

  sync(): void {
    this.pool.run('flush', (connection, deadline) => connection.flush(deadline))
  }

  /** The server may keep the space, but it reads as zeros. */
  punch(at: number, length: number): boolean {
    const { flags, blockBytes } = this.spec.info
    const isWhole = at % blockBytes === 0 && length % blockBytes === 0
    if ((flags & FLAG.zeroes) === 0 || !isWhole || at + length > this.sizeBytes) return false
    const most = STATUS_BYTES
    for (let done = 0; done < length; done += most) {
      const bytes = Math.min(most, length - done)
      this.pool.run('write', (connection, deadline) => connection.zero(at + done, bytes, deadline))
    }
    return true
  }

  truncate(sizeBytes: number): void {
    if (sizeBytes !== this.sizeBytes) throw new SystemError('ftruncate', EINVAL, this.path)
  }

  private writeWhole(source: Buffer, at: number): void {
    this.pool.run('write', (connection, deadline) => connection.write(source, at, deadline))
  }

  /** Writes a part of some blocks: the rest of them stays. */
  private writePart(part: Buffer, at: number, skip: number): void {
    const { blockBytes } = this.spec.info
    const bytes = Math.ceil((skip + part.length) / blockBytes) * blockBytes
    const whole = Buffer.alloc(this.clipped(at, bytes))
    this.readWhole(whole, 0, whole.length, at)
    part.copy(whole, skip)
    this.writeWhole(whole, at)
  }
}
