/** Collects all metadata of an image before it is written; see metadata-map.ts. */
import { ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import type { BitmapMemory, ValidBitmap } from './bitmap-memory.js'
import { type BitmapTable, isCluster, readTable } from './bitmap-table.js'
import { MAX_BITMAP_DIRECTORY_BYTES } from '../limits.js'
import { readSnapshotTable } from './check/snapshot-table.js'
import type { CountLedger } from './count-ledger.js'
import { type MetadataMap, KIND, type Kind } from './metadata-map.js'
import { BITMAP_FLAG, readDirectory } from './bitmaps.js'
import { AUTOCLEAR, CRYPT, clusterBytes, type Qcow2Header } from './header.js'
import type { BitmapsExtension } from './header-extensions.js'
import { lossesOf } from './losses.js'
import { eachEntry } from './table-entries.js'
import { blockOffset, hostOffset } from './words.js'

/** The most L1 entries of all snapshots that are read: a few seconds' work. */
const MAX_SNAPSHOT_L1_ENTRIES = 2 ** 22

/**
 * Fills the map from the file as it is. Throws ImageError where parts of the image are lost, or two structures claim one cluster: then
 * writing one would destroy the other. Also throws where a structure ends beyond the file, or where the
 * count of one of its clusters is too low; the counts of L2 tables are compared by `lostCluster`.
 */
export function mapMetadata(
  metadataMap: MetadataMap,
  store: Store,
  header: Qcow2Header,
  bitmaps: BitmapMemory,
  ledger: CountLedger,
): void {
  const [loss] = lossesOf(store, header)
  if (loss !== undefined) throw damage(store, loss)
  const cluster = clusterBytes(header)
  const fileClusters = Math.ceil(store.sizeBytes / cluster)
  const add: Add = (what, at, bytes, kind) => {
    if (bytes === 0) return
    if (at % cluster !== 0 || !Number.isSafeInteger(at)) {
      throw damage(store, `${what} at ${at} is not aligned to a cluster`)
    }
    const first = at / cluster
    const end = first + Math.ceil(bytes / cluster)
    // Sizes come from the image. Compare them with the file before anything is done once for each cluster.
    if (end > fileClusters) throw damage(store, `${what} at ${at} ends beyond the end of the file`)
    const taken = metadataMap.add(first, end - first, kind)
    if (taken >= 0) {
      throw damage(store, `${what} at ${at} overlaps other metadata at ${taken * cluster}`)
    }
    if (kind !== KIND.l2) for (let c = first; c < end; c++) ledger.refer(c, 1, false)
  }
  const { l1Offset, l1Entries, refcountTableOffset, refcountTableClusters } = header
  const l1Bytes = l1Entries * 8
  const refcountBytes = refcountTableClusters * cluster
  add('the header', 0, cluster, KIND.header)
  add('the L1 table', l1Offset, l1Bytes, KIND.l1)
  add('the refcount table', refcountTableOffset, refcountBytes, KIND.refcountTable)
  eachOffset(store, refcountTableOffset, refcountBytes, blockOffset, at =>
    add('a refcount block', at, cluster, KIND.refcountBlock),
  )
  eachOffset(store, l1Offset, l1Bytes, hostOffset, at => add('an L2 table', at, cluster, KIND.l2))
  mapSnapshots(metadataMap, store, header, add)
  const { encryption, cryptMethod } = header
  if (encryption && cryptMethod === CRYPT.luks)
    add('the LUKS header', encryption.offset, encryption.length, KIND.encryption)
  const directory = header.autoclear & AUTOCLEAR.bitmaps ? header.bitmaps : undefined
  // Writing makes the bitmaps of an impossible directory void.
  if (!directory || !isPossible(directory, store.sizeBytes)) return
  add('the bitmap directory', directory.directoryOffset, directory.directoryBytes, KIND.bitmaps)
  for (const bitmap of bitmaps.bitmaps) mapBitmap(metadataMap, store, cluster, bitmap, add, ledger)
  for (const bitmap of bitmaps.areLost ? [] : bitmapsInUse(store, header, bitmaps)) {
    mapBitmap(metadataMap, store, cluster, bitmap, add, ledger)
  }
}

const isPossible = (directory: BitmapsExtension, fileBytes: number): boolean =>
  directory.directoryBytes <= MAX_BITMAP_DIRECTORY_BYTES &&
  directory.directoryOffset + directory.directoryBytes <= fileBytes

type Add = (what: string, at: number, bytes: number, kind: Kind) => void

function mapSnapshots(metadataMap: MetadataMap, store: Store, header: Qcow2Header, add: Add): void {
  const cluster = clusterBytes(header)
  const { snapshots, bytes, obstacle } = readSnapshotTable(store, header)
  if (obstacle !== undefined) throw damage(store, obstacle)
  add('the snapshot table', header.snapshotsOffset, bytes, KIND.snapshotTable)
  let entries = 0
  for (const { l1At, l1Entries } of snapshots) {
    add("a snapshot's L1 table", l1At, l1Entries * 8, KIND.snapshotL1)
    entries += l1Entries
    if (entries > MAX_SNAPSHOT_L1_ENTRIES) continue
    eachOffset(store, l1At, l1Entries * 8, hostOffset, at => {
      // Tables that the disk shares count as its own.
      if (at % cluster === 0 && metadataMap.kindOf(at / cluster) === 0) {
        metadataMap.add(at / cluster, 1, KIND.snapshotL2)
      }
    })
  }
}

type BitmapPlace = Pick<ValidBitmap, 'problem' | 'name' | 'tableAt' | 'tableEntries'>

/** Returns the bitmaps that another program did not close. This mount does not load them, but they own clusters. */
const bitmapsInUse = (
  store: Store,
  header: Qcow2Header,
  { bitmaps }: BitmapMemory,
): BitmapPlace[] =>
  readDirectory(store, header)
    .filter(({ flags, at }) => {
      const isLoaded = bitmaps.some(({ entryAt }) => entryAt === at)
      return (flags & BITMAP_FLAG.inUse) !== 0 && !isLoaded
    })
    .map(({ name, tableOffset, tableEntries }) => ({
      problem: 'it is in use',
      name: name.toString('utf8'),
      tableAt: Number(tableOffset),
      tableEntries,
    }))

/** Adds a bitmap's clusters. A bitmap that is not kept is protected, too, as far as its table can be read. */
function mapBitmap(
  metadataMap: MetadataMap,
  store: Store,
  cluster: number,
  { problem, name, tableAt, tableEntries }: BitmapPlace,
  add: Add,
  ledger: CountLedger,
): void {
  const tolerant: Add = (_what, at, bytes, kind) => {
    if (at % cluster !== 0) return
    const clusters = Math.ceil(bytes / cluster)
    metadataMap.add(at / cluster, clusters, kind)
    for (let i = 0; i < clusters; i++) ledger.refer(at / cluster + i, 1, false)
  }
  const put = problem === '' ? add : tolerant
  let table: BitmapTable
  try {
    table = readTable(store, tableAt, tableEntries, cluster)
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    return
  }
  put(`the table of bitmap "${name}"`, tableAt, tableEntries * 8, KIND.bitmaps)
  for (const at of table) if (isCluster(at)) put(`bitmap "${name}"`, at, cluster, KIND.bitmaps)
}

/** Calls `visit` for each offset in a table of entries of 64 bits that is not 0. */
function eachOffset(
  store: Store,
  at: number,
  bytes: number,
  offsetOf: (high: number, low: number) => number,
  visit: (offset: number) => void,
): void {
  eachEntry(store, at, bytes, (high, low) => {
    const offset = offsetOf(high, low)
    if (offset !== 0) visit(offset)
  })
}

function damage(store: Store, message: string): ImageError {
  return new ImageError('CORRUPT', message, {
    path: store.path,
    endsWriting: true,
    hint: 'look at it with vimgfs check; it can be mounted with -o ro',
  })
}
