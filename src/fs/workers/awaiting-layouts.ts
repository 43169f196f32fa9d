/** A worker's openings that wait until their file is laid out (layouts.ts), while the worker serves others. */
import { u64le } from '../../binary.js'
import { IN_HEADER, OPCODE } from '../protocol/protocol.js'
import type { LongRequests, Waiting } from './put-aside.js'

export class AwaitingLayouts implements LongRequests {
  private waiting: { readonly id: number; readonly request: Waiting }[] = []

  /**
   * @param awaitsLayout whether those who open the file with this number have to wait
   * @param tell asks the main thread to lay the file out
   */
  constructor(
    private readonly awaitsLayout: (id: number) => boolean,
    private readonly tell: (message: { readonly layout: number }) => void,
  ) {}

  get isEmpty(): boolean {
    return this.waiting.length === 0
  }

  begin(message: Buffer, length: number, device: number): boolean {
    if (message.readUInt32LE(IN_HEADER.at.opcode) !== OPCODE.OPEN) return false
    const id = u64le.get(message, IN_HEADER.at.nodeid)
    if (!this.awaitsLayout(id)) return false
    const request = { message: Buffer.from(message.subarray(0, length)), device }
    if (!this.waiting.some(each => each.id === id)) this.tell({ layout: id })
    this.waiting.push({ id, request })
    return true
  }

  take(): Waiting | undefined {
    const index = this.waiting.findIndex(({ id }) => !this.awaitsLayout(id))
    return index < 0 ? undefined : this.waiting.splice(index, 1)[0]?.request
  }
}
