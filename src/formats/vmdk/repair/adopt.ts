/** Adopts grains that only the redundant tables name into the first tables, before the first write of a mount. */
import type { TablePool } from '../../../cache/table-pool.js'
import { orEndWriting } from '../../../errors.js'
import type { Store, WritableStore } from '../../../io/store.js'
import { wholeSectors } from '../grain-tables.js'
import { type GrainLayout, tableBytesOf } from '../layout.js'
import { type Plan, planned, planTables } from './reconcile.js'
import { SECTOR_BYTES } from '../../../sector.js'
import { ENTRY_BYTES } from '../entries.js'
import { SLICE_BYTES } from '../../../cache/table-pool.js'

/** The file of an extent, and its start in the space of the pool. */
export interface AdoptedFile {
  readonly store: WritableStore
  readonly layout: GrainLayout
  readonly pool: TablePool
  readonly base: number
}

export interface Adopter {
  readonly store: Store
  readonly layout: GrainLayout
  /** How long the file may become there. */
  readonly spanBytes: number
  /** Throws an error that refuses to write the extent because of a problem at a place of the file. */
  refuse(at: number, message: () => string): void
  /** Throws if the tables would be damaged afterwards. */
  inspect(store: Store): void
}

/**
 * Plans what to adopt: nothing in an extent that was closed cleanly, because there it would change what the disk reads as.
 * Writes nothing. Throws SystemError, and what `refuse` and `inspect` throw.
 */
export function planAdoption({ store, layout, spanBytes, refuse, inspect }: Adopter): Plan {
  const plan = planTables(store, layout, { needsSound: true })
  const end = wholeSectors(store.sizeBytes) + appendedBytes(plan, layout)
  const isHeld = plan.kept.size > 0 || plan.isPartial || end > spanBytes
  if (isHeld || (hasChanges(plan) && !layout.isUnclean)) {
    const at = layout.redundantDirectoryAt ?? 0
    refuse(at, () => 'the redundant grain tables name what the first ones do not')
  }
  inspect(planned(store, plan))
  return plan
}

const hasChanges = ({ patches, copies }: Plan): boolean => patches.length + copies.length > 0

/** Returns how many bytes the plan appends to the file. */
export const appendedBytes = ({ copies }: Plan, layout: GrainLayout): number =>
  copies.length * tableBytesOf(layout)

/** Carries out the plan. Its changes are on the disk when it returns. Throws SystemError. */
export function adopt(plan: Plan, { store, layout, pool, base }: AdoptedFile): void {
  if (!hasChanges(plan)) return
  const { patches, copies } = plan
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
    // The slice begins at a sector's start, at most this far before the entry.
    const end = at - (at % SECTOR_BYTES) + SECTOR_BYTES
    const start = Math.max(0, end - SLICE_BYTES)
    pool.forget(base + start, end - start)
    store.write(word, 0, ENTRY_BYTES, at)
  }
  orEndWriting(() => store.sync())
}
