/** Makes redundant grain tables equal to the first ones, before the first write of a mount. */
import type { TablePool } from '../../../cache/table-pool.js'
import { ImageError, orEndWriting } from '../../../errors.js'
import type { Store, WritableStore } from '../../../io/store.js'
import { Directory } from '../check/directory.js'
import { wholeSectors } from '../grain-tables.js'
import { type GrainLayout, MAX_FILE_BYTES, tableBytesOf } from '../layout.js'
import { SECTOR_BYTES } from '../../../sector.js'
import { ENTRY_BYTES } from '../entries.js'
import { appending, requireReachable } from '../../appending.js'

/** The most tables that are repaired. A power cut leaves only a few that are out of date. */
const MAX_MENDED = 16_384

/** A redundant table at `at` that differs from the first one at `from`. Both are places in the file. */
export interface StaleTable {
  readonly at: number
  readonly from: number
}

/** An entry that only one of the two directories has. `from` is the first table, or 0 if there is none. */
interface Uneven {
  readonly index: number
  readonly from: number
}

export interface Mending {
  readonly stale: readonly StaleTable[]
  readonly uneven: readonly Uneven[]
  /** How many bytes it appends to the file. */
  readonly bytes: number
}

/** Collects tables that are out of date; it keeps only so many that it notices if there are too many. */
export class StaleTables {
  readonly tables: StaleTable[] = []

  add(table: StaleTable): void {
    if (this.tables.length <= MAX_MENDED) this.tables.push(table)
  }
}

/**
 * Plans the repairs of redundant tables. Writes nothing. Throws ImageError if there are too many.
 * @param store the file as it will be after the first tables have adopted what they lack
 */
export function planMending(
  store: Store,
  layout: GrainLayout,
  stale: readonly StaleTable[],
): Mending {
  if (stale.length > MAX_MENDED) throw beyondMending(store)
  const tableBytes = tableBytesOf(layout)
  const uneven = unevenEntries(store, layout, tableBytes)
  const added = uneven.filter(({ from }) => from !== 0).length
  return { stale, uneven, bytes: added * tableBytes }
}

/** Throws SystemError EFBIG if a file that ends at `end` is too long, since it may still grow. */
export const requireReach = (store: Store, end: number, spanBytes: number): void =>
  requireReachable(store, end, Math.min(spanBytes, MAX_FILE_BYTES))

function unevenEntries(store: Store, layout: GrainLayout, tableBytes: number): Uneven[] {
  const { directoryAt, redundantDirectoryAt, directoryEntries } = layout
  if (redundantDirectoryAt === undefined) return []
  const open = (at: number) => new Directory(store, '', at, directoryEntries, tableBytes)
  const [first, redundant] = [open(directoryAt), open(redundantDirectoryAt)]
  const uneven: Uneven[] = []
  for (let at = 0; at < directoryEntries; ) {
    const count = first.readEntries(at)
    redundant.readEntries(at)
    for (let i = 0; i < count; i++) {
      const sector = first.entries[i] as number
      if ((sector === 0) === (redundant.entries[i] === 0)) continue
      uneven.push({ index: at + i, from: sector * SECTOR_BYTES })
      if (uneven.length > MAX_MENDED) throw beyondMending(store)
    }
    at += count
  }
  return uneven
}

function beyondMending({ path }: Store): ImageError {
  const what = `more than ${MAX_MENDED} of its redundant grain tables are not what the first ones are`
  return new ImageError('CORRUPT', `${what}; see vimgfs check`, { path, endsWriting: true })
}

/** The file of an extent, and its start in the space of the pool. */
export interface MendedFile {
  readonly store: WritableStore
  readonly layout: GrainLayout
  readonly pool: TablePool
  readonly base: number
}

/** Carries out the plan. Returns how many tables it has repaired. Throws SystemError. */
export function mend({ stale, uneven }: Mending, file: MendedFile): number {
  const { store, layout, pool, base } = file
  for (const { at, from } of stale) copyTable(file, from, at)
  const { redundantDirectoryAt } = layout
  if (redundantDirectoryAt === undefined) return stale.length
  const places = addTables(uneven, file)
  if (uneven.length > 0) {
    pool.forget(base + redundantDirectoryAt, wholeSectors(layout.directoryEntries * ENTRY_BYTES))
  }
  const entry = Buffer.alloc(ENTRY_BYTES)
  uneven.forEach(({ index }, i) => {
    entry.writeUInt32LE((places[i] as number) / SECTOR_BYTES)
    store.write(entry, 0, ENTRY_BYTES, redundantDirectoryAt + index * ENTRY_BYTES)
  })
  return stale.length + uneven.length
}

/** Appends copies of the first tables and syncs them: a directory names only what is on the disk. */
function addTables(uneven: readonly Uneven[], file: MendedFile): number[] {
  const { store } = file
  if (uneven.length === 0) return []
  return appending(store, () => {
    const places = uneven.map(({ from }) => {
      if (from === 0) return 0
      const at = wholeSectors(store.sizeBytes)
      copyTable(file, from, at)
      return at
    })
    orEndWriting(() => store.sync())
    return places
  })
}

function copyTable({ store, layout, pool, base }: MendedFile, from: number, at: number): void {
  const bytes = Buffer.alloc(tableBytesOf(layout))
  store.read(bytes, 0, bytes.length, from)
  pool.forget(base + at, bytes.length)
  store.write(bytes, 0, bytes.length, at)
}
