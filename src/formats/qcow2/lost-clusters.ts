/**
 * Walks all tables of an image once, before its first write, to answer two questions.
 *
 * Do they name clusters past the end of the file? Reading such a cluster is an error until the file becomes longer. Then the
 * cluster would be a hole and read as zeros; or, if it is not counted, it would be handed out and show what was written
 * elsewhere.
 *
 * Is the count of a cluster lower than the number of references to it? count-ledger.ts says why that matters.
 *
 * L1 tables are walked completely, L2 tables up to MAX_TABLE_BYTES. The rest is walked only if clusters past the end of the
 * file are counted, which is rare: mostly these are leaks of a crash.
 */
import type { Store } from '../../io/store.js'
import { readSnapshotTable } from './check/snapshot-table.js'
import type { CountLedger } from './count-ledger.js'
import { clusterBytes, INCOMPATIBLE, l2EntryBytes, type Qcow2Header } from './header.js'
import { packedLength, packedOffset } from './packed-entry.js'
import { findEntry } from './table-entries.js'
import {
  blockOffset,
  COMPRESSED,
  COPIED,
  hostOffset,
  isHostAligned,
  readWords,
  wordBuffer,
} from './words.js'

/** The most bytes of L2 tables: those of 1 TiB in clusters of 64 KiB, which take some tenths of a second. */
const MAX_TABLE_BYTES = 128 * 2 ** 20
/** The most L1 entries of all snapshots. */
const MAX_SNAPSHOT_L1_ENTRIES = 2 ** 22
/** The most refcount blocks that are searched; beyond them the tables decide. */
const MAX_BLOCKS = 4096

/** Compares the references of the walk with the reference counts. */
type Ledger = Pick<CountLedger, 'refer' | 'referRow'>

/**
 * Returns a place past the last cluster of the file where data of the disk or of a snapshot are said to be; undefined if
 * there is none. It also gives all references of L1 and L2 entries to `ledger`. Throws SystemError, and what `ledger` throws.
 */
export function lostCluster(store: Store, header: Qcow2Header, ledger: Ledger): number | undefined {
  const isExternal = (header.incompatible & INCOMPATIBLE.externalData) !== 0n
  const cluster = clusterBytes(header)
  const end = isExternal ? Number.POSITIVE_INFINITY : Math.ceil(store.sizeBytes / cluster) * cluster
  const tables = new Map<number, L2Use>()
  const lostTable = findL2Tables(store, header, end, tables)
  if (lostTable !== undefined) return lostTable
  for (const [at, use] of tables) {
    if (at % cluster === 0) ledger.refer(at / cluster, use.times, use.isOwned)
  }
  if (isExternal) return undefined
  const isCounted = isCountedBehind(store, header, end / cluster)
  let walked = 0
  for (const [at, use] of tables) {
    if (++walked * cluster > MAX_TABLE_BYTES && !isCounted) break
    const lost = walkL2(store, header, at, use, end, ledger)
    if (lost !== undefined) return lost
  }
  return undefined
}

/** The references to an L2 table. */
interface L2Use {
  /** How many entries of all L1 tables name it. */
  times: number
  /** Whether one of them is the active disk's. */
  isActive: boolean
  /** Whether that one has the COPIED flag. */
  isOwned: boolean
}

/** Collects the L2 tables that L1 tables name. Returns the first one that lies at `end` or past it. */
function findL2Tables(
  store: Store,
  header: Qcow2Header,
  end: number,
  tables: Map<number, L2Use>,
): number | undefined {
  const { snapshots } = readSnapshotTable(store, header)
  const active = { l1At: header.l1Offset, l1Entries: header.l1Entries }
  let entries = 0
  for (const table of [active, ...snapshots]) {
    const isActive = table === active
    // The check of the header has bounded the active one.
    entries += isActive ? 0 : table.l1Entries
    if (entries > MAX_SNAPSHOT_L1_ENTRIES) break
    const lost = findEntry(store, table.l1At, table.l1Entries * 8, (high, low) => {
      const at = hostOffset(high, low)
      if (at === 0) return undefined
      const isOwned = isActive && (high & COPIED) !== 0
      // Snapshots share tables with the disk, and with each other.
      const known = tables.get(at)
      if (!known) tables.set(at, { times: 1, isActive, isOwned })
      else {
        known.times++
        known.isOwned ||= isOwned
      }
      return at >= end ? at : undefined
    })
    if (lost !== undefined) return lost
  }
  return undefined
}

/** Reports whether a cluster from `first` on has a count other than 0. */
function isCountedBehind(store: Store, header: Qcow2Header, first: number): boolean {
  const cluster = clusterBytes(header)
  const perBlock = (cluster * 8) / 2 ** header.refcountOrder
  const from = Math.floor(first / perBlock)
  const tableBytes = header.refcountTableClusters * cluster - from * 8
  if (tableBytes <= 0) return false
  const counts = wordBuffer(cluster)
  let blocks = 0
  const at = header.refcountTableOffset + from * 8
  const found = findEntry(store, at, tableBytes, (high, low, index) => {
    const block = blockOffset(high, low)
    if (block === 0 || !Number.isSafeInteger(block)) return undefined
    if (++blocks > MAX_BLOCKS) return block
    const bytes = Buffer.alloc(cluster)
    if (block < store.sizeBytes) store.read(bytes, 0, cluster, block)
    // A count that shares its byte with one before `first` may give a wrong yes. Then the tables are walked, which is harmless.
    const before = index === 0 ? Math.floor(((first % perBlock) * cluster) / perBlock) : 0
    return bytes.compare(counts, 0, cluster - before, before) === 0 ? undefined : block
  })
  return found !== undefined
}

/** Gives the references of an L2 table to `ledger`. Returns the first cluster that lies at `end` or past it. */
function walkL2(
  store: Store,
  header: Qcow2Header,
  at: number,
  { times, isActive }: L2Use,
  end: number,
  ledger: Ledger,
): number | undefined {
  const cluster = clusterBytes(header)
  const step = l2EntryBytes(header) / 4
  const words = readWords(store, wordBuffer(cluster), cluster, at)
  // Clusters in a row with the same flag are referred to together.
  let first = 0
  let next = 0
  let isOwned = false
  const referRow = () => {
    if (next > first) ledger.referRow(first / cluster, (next - first) / cluster, times, isOwned)
    first = 0
    next = 0
  }
  for (let i = 0; i < words.length; i += step) {
    const high = words[i] as number
    const low = words[i + 1] as number
    if (high === 0 && low === 0) continue
    if ((high & COMPRESSED) === 0) {
      const host = hostOffset(high, low)
      if (host >= end) {
        referRow()
        return host
      }
      // Reading and writing refuse a cluster that is not aligned.
      if (host === 0 || !isHostAligned(low, cluster)) continue
      const owns = isActive && (high & COPIED) !== 0
      if (host !== next || owns !== isOwned) {
        referRow()
        first = host
        isOwned = owns
      }
      next = host + cluster
      continue
    }
    referRow()
    const from = packedOffset(high, low, header.clusterBits)
    if (from >= end) return from
    const last = Math.floor((from + packedLength(high, low, header.clusterBits) - 1) / cluster)
    for (let c = Math.floor(from / cluster); c <= last; c++) {
      if (c * cluster < end) ledger.refer(c, times, false)
    }
  }
  referRow()
  return undefined
}
