/**
 * The thread that makes the kernel drop pages of files that show the same bytes (coherence.ts), and answers the requests for
 * which it does so. It reads none from the device. While it waits for the kernel, it holds nothing that a worker needs.
 */
import { type MessagePort, receiveMessageOnPort } from 'node:worker_threads'
import { write } from '../../io/libc.js'
import type { DiskRange } from './cached-pages.js'
import { changeOf, type CoherenceParts, type Job, noteTable } from './coherence.js'
import { INVAL_INODE_OUT, NOTIFY_INVAL_INODE, OUT_HEADER } from '../protocol/protocol.js'

export interface ServiceParts extends CoherenceParts {
  /** Takes the newest world: `placeOf` shall know all files that a worker knows. */
  adopt(): void
  /** Answers a request as a worker does. Returns the length of the reply. */
  answer(message: Buffer): number
  send(device: number, reply: Buffer, bytes: number): void
  /** Asks the main thread to make the listing show the partition table as it is. `listed` follows, once for each call. */
  askTables(): void
}

interface Waiting {
  readonly reply: Buffer
  readonly device: number
  readonly after: number | undefined
}

export class CoherenceService {
  /** Replies that wait for drops, by the number of the last one. */
  private readonly waiting: Waiting[] = []
  /** Replies that wait for the listing, in the order in which it was asked for. */
  private readonly unlisted: Waiting[] = []
  /** All drops up to this number are done, and beyond it those of `early`. */
  private dropped = 0
  private readonly early = new Set<number>()
  private readonly ports: MessagePort[] = []
  private device = -1
  private readonly message = Buffer.alloc(OUT_HEADER.size + INVAL_INODE_OUT.size)

  constructor(private readonly parts: ServiceParts) {
    OUT_HEADER.put(this.message, 0, {
      length: this.message.length,
      error: NOTIFY_INVAL_INODE,
      unique: Buffer.alloc(8),
    })
  }

  /** @param device a descriptor of the mount's /dev/fuse */
  begin(device: number): void {
    this.device = device
  }

  /** Takes what one more worker hands over. */
  add(port: MessagePort): void {
    this.ports.push(port)
    port.on('message', (job: Job) => this.handle(job))
  }

  /** Does all that was handed over before, and ends. */
  end(): void {
    for (const port of this.ports) {
      for (let sent = receiveMessageOnPort(port); sent; sent = receiveMessageOnPort(port)) {
        this.handle(sent.message)
      }
    }
    for (const port of this.ports) port.close()
  }

  private handle(job: Job): void {
    if ('message' in job) this.answer(Buffer.from(job.message.buffer), job.device)
    else if ('ticket' in job) {
      this.drop(job.range, job.except)
      this.settle(job.ticket)
    } else {
      const { reply, device } = job
      const bytes = Buffer.from(reply.buffer)
      if ('range' in job) {
        this.drop(job.range)
        this.parts.send(device, bytes, bytes.length)
      } else {
        this.waiting.push({ reply: bytes, device, after: job.after })
        this.sendWaiting()
      }
    }
  }

  /** Writes the pages that a map has changed before the request, and drops those that a map has read meanwhile after it. */
  private answer(message: Buffer, device: number): void {
    const { responder, gaps, placeOf, send, answer } = this.parts
    this.parts.adopt()
    const change = changeOf(message, message.length, placeOf)
    if (change) this.drop(change.range, change.place.file)
    const bytes = answer(message)
    if (change) {
      const changed = gaps.takeWith(change.range)
      noteTable(this.parts, changed)
      this.drop(changed)
    }
    if (bytes > 0) send(device, responder.reply, bytes)
  }

  /** Returns when the kernel holds nothing of the range in pages of any file but `except`. */
  private drop(range: DiskRange, except = 0): void {
    for (const { file, offset, length } of this.parts.pages.take(range, except)) {
      INVAL_INODE_OUT.put(this.message, OUT_HEADER.size, { ino: file, offset, length })
      // This fails if the kernel does not know the file any more. Then it has no pages of it.
      write(this.device, this.message, this.message.length)
    }
  }

  private settle(ticket: number): void {
    this.early.add(ticket)
    while (this.early.delete((this.dropped + 1) | 0)) this.dropped = (this.dropped + 1) | 0
    this.parts.pages.done()
    this.sendWaiting()
  }

  private sendWaiting(): void {
    const isReady = ({ after }: Waiting) => after === undefined || ((this.dropped - after) | 0) >= 0
    for (const each of this.waiting.filter(isReady)) {
      this.waiting.splice(this.waiting.indexOf(each), 1)
      if (this.parts.tables.areShown) this.sendKept(each)
      else {
        this.unlisted.push(each)
        this.parts.askTables()
      }
    }
  }

  /** The listing shows the table as it was when it was asked for, or as it has become since. */
  listed(): void {
    const first = this.unlisted.shift()
    if (first) this.sendKept(first)
  }

  private sendKept({ reply, device }: Waiting): void {
    this.parts.send(device, reply, reply.length)
  }
}
