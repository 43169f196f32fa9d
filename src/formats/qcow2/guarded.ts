/** Taking down all metadata of an image before it is written; see guard.ts. */
import { ImageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import type { BitmapMemory, ValidBitmap } from './bitmap-memory.js'
import { type BitmapTable, isCluster, readTable } from './bitmap-table.js'
import { readSnapshotTable } from './check/snapshot-table.js'
import { type Guard, KIND, type Kind } from './guard.js'
import { AUTOCLEAR, CRYPT, clusterBytes, type Qcow2Header } from './header.js'
import { blockOffset, hostOffset, readWords, wordBuffer } from './words.js'

/** Entries of the L1 tables of all snapshots that are looked into; a few seconds' worth. */
const MAX_SNAPSHOT_L1_ENTRIES = 2 ** 22
/** Bytes of a table that are read at once. */
const CHUNK_BYTES = 2 ** 20

/**
 * Fills `guard` from the file as it is. Throws ImageError where two structures claim one cluster: then
 * writing one would destroy the other.
 */
export function guardMetadata(
  guard: Guard,
  store: WritableStore,
  header: Qcow2Header,
  bitmaps: BitmapMemory,
): void {
  const cluster = clusterBytes(header)
  const add = (what: string, at: number, bytes: number, kind: Kind): void => {
    if (bytes === 0) return
    if (at % cluster !== 0 || !Number.isSafeInteger(at)) {
      throw damage(store, `${what} at ${at} is not aligned to a cluster`)
    }
    const taken = guard.add(at / cluster, Math.ceil(bytes / cluster), kind)
    if (taken < 0) return
    throw damage(store, `${what} at ${at} overlaps other metadata at ${taken * cluster}`)
  }
  const { l1Offset, l1Entries, refcountTableOffset, refcountTableClusters } = header
  const l1Bytes = l1Entries * 8
  const refcountBytes = refcountTableClusters * cluster
  add('the header', 0, cluster, KIND.header)
  add('the L1 table', l1Offset, l1Bytes, KIND.l1)
  add('the refcount table', refcountTableOffset, refcountBytes, KIND.refcountTable)
  forEachOffset(store, refcountTableOffset, refcountBytes, blockOffset, at =>
    add('a refcount block', at, cluster, KIND.refcountBlock),
  )
  forEachOffset(store, l1Offset, l1Bytes, hostOffset, at =>
    add('an L2 table', at, cluster, KIND.l2),
  )
  guardSnapshots(guard, store, header, add)
  const { encryption, cryptMethod } = header
  if (encryption && cryptMethod === CRYPT.luks)
    add('the LUKS header', encryption.offset, encryption.length, KIND.encryption)
  const directory = header.autoclear & AUTOCLEAR.bitmaps ? header.bitmaps : undefined
  if (!directory) return
  add('the bitmap directory', directory.directoryOffset, directory.directoryBytes, KIND.bitmaps)
  for (const bitmap of bitmaps.bitmaps) guardBitmap(guard, store, cluster, bitmap, add)
}

type Add = (what: string, at: number, bytes: number, kind: Kind) => void

function guardSnapshots(guard: Guard, store: WritableStore, header: Qcow2Header, add: Add): void {
  const cluster = clusterBytes(header)
  const { snapshots, bytes, obstacle } = readSnapshotTable(store, header)
  if (obstacle !== undefined) throw damage(store, obstacle)
  add('the snapshot table', header.snapshotsOffset, bytes, KIND.snapshotTable)
  let entries = 0
  for (const { l1At, l1Entries } of snapshots) {
    add("a snapshot's L1 table", l1At, l1Entries * 8, KIND.snapshotL1)
    entries += l1Entries
    if (entries > MAX_SNAPSHOT_L1_ENTRIES) continue
    forEachOffset(store, l1At, l1Entries * 8, hostOffset, at => {
      // Those that the disk shares are taken down as its own.
      if (at % cluster === 0 && guard.kindOf(at / cluster) === 0) {
        guard.add(at / cluster, 1, KIND.snapshotL2)
      }
    })
  }
}

/** A bitmap that is not kept stays what it is all the same, as far as its table can be read. */
function guardBitmap(
  guard: Guard,
  store: WritableStore,
  cluster: number,
  { problem, name, tableAt, tableEntries }: ValidBitmap,
  add: Add,
): void {
  const tolerant: Add = (_what, at, bytes, kind) => {
    if (at % cluster === 0) guard.add(at / cluster, Math.ceil(bytes / cluster), kind)
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
function forEachOffset(
  store: WritableStore,
  at: number,
  bytes: number,
  offsetOf: (high: number, low: number) => number,
  visit: (offset: number) => void,
): void {
  const buffer = wordBuffer(Math.min(CHUNK_BYTES, bytes))
  for (let done = 0; done < bytes; done += CHUNK_BYTES) {
    const words = readWords(store, buffer, Math.min(CHUNK_BYTES, bytes - done), at + done)
    for (let i = 0; i < words.length; i += 2) {
      const offset = offsetOf(words[i] as number, words[i + 1] as number)
      if (offset !== 0) visit(offset)
    }
  }
}

function damage(store: WritableStore, message: string): ImageError {
  return new ImageError('CORRUPT', message, {
    path: store.path,
    endsWriting: true,
    hint: 'look at it with vimgfs check; it can be mounted with -o ro',
  })
}
