/**
 * Whether tables of an image name clusters beyond the end of its file. Reading them is an error, until
 * somebody appends to the file: then they would be a hole of it, and read as zeros; or, where they are not
 * counted, be handed out, and read as what was written elsewhere.
 *
 * The tables are gone over as far as MAX_TABLE_BYTES reach. Beyond that they are only where clusters
 * are counted behind the file's end, which is rare, and mostly leaks of a crash.
 */
import type { Store } from '../../io/store.js'
import { readSnapshotTable } from './check/snapshot-table.js'
import { packedAt } from './driver.js'
import { clusterBytes, INCOMPATIBLE, l2EntryBytes, type Qcow2Header } from './header.js'
import { COMPRESSED, blockOffset, hostOffset, readWords, wordBuffer } from './words.js'

/** Bytes of L2 tables: those of 1 TiB in clusters of 64 KiB, which take some tenths of a second. */
const MAX_TABLE_BYTES = 128 * 2 ** 20
/** Entries of the L1 tables of all snapshots. */
const MAX_SNAPSHOT_L1_ENTRIES = 2 ** 22
/** Blocks of counts that are looked through; beyond them the tables tell. */
const MAX_BLOCKS = 4096
/** Bytes of a table that are read at once. */
const CHUNK_BYTES = 2 ** 20

/**
 * Where data of the disk or of a snapshot lie beyond the last cluster of the file; undefined where none
 * do. Throws SystemError.
 */
export function lostCluster(store: Store, header: Qcow2Header): number | undefined {
  if ((header.incompatible & INCOMPATIBLE.externalData) !== 0n) return undefined
  const cluster = clusterBytes(header)
  const end = Math.ceil(store.sizeBytes / cluster) * cluster
  const isCounted = isCountedBehind(store, header, end / cluster)
  const { snapshots } = readSnapshotTable(store, header)
  const tables = [{ l1At: header.l1Offset, l1Entries: header.l1Entries }, ...snapshots]
  const seen = new Set<number>()
  let entries = 0
  for (const { l1At, l1Entries } of tables) {
    // The disk's own is bounded by its header.
    entries += l1At === header.l1Offset ? 0 : l1Entries
    if (entries > MAX_SNAPSHOT_L1_ENTRIES) break
    const lost = find(store, l1At, l1Entries * 8, (words, i) => {
      const l2 = hostOffset(words[i] as number, words[i + 1] as number)
      // Snapshots share tables with the disk, and with each other.
      if (l2 === 0 || seen.has(l2)) return undefined
      seen.add(l2)
      if (l2 >= end) return l2
      const isDue = isCounted || seen.size * cluster <= MAX_TABLE_BYTES
      return isDue ? lostIn(store, header, l2, end) : undefined
    })
    if (lost !== undefined) return lost
  }
  return undefined
}

/** Whether a cluster from `first` on has a count that is not 0. */
function isCountedBehind(store: Store, header: Qcow2Header, first: number): boolean {
  const cluster = clusterBytes(header)
  const perBlock = (cluster * 8) / 2 ** header.refcountOrder
  const from = Math.floor(first / perBlock)
  const tableBytes = header.refcountTableClusters * cluster - from * 8
  if (tableBytes <= 0) return false
  const counts = wordBuffer(cluster)
  let blocks = 0
  const at = header.refcountTableOffset + from * 8
  const found = find(store, at, tableBytes, (words, i, index) => {
    const block = blockOffset(words[i] as number, words[i + 1] as number)
    if (block === 0 || !Number.isSafeInteger(block)) return undefined
    if (++blocks > MAX_BLOCKS) return block
    const bytes = Buffer.alloc(cluster)
    if (block < store.sizeBytes) store.read(bytes, 0, cluster, block)
    // A count that shares its byte with one before the end makes the tables tell: that is no harm.
    const before = index === 0 ? Math.floor(((first % perBlock) * cluster) / perBlock) : 0
    return bytes.compare(counts, 0, cluster - before, before) === 0 ? undefined : block
  })
  return found !== undefined
}

/** Of what an L2 table names. */
function lostIn(store: Store, header: Qcow2Header, at: number, end: number): number | undefined {
  const step = l2EntryBytes(header) / 4
  const entry = Buffer.alloc(8)
  return find(store, at, clusterBytes(header), (words, i) => {
    if (i % step !== 0) return undefined
    const high = words[i] as number
    const low = words[i + 1] as number
    if (!(high & COMPRESSED)) {
      const host = hostOffset(high, low)
      return host >= end ? host : undefined
    }
    entry.writeUInt32BE(high)
    entry.writeUInt32BE(low, 4)
    const packed = packedAt(entry, 0, header.clusterBits)
    return packed.at >= end ? packed.at : undefined
  })
}

/**
 * Goes over a table of entries of 64 bits until `judge` returns something. It is given the words at hand,
 * the place of the entry's first, and the entry's number.
 */
function find(
  store: Store,
  at: number,
  bytes: number,
  judge: (words: Uint32Array, i: number, index: number) => number | undefined,
): number | undefined {
  const buffer = wordBuffer(Math.min(CHUNK_BYTES, bytes))
  for (let done = 0; done < bytes && at + done < store.sizeBytes; done += CHUNK_BYTES) {
    const length = Math.min(CHUNK_BYTES, bytes - done)
    const words = readWords(store, buffer, length, at + done)
    for (let i = 0; i < words.length; i += 2) {
      const found = judge(words, i, (done + i * 4) / 8)
      if (found !== undefined) return found
    }
  }
  return undefined
}
