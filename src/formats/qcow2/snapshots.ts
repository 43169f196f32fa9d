/** The snapshot table (QEMU docs/interop/qcow2.rst, "Snapshots"). */
import { exact, layout, u16be, u32be, u64be } from '../../binary.js'
import { ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { MAX_SNAPSHOT_EXTRA_BYTES, MAX_SNAPSHOT_TABLE_BYTES } from '../limits.js'
import type { Qcow2Header } from './header.js'

const ENTRY = layout({
  l1Offset: u64be,
  l1Entries: u32be,
  idBytes: u16be,
  nameBytes: u16be,
  dateSeconds: u32be,
  dateNanoseconds: u32be,
  guestNanosecondsHigh: u32be,
  guestNanosecondsLow: u32be,
  vmStateBytes: u32be,
  extraBytes: u32be,
})

export interface Qcow2Snapshot {
  readonly l1Offset: number
  readonly l1Entries: number
  /** Unique by the specification; a damaged table may repeat it. */
  readonly id: string
  /** The name's bytes: any but NUL by habit, of no certain encoding. */
  readonly name: Buffer
  /** Since 1970. */
  readonly dateSeconds: number
  readonly dateNanoseconds: number
  /** How long the guest had run. */
  readonly guestNanoseconds: bigint
  readonly vmStateBytes: number
  /** The disk's size then; the header's where the entry is too old to say. */
  readonly sizeBytes: number
  /** Instructions executed, for record and replay; undefined when the entry has none. */
  readonly icount: bigint | undefined
}

/** Reads the table in bounded steps. Throws ImageError for a table that is damaged or cut off. */
export function readSnapshots(store: Store, header: Qcow2Header): Qcow2Snapshot[] {
  const snapshots: Qcow2Snapshot[] = []
  const reader = new TableReader(store, header.snapshotsOffset)
  for (let i = 0; i < header.snapshotCount; i++) {
    reader.align()
    try {
      snapshots.push(readEntry(reader, header))
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      throw new ImageError(
        error.code,
        `snapshot ${i + 1} of ${header.snapshotCount}: ${error.message}`,
        {
          path: store.path,
          hint: 'restore the image from a copy, or try qemu-img check on a copy',
        },
      )
    }
  }
  return snapshots
}

function readEntry(reader: TableReader, header: Qcow2Header): Qcow2Snapshot {
  const entry = ENTRY.decode(reader.take(ENTRY.size))
  if (entry.extraBytes > MAX_SNAPSHOT_EXTRA_BYTES) {
    throw new ImageError('CORRUPT', `its extra data have ${entry.extraBytes} bytes`)
  }
  const extra = reader.take(entry.extraBytes)
  const id = reader.take(entry.idBytes).toString('utf8')
  const name = Buffer.from(reader.take(entry.nameBytes))
  const u64 = (at: number) => exact(Number(extra.readBigUInt64BE(at)))
  return {
    l1Offset: entry.l1Offset,
    l1Entries: entry.l1Entries,
    id,
    name,
    dateSeconds: entry.dateSeconds,
    dateNanoseconds: entry.dateNanoseconds,
    guestNanoseconds:
      (BigInt(entry.guestNanosecondsHigh) << 32n) | BigInt(entry.guestNanosecondsLow),
    vmStateBytes: extra.length >= 8 ? u64(0) : entry.vmStateBytes,
    sizeBytes: extra.length >= 16 ? u64(8) : header.sizeBytes,
    icount: extra.length >= 24 ? extra.readBigUInt64BE(16) : undefined,
  }
}

const CHUNK_BYTES = 64 * 1024

/** Reads on from an offset, through a buffer: a thousand entries are a few reads. */
class TableReader {
  private chunk = Buffer.alloc(0)
  private chunkAt = 0
  private position = 0

  constructor(
    private readonly store: Store,
    private readonly start: number,
  ) {}

  align(): void {
    this.position = Math.ceil(this.position / 8) * 8
  }

  /** The next `length` bytes, valid until the next call; at most 128 KiB. */
  take(length: number): Buffer {
    if (this.position + length > MAX_SNAPSHOT_TABLE_BYTES) {
      throw new ImageError('CORRUPT', `the table has more than ${MAX_SNAPSHOT_TABLE_BYTES} bytes`)
    }
    if (this.position < this.chunkAt || this.position + length > this.chunkAt + this.chunk.length) {
      const chunk = Buffer.alloc(Math.max(CHUNK_BYTES, length))
      const got = this.store.read(chunk, 0, chunk.length, this.start + this.position)
      if (got < length)
        throw new ImageError('CORRUPT', 'the table is cut off by the end of the file')
      this.chunk = chunk.subarray(0, got)
      this.chunkAt = this.position
    }
    const from = this.position - this.chunkAt
    this.position += length
    return this.chunk.subarray(from, from + length)
  }
}
