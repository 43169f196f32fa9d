/** The program's own writer of VMDK images with faults put in: shows that the harness catches them. */
import type { VmdkWriter } from '../../src/formats/vmdk/writer.js'
import type { WritableDriver } from '../../src/formats/writable.js'
import type { WritableStore } from '../../src/io/store.js'
import { WrappedStore } from '../support/stores.js'
import { openVmdkWith, type VmdkOpener } from './vmdk-disk.js'

export type VmdkFlaw =
  /** A flush syncs once, when all is written. */
  | 'links early'
  /** A flush returns before the entries are synced. */
  | 'forgets to sync'
  /** Nothing is written to the redundant tables. */
  | 'forgets the redundant tables'
  /** The redundant tables name other grains than the first ones. */
  | 'has two minds'
  /** A grain is what another one was just made. */
  | 'hands out a grain twice'
  /** Grains overlap those before by a sector. */
  | 'hands out too little'
  | 'keeps the CID'
  /** The new CID is written after what it is for. */
  | 'changes the CID late'
  /** The header says all the time that the extent is closed. */
  | 'does not say that it is open'
  | 'does not say that it is closed'
  /** The header's next free sector stays what it was. */
  | 'keeps the free sector'
  /** The end of the descriptor is overwritten. */
  | 'writes too much'

const SECTOR = 512

/** For images with their first extent in one file, and in front of it all tables, as they are built here. */
export const flawedVmdk =
  (flaw?: VmdkFlaw): VmdkOpener =>
  ({ stores, parent }) => {
    const flawed = stores.map(store => new FlawedStore(store, flaw))
    return openVmdkWith({ stores: flawed, parent }, writer => flawedDriver(writer, flawed, flaw))
  }

function flawedDriver(
  writer: VmdkWriter,
  stores: readonly FlawedStore[],
  flaw: VmdkFlaw | undefined,
): WritableDriver {
  let last = -1
  const change: Partial<WritableDriver> = {
    reserve(offset, length) {
      const reservation = writer.reserve(offset, length)
      const at =
        flaw === 'hands out a grain twice' && last >= 0
          ? last
          : flaw === 'hands out too little'
            ? reservation.at - SECTOR
            : reservation.at
      last = reservation.at
      return { ...reservation, at }
    },
    collect() {
      const flush = writer.collect()
      const run = () => {
        for (const store of stores) store.isFlushing = true
        flush.run()
        for (const store of stores) store.endFlush()
      }
      return { run, settle: () => flush.settle(), hasMore: flush.hasMore }
    },
  }
  return new Proxy(writer as WritableDriver, {
    get(target, name) {
      const value: unknown = Reflect.get(change, name) ?? Reflect.get(target, name)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

class FlawedStore extends WrappedStore {
  isFlushing = false
  /** Whether this flush has written entries. */
  private hasLinked = false
  private isSyncOwed = false
  /** The CID that is written late: where, and what. */
  private late: { bytes: Buffer; at: number } | undefined
  private readonly head = Buffer.alloc(2048)

  constructor(
    inner: WritableStore,
    private readonly flaw: VmdkFlaw | undefined,
  ) {
    super(inner)
    inner.read(this.head, 0, this.head.length, 0)
  }

  override write(source: Buffer, start: number, length: number, at: number): void {
    const bytes = Buffer.from(source.subarray(start, start + length))
    if (this.isHeader(at, length)) this.changeHeader(bytes, at)
    if (this.isDropped(bytes, at)) return
    if (this.isRedundant(at) && this.flaw === 'has two minds') this.confuse(bytes)
    super.write(bytes, 0, length, at)
    this.hasLinked ||= this.isFlushing && !this.isHeader(at, length)
    if (this.flaw === 'writes too much' && this.isDescriptor(at)) {
      super.write(Buffer.from('\n'), 0, 1, at + 40)
    }
  }

  override sync(): void {
    if (this.hasLinked && this.flaw === 'forgets to sync') return
    if (this.isFlushing && this.flaw === 'links early') {
      this.isSyncOwed = true
      return
    }
    super.sync()
  }

  endFlush(): void {
    this.isFlushing = false
    this.hasLinked = false
    if (this.late) super.write(this.late.bytes, 0, this.late.bytes.length, this.late.at)
    if (this.isSyncOwed || this.late) super.sync()
    this.isSyncOwed = false
    this.late = undefined
  }

  private get isHosted(): boolean {
    return this.head.toString('latin1', 0, 4) === 'KDMV'
  }

  /** The byte that says that the extent is open. */
  private get uncleanAt(): number {
    return this.isHosted ? 72 : 1648
  }

  private isHeader(at: number, length: number): boolean {
    return at === 0 && length >= SECTOR
  }

  private changeHeader(bytes: Buffer, at: number): void {
    if (this.flaw === 'does not say that it is open') bytes[this.uncleanAt - at] = 0
    if (this.flaw === 'keeps the free sector') this.head.copy(bytes, 28, 28, 32)
  }

  private isDropped(bytes: Buffer, at: number): boolean {
    if (this.flaw === 'forgets the redundant tables') return this.isRedundant(at)
    if (this.flaw === 'does not say that it is closed') return at === this.uncleanAt
    if (!this.isDescriptor(at)) return false
    if (this.flaw === 'changes the CID late') this.late = { bytes, at }
    return this.flaw === 'changes the CID late' || this.flaw === 'keeps the CID'
  }

  private isRedundant(at: number): boolean {
    return this.isHosted && at >= this.sectors(48) && at < this.sectors(56)
  }

  private isDescriptor(at: number): boolean {
    const start = this.sectors(28)
    return this.isHosted && at >= start && at < start + this.sectors(36)
  }

  /** A field of the header, in bytes. */
  private sectors(at: number): number {
    return Number(this.head.readBigUInt64LE(at)) * SECTOR
  }

  private confuse(entries: Buffer): void {
    let last = 0
    for (let at = 0; at < entries.length; at += 4) {
      const entry = entries.readUInt32LE(at)
      if (last > 1 && entry > 1) entries.writeUInt32LE(last, at)
      if (entry > 1) last = entry
    }
  }
}
