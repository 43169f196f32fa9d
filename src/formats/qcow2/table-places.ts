/**
 * The places of tables according to the header. The tables that reading the disk needs must exist. Tables that only writers or
 * snapshots need may be lost: such a loss becomes a defect, and the disk is read without the table.
 */
import type { ErrorCode } from '../../errors.js'
import { MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, MAX_SNAPSHOTS } from '../limits.js'
import { FIELD_AT } from './header-layout.js'

/** A lost part without which the disk can still be read. */
export interface Defect {
  readonly part: 'L1 size' | 'reference counts' | 'snapshots' | 'bitmaps' | 'extensions'
  /** The description, as a clause. */
  readonly message: string
  /** Its place in the file. */
  readonly at: number
}

/** The header's statements about tables. */
export interface TablePlaces {
  readonly headerBytes: number
  readonly l1Entries: number
  readonly l1Offset: number
  readonly refcountTableOffset: number
  readonly refcountTableClusters: number
  readonly refcountOrder: number
  readonly snapshotCount: number
  readonly snapshotsOffset: number
}

export interface Bounds {
  readonly clusterBytes: number
  readonly fileBytes: number
  /** How many L1 entries the disk's size needs. */
  readonly l1Needed: number
}

type Fail = (code: ErrorCode, message: string) => never

const MAX_REFCOUNT_ORDER = 6
/** 16 bits, the only width in version 2, and QEMU's default. */
const USUAL_REFCOUNT_ORDER = 4

/**
 * Returns the usable places, with no clusters or entries for a lost table, and the defects of the others. Calls `fail` if the
 * disk cannot be read, and if another table overlaps the L1 table: nobody knows which of the two is right.
 */
export function usablePlaces<P extends TablePlaces>(
  said: P,
  bounds: Bounds,
  fail: Fail,
): { places: P; defects: Defect[] } {
  const defects: Defect[] = []
  const l1Entries = usableL1(said, bounds, fail, defects)
  const l1 = area('the L1 table', said.l1Offset, l1Entries * 8, bounds)
  const header = area('the header', 0, said.headerBytes, bounds)
  if (areOver(l1, header)) fail('CORRUPT', 'the L1 table overlaps the header')
  const refcounts = area(
    'the refcount table',
    said.refcountTableOffset,
    said.refcountTableClusters * bounds.clusterBytes,
    bounds,
  )
  const begin = snapshotArea(Math.min(1, said.snapshotCount), said, bounds)

  let lostSnapshots = snapshotProblem(said, bounds)
  let lostCounts = refcountProblem(said, bounds)
  if (lostSnapshots === undefined) {
    if (areOver(begin, l1)) fail('CORRUPT', 'the snapshot table overlaps the L1 table')
    if (areOver(begin, header)) lostSnapshots = 'overlaps the header'
  }
  if (lostCounts === undefined) {
    if (areOver(refcounts, l1)) fail('CORRUPT', 'the refcount table overlaps the L1 table')
    if (areOver(refcounts, header)) lostCounts = 'the refcount table overlaps the header'
  }
  if (lostSnapshots === undefined && lostCounts === undefined && areOver(begin, refcounts)) {
    lostSnapshots = 'overlaps the refcount table'
    lostCounts = 'the refcount table overlaps the snapshot table'
  }

  let places: P = { ...said, l1Entries }
  if (lostSnapshots !== undefined) {
    const { snapshotCount, snapshotsOffset } = said
    const message = `its snapshots (${snapshotCount}) are lost: the table at ${snapshotsOffset} ${lostSnapshots}`
    defects.push({ part: 'snapshots', message, at: FIELD_AT.snapshotCount })
    places = { ...places, snapshotCount: 0, snapshotsOffset: 0 }
  } else {
    const usable = lostCounts === undefined ? [header, l1, refcounts] : [header, l1]
    const message = wrongCount(said, usable, bounds)
    if (message !== undefined) {
      defects.push({ part: 'snapshots', message, at: FIELD_AT.snapshotCount })
      places = { ...places, snapshotCount: Math.min(said.snapshotCount, MAX_SNAPSHOTS) }
    }
  }
  if (lostCounts !== undefined) {
    const isOrder = said.refcountOrder > MAX_REFCOUNT_ORDER
    const at = isOrder ? FIELD_AT.refcountOrder : FIELD_AT.refcountTableOffset
    defects.push({ part: 'reference counts', message: lostCounts, at })
    const refcountOrder = isOrder ? USUAL_REFCOUNT_ORDER : said.refcountOrder
    places = { ...places, refcountTableOffset: 0, refcountTableClusters: 0, refcountOrder }
  }
  return { places, defects }
}

/** Returns how many entries of the L1 table can be used; at least as many as the disk needs. */
function usableL1(
  { l1Entries, l1Offset }: TablePlaces,
  { clusterBytes, fileBytes, l1Needed }: Bounds,
  fail: Fail,
  defects: Defect[],
): number {
  if (l1Entries < l1Needed) {
    fail('CORRUPT', `the L1 table has ${l1Entries} entries and the disk needs ${l1Needed}`)
  }
  if (l1Needed * 8 > MAX_L1_BYTES) {
    fail('CORRUPT', `the L1 table has ${l1Entries} entries, above ${MAX_L1_BYTES / 8}`)
  }
  if (l1Entries > 0 && l1Offset % clusterBytes !== 0) {
    fail('CORRUPT', `the L1 table at ${l1Offset} is not aligned to a cluster`)
  }
  const isInFile = (entries: number) => entries === 0 || l1Offset + entries * 8 <= fileBytes
  if (!isInFile(l1Needed)) {
    const what = `the L1 table at ${l1Offset} lies beyond the end of the file (${fileBytes} bytes)`
    fail('CORRUPT', what)
  }
  if (l1Entries * 8 <= MAX_L1_BYTES && isInFile(l1Entries)) return l1Entries
  const message = `the L1 table has ${l1Entries} entries, more than there can be; the disk needs ${l1Needed}`
  defects.push({ part: 'L1 size', message, at: FIELD_AT.l1Entries })
  return l1Needed
}

/** Returns why the whole snapshot table cannot be found. */
function snapshotProblem(
  { snapshotCount, snapshotsOffset: at }: TablePlaces,
  { clusterBytes, fileBytes }: Bounds,
): string | undefined {
  if (snapshotCount === 0) return undefined
  if (at % clusterBytes !== 0) return 'is not aligned to a cluster'
  return at >= fileBytes ? `lies beyond the end of the file (${fileBytes} bytes)` : undefined
}

/** Returns what is wrong with the number of snapshots. Then the table is read as far as it makes sense. */
function wrongCount(
  said: TablePlaces,
  others: readonly Area[],
  bounds: Bounds,
): string | undefined {
  const { snapshotCount: count } = said
  if (count > MAX_SNAPSHOTS) return `it claims ${count} snapshots, above ${MAX_SNAPSHOTS}`
  const reached = others.find(other => areOver(snapshotArea(count, said, bounds), other))
  return reached && `its ${count} snapshots reach into ${reached.name}`
}

/** Returns why the reference counts cannot be found. */
function refcountProblem(said: TablePlaces, bounds: Bounds): string | undefined {
  const { refcountTableOffset: at, refcountTableClusters: clusters, refcountOrder } = said
  if (refcountOrder > MAX_REFCOUNT_ORDER) {
    return `the refcount order is ${refcountOrder}, above ${MAX_REFCOUNT_ORDER}`
  }
  if (clusters === 0) return 'it has no refcount table'
  if (clusters * bounds.clusterBytes > MAX_REFCOUNT_TABLE_BYTES) {
    return `the refcount table has ${clusters} clusters`
  }
  if (at % bounds.clusterBytes !== 0) {
    return `the refcount table at ${at} is not aligned to a cluster`
  }
  // The table may end in a hole past the end of the file, but the file must contain its beginning.
  if (at + 8 <= bounds.fileBytes) return undefined
  return `the refcount table at ${at} lies beyond the end of the file (${bounds.fileBytes} bytes)`
}

interface Area {
  readonly name: string
  readonly at: number
  /** The end of its last cluster. */
  readonly end: number
}

const area = (name: string, at: number, bytes: number, { clusterBytes }: Bounds): Area => ({
  name,
  at,
  end: bytes === 0 ? at : Math.ceil((at + bytes) / clusterBytes) * clusterBytes,
})

/** Returns the least space of the table: an entry has 40 bytes, and its id, rounded up to 8. */
const snapshotArea = (count: number, { snapshotsOffset }: TablePlaces, bounds: Bounds): Area =>
  area('the snapshot table', snapshotsOffset, count * 40, bounds)

const areOver = (one: Area, other: Area): boolean =>
  one.end > one.at && other.end > other.at && one.at < other.end && other.at < one.end
