/**
 * The least that writes to a qcow2 image in the right order, and on demand in a wrong one: it shows that
 * the harness passes sound writers and catches faulty ones.
 *
 * Version 3, counts of 16 bits in one block, no snapshots, nothing compressed.
 */
import { ImageError, SystemError } from '../../src/errors.js'
import type { WritableStore } from '../../src/io/store.js'
import type { Opener, TestedDisk } from '../support/writable.js'

export type Flaw =
  /** A table entry is written before the bytes that it points at are synced. */
  | 'links early'
  /** A cluster is free before the entry that pointed at it has left the disk. */
  | 'frees early'
  /** A count is written after the entry that it is for. */
  | 'counts late'
  /** flush() returns before the entries are synced. */
  | 'forgets to sync'
  /** A write fills only its own part of a new cluster: the rest holds what its last owner left there. */
  | 'fills in part'
  /** After a failed sync the writer trusts the next one. */
  | 'trusts a second sync'

const COPIED = 0x80000000
const ENOSPC = 28

export const toyWriter =
  (flaw?: Flaw): Opener =>
  ({ store }) => {
    const disk = new ToyDisk(store, flaw)
    return { disk, read: (offset, length) => disk.read(offset, length) }
  }

class ToyDisk implements TestedDisk {
  readonly sizeBytes: number
  failure = ''
  private readonly cluster: number
  private readonly counts: Buffer
  private readonly countsAt: number
  private readonly l1: number[]
  /** Guest cluster → host offset or 0, as the disk is now. */
  private readonly map = new Map<number, number>()
  /** Entries that are not in the file yet: where, and the offset they are to have; a zero: none. */
  private readonly links = new Map<number, number>()
  private freed: number[] = []

  constructor(
    private readonly store: WritableStore,
    private readonly flaw: Flaw | undefined,
  ) {
    const head = this.take(0, 104)
    this.cluster = 2 ** head.readUInt32BE(20)
    this.sizeBytes = Number(head.readBigUInt64BE(24))
    this.countsAt = Number(this.take(Number(head.readBigUInt64BE(48)), 8).readBigUInt64BE(0))
    this.counts = this.take(this.countsAt, this.cluster)
    const l1At = Number(head.readBigUInt64BE(40))
    this.l1 = Array.from({ length: head.readUInt32BE(36) }, (_, i) => {
      const at = this.host(this.take(l1At + i * 8, 8))
      return at > 0 ? at : this.newTable(l1At + i * 8)
    })
    for (let guest = 0; guest * this.cluster < this.sizeBytes; guest++) {
      this.map.set(guest, this.host(this.take(this.entryAt(guest), 8)))
    }
  }

  grow(): void {}

  read(offset: number, length: number): Buffer {
    const target = Buffer.alloc(length)
    this.pieces(offset, length, (guest, within, size, done) => {
      const host = this.map.get(guest)
      if (host) this.store.read(target, done, size, host + within)
    })
    return target
  }

  write(source: Buffer, start: number, length: number, offset: number): void {
    this.requireSound()
    this.pieces(offset, length, (guest, within, size, done) => {
      const host = this.map.get(guest)
      if (host) {
        this.store.write(source, start + done, size, host + within)
        return
      }
      const fresh = this.allocate()
      const filled = Buffer.alloc(this.cluster)
      source.copy(filled, within, start + done, start + done + size)
      if (this.flaw === 'fills in part') {
        this.store.write(filled, within, size, fresh + within)
      } else this.store.write(filled, 0, this.cluster, fresh)
      this.map.set(guest, fresh)
      this.link(this.entryAt(guest), fresh)
    })
  }

  zero(offset: number, length: number): void {
    this.requireSound()
    this.pieces(offset, length, (guest, within, size) => {
      const host = this.map.get(guest)
      if (!host) return
      if (size < this.cluster) {
        this.store.write(Buffer.alloc(size), 0, size, host + within)
        return
      }
      this.map.set(guest, 0)
      this.link(this.entryAt(guest), 0)
      if (this.flaw === 'frees early') this.count(host, 0)
      else this.freed.push(host)
    })
  }

  flush(): void {
    this.requireSound()
    this.sync()
    for (const [at, host] of this.links) this.writeEntry(at, host)
    this.links.clear()
    if (this.flaw === 'forgets to sync') return
    this.sync()
    for (const host of this.freed) this.count(host, 0)
    this.freed = []
  }

  close(): readonly string[] {
    this.flush()
    this.sync()
    return []
  }

  private requireSound(): void {
    if (this.failure) throw new ImageError('READ_ONLY', this.failure)
  }

  private sync(): void {
    try {
      this.store.sync()
    } catch (error) {
      if (this.flaw !== 'trusts a second sync') this.failure = 'a sync failed'
      throw error
    }
  }

  private link(at: number, host: number): void {
    if (this.flaw === 'links early' && host > 0) this.writeEntry(at, host)
    else this.links.set(at, host)
  }

  private writeEntry(at: number, host: number): void {
    const entry = Buffer.alloc(8)
    entry.writeBigUInt64BE(BigInt(host))
    if (host > 0) entry.writeUInt32BE((COPIED | Math.floor(host / 2 ** 32)) >>> 0, 0)
    this.store.write(entry, 0, 8, at)
    if (this.flaw === 'counts late' && host > 0) this.count(host, 1)
  }

  private allocate(): number {
    for (let index = 1; index < this.cluster / 2; index++) {
      const host = index * this.cluster
      if (this.counts.readUInt16BE(index * 2) !== 0) continue
      if (this.flaw === 'counts late') this.counts.writeUInt16BE(1, index * 2)
      else this.count(host, 1)
      return host
    }
    throw new SystemError('write', ENOSPC, this.store.path)
  }

  private newTable(entryAt: number): number {
    const at = this.allocate()
    this.store.write(Buffer.alloc(this.cluster), 0, this.cluster, at)
    this.store.sync()
    this.writeEntry(entryAt, at)
    return at
  }

  private count(host: number, value: number): void {
    const at = (host / this.cluster) * 2
    this.counts.writeUInt16BE(value, at)
    this.store.write(this.counts, at, 2, this.countsAt + at)
  }

  private entryAt(guest: number): number {
    const entries = this.cluster / 8
    return (this.l1[Math.floor(guest / entries)] as number) + (guest % entries) * 8
  }

  private host = (entry: Buffer): number => Number(entry.readBigUInt64BE(0) & 0x00fffffffffffe00n)

  private take(at: number, length: number): Buffer {
    const bytes = Buffer.alloc(length)
    this.store.read(bytes, 0, length, at)
    return bytes
  }

  private pieces(
    offset: number,
    length: number,
    visit: (guest: number, within: number, size: number, done: number) => void,
  ): void {
    for (let done = 0; done < length; ) {
      const guest = Math.floor((offset + done) / this.cluster)
      const within = (offset + done) % this.cluster
      const size = Math.min(length - done, this.cluster - within)
      visit(guest, within, size, done)
      done += size
    }
  }
}
