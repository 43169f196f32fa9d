/**
 * Keeps the pages of files that show the same bytes alike: those of a disk and of its partitions. This is the part of a worker;
 * coherence-service.ts is the thread that makes the kernel drop pages.
 *
 *  (1) Programs read and write such files past the page cache (FOPEN.DIRECT_IO), so only maps have pages.
 *  (2) A write is answered when no map of any file holds the bytes that were there before.
 *  (3) No worker waits for pages. The kernel waits for the lock of a page that it drops, and a request holds that lock which a
 *      worker has to answer. So whatever has to wait goes to another thread, which answers it.
 *  (4) A page that is written back is answered at once, because the kernel holds it until then. The other files' pages go
 *      afterwards. Whoever syncs or closes a file waits for that.
 */
import { constants } from 'node:os'
import type { MessagePort } from 'node:worker_threads'
import { u64le } from '../../binary.js'
import { FALLOC_FL_KEEP_SIZE } from '../../io/libc.js'
import type { CachedPages, DiskRange } from './cached-pages.js'
import type { Responder } from '../protocol/opcodes.js'
import {
  FALLOCATE_IN,
  IN_HEADER,
  OPCODE,
  READ_IN,
  READ_LOCKOWNER,
  WRITE_CACHE,
  WRITE_IN,
} from '../protocol/protocol.js'
import type { TableWrites } from './table-writes.js'
import type { FilePlace } from '../writing/truncations.js'

const { ENFILE } = constants.errno
const { READ, WRITE, SETATTR, FSYNC, FLUSH, FALLOCATE } = OPCODE

/** A request that a worker hands over. Messages and replies are copies. */
export type Job =
  /** Answer this request, without pages before and afterwards. */
  | { readonly message: Uint8Array; readonly device: number }
  /** Send this reply when the pages of a range are gone. */
  | { readonly reply: Uint8Array; readonly device: number; readonly range: DiskRange }
  /** Send this reply when all drops up to one are done, and the listing shows the partition table as it is. */
  | { readonly reply: Uint8Array; readonly device: number; readonly after: number | undefined }
  /** Drop the pages of a range of all files but one. */
  | { readonly range: DiskRange; readonly except: number; readonly ticket: number }

/** What `Coherence.answer` returns for a request that another thread answers. */
export const HANDED_OVER = -1

/** The ranges that a request has changed beside what it says: gaps that it zeroed. */
export class Gaps {
  private from = Number.POSITIVE_INFINITY
  private to = 0

  readonly add = (offset: number, length: number): void => {
    this.from = Math.min(this.from, offset)
    this.to = Math.max(this.to, offset + length)
  }

  /** Returns `range` with all that was added since the last call. */
  takeWith(range: DiskRange): DiskRange {
    const { disk, from, to } = range
    if (this.to <= this.from) return range
    const isEmpty = to <= from
    const all = isEmpty
      ? { disk, from: this.from, to: this.to }
      : { disk, from: Math.min(from, this.from), to: Math.max(to, this.to) }
    this.from = Number.POSITIVE_INFINITY
    this.to = 0
    return all
  }
}

export interface CoherenceParts {
  readonly responder: Responder
  readonly pages: CachedPages
  readonly gaps: Gaps
  readonly tables: TableWrites
  /** Whether a range of the disk touches places where its partition table may be. */
  touchesTable(range: DiskRange): boolean
  /** Returns where the file of a node lies on its disk, if it can be written. */
  placeOf(nodeid: number): FilePlace | undefined
}

export class Coherence {
  constructor(private readonly parts: CoherenceParts & { readonly jobs: MessagePort }) {}

  /**
   * Answers a request as the responder does. Returns 0 if another thread will send the reply, HANDED_OVER if it will also answer
   * the request.
   */
  answer(message: Buffer, length: number, device: number): number {
    const { responder } = this.parts
    const opcode = message.readUInt32LE(IN_HEADER.at.opcode)
    if (opcode === READ) return this.read(message, length)
    if (opcode === FSYNC || opcode === FLUSH) return this.sync(message, length, device)
    const change = changeOf(message, length, this.parts.placeOf)
    if (!change) return responder.answer(message, length)
    const { place, range, isPage } = change
    if (isPage || opcode === SETATTR) {
      const bytes = responder.answer(message, length)
      const changed = this.parts.gaps.takeWith(range)
      noteTable(this.parts, changed)
      this.dropLater(changed, isPage ? place.file : 0)
      return bytes
    }
    if (this.parts.pages.has(range)) {
      this.post({ message: Uint8Array.from(message.subarray(0, length)), device })
      return HANDED_OVER
    }
    const bytes = responder.answer(message, length)
    const changed = this.parts.gaps.takeWith(range)
    noteTable(this.parts, changed)
    return this.parts.pages.has(changed) ? this.keepReply(bytes, { device, range: changed }) : bytes
  }

  private read(message: Buffer, length: number): number {
    const { responder } = this.parts
    const args = IN_HEADER.size
    if (length < args + READ_IN.size) return responder.answer(message, length)
    // The kernel names the program for which it reads past the page cache.
    const isPage = (message.readUInt32LE(args + READ_IN.at.readFlags) & READ_LOCKOWNER) === 0
    const place = isPage ? this.parts.placeOf(nodeidOf(message)) : undefined
    if (place) {
      const offset = u64le.get(message, args + READ_IN.at.offset)
      const size = message.readUInt32LE(args + READ_IN.at.size)
      if (!this.parts.pages.note(place, offset, size)) return responder.refuse(message, ENFILE)
    }
    return responder.answer(message, length)
  }

  /** Answers a request after which a program expects that all of its maps are written. */
  private sync(message: Buffer, length: number, device: number): number {
    const bytes = this.parts.responder.answer(message, length)
    const after = this.parts.pages.pending()
    const isCurrent = after === undefined && this.parts.tables.areShown
    return isCurrent ? bytes : this.keepReply(bytes, { device, after })
  }

  private dropLater(range: DiskRange, except: number): void {
    if (!this.parts.pages.has(range, except)) return
    this.post({ range, except, ticket: this.parts.pages.ask() })
  }

  private keepReply(
    bytes: number,
    rest: { device: number } & ({ range: DiskRange } | { after: number | undefined }),
  ): number {
    this.post({ reply: Uint8Array.from(this.parts.responder.reply.subarray(0, bytes)), ...rest })
    return 0
  }

  private post(job: Job): void {
    this.parts.jobs.postMessage(job)
  }
}

/** Notes a change of the disk that may have changed its partition table. */
export function noteTable({ tables, touchesTable }: CoherenceParts, changed: DiskRange): void {
  if (changed.from < changed.to && touchesTable(changed)) tables.note()
}

/** Returns the change that a request makes in a file with a place; undefined for any other request. */
export function changeOf(
  message: Buffer,
  length: number,
  placeOf: (nodeid: number) => FilePlace | undefined,
): { place: FilePlace; range: DiskRange; isPage: boolean } | undefined {
  const opcode = message.readUInt32LE(IN_HEADER.at.opcode)
  if (opcode !== WRITE && opcode !== FALLOCATE && opcode !== SETATTR) return undefined
  const place = placeOf(nodeidOf(message))
  if (!place) return undefined
  const args = IN_HEADER.size
  const rangeOf = (offset: number, size: number): DiskRange => {
    const { disk, start, end } = place
    return { disk, from: start + offset, to: Math.min(end, start + offset + size) }
  }
  if (opcode === WRITE && length >= args + WRITE_IN.size) {
    const { offset, size, writeFlags } = WRITE_IN.decode(message, args)
    return { place, range: rangeOf(offset, size), isPage: (writeFlags & WRITE_CACHE) !== 0 }
  }
  if (opcode === FALLOCATE && length >= args + FALLOCATE_IN.size) {
    const { offset, length: size, mode } = FALLOCATE_IN.decode(message, args)
    const isZeroing = (mode & ~FALLOC_FL_KEEP_SIZE) !== 0
    return { place, range: rangeOf(offset, isZeroing ? size : 0), isPage: false }
  }
  return { place, range: rangeOf(0, 0), isPage: false }
}

const nodeidOf = (message: Buffer): number => u64le.get(message, IN_HEADER.at.nodeid)
