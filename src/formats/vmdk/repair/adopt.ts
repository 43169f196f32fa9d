/** Takes over, before the first write of a mount, what only the redundant tables name. */
import type { TablePool } from '../../../cache/table-pool.js'
import { orEndWriting } from '../../../errors.js'
import type { Store, WritableStore } from '../../../io/store.js'
import { wholeSectors } from '../grain-tables.js'
import { type GrainLayout, tableBytesOf } from '../layout.js'
import { SECTOR_BYTES } from '../parts.js'
import { type Plan, planned, planTables } from './reconcile.js'

const ENTRY_BYTES = 4
/** The largest slice of a table in the pool. */
const SLICE_BYTES = 4096

export interface Adopter {
  readonly store: WritableStore
  readonly layout: GrainLayout
  readonly pool: TablePool
  /** Where the file begins in the space of the pool. */
  readonly base: number
  /** How long the file may become there. */
  readonly spanBytes: number
  /** Throws: the extent is not written, because of what is wrong at a place of the file. */
  refuse(at: number, message: () => string): void
  /** Throws where the tables, as they would be, are damaged. */
  inspect(store: Store): void
}

/**
 * Returns how many entries it has changed: none in an extent that was closed cleanly, since there what is
 * read would change. They are on the disk. Throws SystemError, and what `refuse` throws.
 */
export function adoptRedundant(adopter: Adopter): number {
  const { store, layout } = adopter
  const plan = planTables(store, layout, { needsSound: true })
  const changes = plan.patches.length + plan.copies.length
  const end = wholeSectors(store.sizeBytes) + plan.copies.length * tableBytesOf(layout)
  const isHeld = plan.kept.size > 0 || plan.isPartial || end > adopter.spanBytes
  if (isHeld || (changes > 0 && !layout.isUnclean)) {
    const at = layout.redundantDirectoryAt ?? 0
    adopter.refuse(at, () => 'the redundant grain tables name what the first ones do not')
  }
  adopter.inspect(planned(store, plan))
  if (changes > 0) carryOut(plan, adopter)
  return changes
}

function carryOut({ patches, copies }: Plan, { store, layout, pool, base }: Adopter): void {
  const table = Buffer.alloc(tableBytesOf(layout))
  const added = copies.map(({ entryAt, from }) => {
    const at = wholeSectors(store.sizeBytes)
    store.read(table, 0, table.length, from)
    pool.forget(base + at, table.length)
    store.write(table, 0, table.length, at)
    return { at: entryAt, value: at / SECTOR_BYTES }
  })
  if (added.length > 0) orEndWriting(() => store.sync())
  const word = Buffer.alloc(ENTRY_BYTES)
  for (const { at, value } of [...patches, ...added]) {
    word.writeUInt32LE(value)
    // Its slice begins at a sector, at most so far before it.
    const end = at - (at % SECTOR_BYTES) + SECTOR_BYTES
    const start = Math.max(0, end - SLICE_BYTES)
    pool.forget(base + start, end - start)
    store.write(word, 0, ENTRY_BYTES, at)
  }
  orEndWriting(() => store.sync())
}
