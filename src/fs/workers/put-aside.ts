/** The requests of a worker that wait for the gate, while the worker serves others. */
import { FATTR, IN_HEADER, OPCODE, SETATTR_IN } from '../protocol/protocol.js'

/** A request has 1 MiB at most. */
const MOST = 32

export interface Waiting {
  readonly message: Buffer
  /** Where the reply goes. */
  readonly device: number
}

/** Requests that the main thread must do something for, while the worker serves others. */
export interface LongRequests {
  readonly isEmpty: boolean
  /** Takes a request over, the first `length` bytes of `message`. Returns false for one that need not wait. */
  begin(message: Buffer, length: number, device: number): boolean
  /** Returns a request to be answered now; with the result if the main thread has done all of it. */
  take(): (Waiting & { readonly errno?: number }) | undefined
}

export class PutAside {
  private readonly waiting: Waiting[] = []

  get isEmpty(): boolean {
    return this.waiting.length === 0
  }

  get isFull(): boolean {
    return this.waiting.length >= MOST
  }

  /** Keeps the first `length` bytes of `message`. */
  add(message: Buffer, length: number, device: number): void {
    this.waiting.push({ message: Buffer.from(message.subarray(0, length)), device })
  }

  /** Returns the request that has waited longest. */
  take(): Waiting | undefined {
    return this.waiting.shift()
  }
}

/** Reports whether a request changes what the disk shows, or its size. */
export function changesDisk(message: Buffer, length: number): boolean {
  const opcode = message.readUInt32LE(IN_HEADER.at.opcode)
  if (opcode === OPCODE.WRITE || opcode === OPCODE.FALLOCATE) return true
  if (opcode !== OPCODE.SETATTR || length < IN_HEADER.size + SETATTR_IN.size) return false
  return (message.readUInt32LE(IN_HEADER.size + SETATTR_IN.at.valid) & FATTR.SIZE) !== 0
}
