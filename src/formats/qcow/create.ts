/**
 * Makes qcow images as QEMU lays them out: the header, the L1 table, then each L2 table before the clusters that it maps (QEMU
 * block/qcow.c).
 */
import { UsageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import type {
  FormatCreator,
  ImageBuilder,
  MeasuredImage,
  Measurement,
  NewImage,
  Packing,
  Place,
} from '../creating.js'
import { unitsTouched } from '../units-touched.js'
import { MAX_BACKING_NAME_BYTES } from '../limits.js'
import {
  coverageBytes,
  ENTRY_BYTES,
  encodeQcowHeader,
  HEADER,
  MAX_L1_ENTRIES,
  tableBytes,
} from './header.js'
import { SECTOR_BYTES } from '../../sector.js'
import { packedEntry, writeWord } from './words.js'

export const qcowCreator: FormatCreator = {
  options: [],
  measure: measureQcow,
  begin: async image => new QcowBuilder(image),
}

/** Returns the sizes of an image without a backing file, in whole clusters. All its tables count. */
function measureQcow({ sizeBytes, data }: MeasuredImage): Measurement {
  const { clusterBits } = SHAPE.alone
  const cluster = 2 ** clusterBits
  const tables = Math.ceil(sizeBytes / coverageBytes(SHAPE.alone))
  const head = roundUp(HEADER.size + tables * ENTRY_BYTES + SECTOR_BYTES, cluster)
  const empty = head + tables * tableBytes(SHAPE.alone)
  return {
    required: empty + unitsTouched(data, cluster) * cluster,
    fullyAllocated: empty + roundUp(sizeBytes, cluster),
  }
}

/** QEMU's sizes. With a backing file clusters are sectors, so that no write has to copy from it. */
const SHAPE = {
  alone: { clusterBits: 12, l2Bits: 9 },
  onBacking: { clusterBits: 9, l2Bits: 12 },
}
/** How much of the L1 table is in memory. */
const L1_WINDOW_BYTES = 64 * 1024

const roundUp = (bytes: number, unit: number): number => Math.ceil(bytes / unit) * unit

class QcowBuilder implements ImageBuilder {
  readonly unitBytes: number
  readonly packing: Packing
  private readonly store: WritableStore
  private readonly shape: (typeof SHAPE)['alone']
  private readonly coverage: number
  private readonly l1At: number
  private readonly l1Window = Buffer.alloc(L1_WINDOW_BYTES)
  /** Where the window begins in the table. */
  private windowAt = 0
  private readonly table: Buffer
  /** The index of the table in `table`, and its place; -1 for none. */
  private current = -1
  private tableAt = 0
  /** Where the next bytes go. */
  private nextAt: number
  /** Where the last cluster ends, cut by the disk's end. */
  private endAt: number

  constructor(private readonly image: NewImage) {
    const { files, sizeBytes, backing } = image
    this.store = files.main
    this.shape = backing ? SHAPE.onBacking : SHAPE.alone
    this.unitBytes = 2 ** this.shape.clusterBits
    this.packing = { type: 'deflate', maxBytes: this.unitBytes - 1 }
    this.coverage = coverageBytes(this.shape)
    this.table = Buffer.alloc(tableBytes(this.shape))
    const entries = Math.ceil(sizeBytes / this.coverage)
    if (sizeBytes === 0) throw new UsageError('a qcow disk has one sector at least')
    if (entries > MAX_L1_ENTRIES)
      throw new UsageError(`qcow cannot hold a disk of ${sizeBytes} bytes`)
    const nameBytes = Buffer.byteLength(backing?.name ?? '')
    if (nameBytes > MAX_BACKING_NAME_BYTES) {
      throw new UsageError(`the backing file's name has more than ${MAX_BACKING_NAME_BYTES} bytes`)
    }
    this.l1At = roundUp(HEADER.size + nameBytes, ENTRY_BYTES)
    this.nextAt = this.l1At + roundUp(entries * ENTRY_BYTES, SECTOR_BYTES)
    this.endAt = this.nextAt
  }

  place(offset: number, length: number): readonly Place[] {
    const places: Place[] = []
    const end = offset + length
    for (let at = offset; at < end; ) {
      this.open(at)
      const stop = Math.min(end, (Math.floor(at / this.coverage) + 1) * this.coverage)
      const start = roundUp(this.nextAt, this.unitBytes)
      places.push({ store: this.store, at: start, length: stop - at })
      this.nextAt = start
      for (; at < stop; at += this.unitBytes) {
        writeWord(this.table, this.entryAt(at), this.nextAt)
        this.nextAt += this.unitBytes
      }
      // The file may end within the last cluster, where the disk does.
      this.endAt = this.nextAt - (at - stop)
    }
    return places
  }

  pack(offset: number, packed: Buffer): void {
    this.open(offset)
    const at = this.nextAt
    const { high, low } = packedEntry(at, packed.length, this.shape.clusterBits)
    const entry = this.entryAt(offset)
    this.table.writeUInt32BE(high, entry)
    this.table.writeUInt32BE(low, entry + 4)
    this.store.write(packed, 0, packed.length, at)
    this.nextAt += packed.length
    this.endAt = this.nextAt
  }

  /** No entry means zeros, so clusters are made over the backing file. What is never written there reads as zeros. */
  zero(offset: number, length: number): void {
    const end = Math.min(offset + length, this.image.backing?.sizeBytes ?? 0)
    if (end <= offset) return
    this.place(offset, Math.min(length, roundUp(end - offset, this.unitBytes)))
  }

  finish(): void {
    this.writeTable()
    this.writeWindow()
    if (this.store.sizeBytes < this.endAt) this.store.truncate(this.endAt)
    const { sizeBytes, backing } = this.image
    const name = Buffer.from(backing?.name ?? '')
    const header = encodeQcowHeader({
      ...this.shape,
      sizeBytes,
      cryptMethod: 0,
      l1Offset: this.l1At,
      backingNameOffset: name.length > 0 ? HEADER.size : 0,
      backingNameBytes: name.length,
    })
    this.store.write(Buffer.concat([header, name]), 0, header.length + name.length, 0)
  }

  /** Prepares the L2 table of the cluster at `offset`. */
  private open(offset: number): void {
    const index = Math.floor(offset / this.coverage)
    if (index === this.current) return
    this.writeTable()
    this.current = index
    this.tableAt = roundUp(this.nextAt, this.unitBytes)
    this.nextAt = this.tableAt + this.table.length
    this.endAt = this.nextAt
    const at = index * ENTRY_BYTES
    if (at >= this.windowAt + L1_WINDOW_BYTES) {
      this.writeWindow()
      this.windowAt = at - (at % L1_WINDOW_BYTES)
    }
    writeWord(this.l1Window, at - this.windowAt, this.tableAt)
  }

  private entryAt(offset: number): number {
    return ((offset % this.coverage) / this.unitBytes) * ENTRY_BYTES
  }

  private writeTable(): void {
    if (this.current < 0) return
    this.store.write(this.table, 0, this.table.length, this.tableAt)
    this.table.fill(0)
    this.current = -1
  }

  /** Writes the part of the L1 table that is in memory. */
  private writeWindow(): void {
    const entries = Math.ceil(this.image.sizeBytes / this.coverage)
    const bytes = Math.min(L1_WINDOW_BYTES, entries * ENTRY_BYTES - this.windowAt)
    this.store.write(this.l1Window, 0, bytes, this.l1At + this.windowAt)
    this.l1Window.fill(0)
  }
}
