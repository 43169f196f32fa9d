/** The snapshot table (QEMU docs/interop/qcow2.rst, "Snapshots"). */
import { layout, rounded64be, u16be, u32be } from '../../binary.js'
import { ImageError, printable } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { isTooLarge } from '../disk-size.js'
import type { InternalSnapshot } from '../format.js'
import { MAX_L1_BYTES, MAX_SNAPSHOT_EXTRA_BYTES, MAX_SNAPSHOT_TABLE_BYTES } from '../limits.js'
import { clusterBytes, type Qcow2Header } from './header.js'

const ENTRY = layout({
  l1Offset: rounded64be,
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

/** `sizeBytes` is the header's where the entry is too old to contain it. */
export interface Qcow2Snapshot extends InternalSnapshot {
  readonly l1Offset: number
  readonly l1Entries: number
}

export interface FoundSnapshots {
  /** The snapshots that have a possible size and place. Reading one whose L1 table is lost is an error. */
  readonly snapshots: Qcow2Snapshot[]
  /** Descriptions of the damage, one clause each; only the first few if there are many. */
  readonly problems: string[]
}

/** The most snapshots whose damage is described one by one. */
const MAX_PROBLEMS = 8

/**
 * Reads the table in bounded steps. Leaves out a snapshot whose size or place is impossible, and all snapshots after an entry
 * that does not say where the next one begins.
 */
export function readSnapshots(store: Store, header: Qcow2Header): FoundSnapshots {
  const snapshots: Qcow2Snapshot[] = []
  const problems: string[] = []
  const reader = new TableReader(store, header.snapshotsOffset)
  const { snapshotCount: count } = header
  const isSuspect = header.defects.some(({ part }) => part === 'snapshots')
  for (let i = 0; i < count; i++) {
    reader.align()
    let snapshot: Qcow2Snapshot
    try {
      snapshot = readEntry(reader, header)
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      problems.push(`${lostFrom(i, count)}: ${error.message}`)
      break
    }
    const problem = problemOf(snapshot, header, store.sizeBytes)
    if (problem !== undefined && isSuspect) {
      // If the count is wrong, what follows the last entry is not an entry.
      problems.push(`${lostFrom(i, count)}: its number ${i + 1} ${problem}`)
      break
    }
    const isShown = Number.isSafeInteger(snapshot.l1Offset) && !isTooLarge(snapshot.sizeBytes)
    if (isShown) snapshots.push(snapshot)
    if (problem === undefined || problems.length > MAX_PROBLEMS) continue
    if (problems.length === MAX_PROBLEMS) problems.push('more of its snapshots are damaged')
    else {
      const name = printable(snapshot.name.toString('utf8'))
      const what = `its snapshot ${i + 1} of ${count}, "${name}",`
      problems.push(`${what} ${isShown ? 'cannot be read' : 'is not shown'}: it ${problem}`)
    }
  }
  return { snapshots, problems }
}

const lostFrom = (index: number, count: number): string =>
  index === 0
    ? `its snapshots (${count}) are not shown`
    : `its snapshots from ${index + 1} of ${count} on are not shown`

/** Returns why a snapshot cannot be read; undefined if it can. */
export function problemOf(
  snapshot: Pick<Qcow2Snapshot, 'l1Offset' | 'l1Entries' | 'sizeBytes'>,
  header: Qcow2Header,
  fileBytes: number,
): string | undefined {
  const { l1Offset, l1Entries, sizeBytes } = snapshot
  const table = `has its L1 table, of ${l1Entries} entries, at ${l1Offset}`
  const isEmpty = l1Entries === 0
  if (l1Offset % clusterBytes(header) !== 0) return `${table}, which is not aligned to a cluster`
  if (!isEmpty && (l1Offset === 0 || l1Offset >= fileBytes)) return `${table}, where none can be`
  if (l1Entries * 8 > MAX_L1_BYTES) return `${table}: more than ${MAX_L1_BYTES / 8}`
  return isTooLarge(sizeBytes) ? `has a disk of about ${sizeBytes} bytes` : undefined
}

function readEntry(reader: TableReader, header: Qcow2Header): Qcow2Snapshot {
  const bytes = reader.take(ENTRY.size)
  if (bytes.every(byte => byte === 0)) throw new ImageError('CORRUPT', 'an entry is empty')
  const entry = ENTRY.decode(bytes)
  if (entry.extraBytes > MAX_SNAPSHOT_EXTRA_BYTES) {
    throw new ImageError('CORRUPT', `its extra data have ${entry.extraBytes} bytes`)
  }
  const extra = reader.take(entry.extraBytes)
  const u64 = (at: number) => Number(extra.readBigUInt64BE(at))
  const vmStateBytes = extra.length >= 8 ? u64(0) : entry.vmStateBytes
  const sizeBytes = extra.length >= 16 ? u64(8) : header.sizeBytes
  const icount = extra.length >= 24 ? extra.readBigUInt64BE(16) : undefined
  const id = reader.take(entry.idBytes).toString('utf8')
  const name = Buffer.from(reader.take(entry.nameBytes))
  return {
    l1Offset: entry.l1Offset,
    l1Entries: entry.l1Entries,
    id,
    name,
    dateSeconds: entry.dateSeconds,
    dateNanoseconds: entry.dateNanoseconds,
    guestNanoseconds:
      (BigInt(entry.guestNanosecondsHigh) << 32n) | BigInt(entry.guestNanosecondsLow),
    vmStateBytes,
    sizeBytes,
    icount,
  }
}

const CHUNK_BYTES = 64 * 1024

/** Reads on from an offset, through a buffer: a thousand entries take a few reads. */
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

  /** Returns the next `length` bytes, at most 128 KiB, valid until the next call. */
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
