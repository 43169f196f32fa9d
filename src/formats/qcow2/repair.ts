/**
 * Repairs a qcow2 image.
 *
 * No byte of the disk or of a snapshot reads differently afterwards. What nobody can know (which of two uses of a cluster is
 * right; where a table is that an entry names wrongly) is reported and stays as it is.
 *
 * These are the steps. Each is synced before the next, so that after a power cut the next repair finds the image no worse:
 *
 *  (1) The dirty bit is set: until the end, counts cannot be trusted.
 *  (2) The header's statements about lost parts are dropped, and impossible table entries are corrected. If something was
 *      lost, no count gets lower from then on: the lost part may own any cluster.
 *  (3) Counts are corrected (repair/fix-refcounts.ts), then the COPIED flags, which follow from the counts. Both are repeated as
 *      long as that changes something and a check still finds problems.
 *  (4) The dirty and the corrupt bit are cleared if a check finds no corruption.
 */
import { ImageError } from '../../errors.js'
import type { Store, WritableStore } from '../../io/store.js'
import type { CheckOptions, RepairResult } from '../check/report.js'
import { checkImage } from './check.js'
import { Qcow2Structure } from './check/structure.js'
import { L2Catalog } from './check/l1-walk.js'
import { Qcow2Report } from './check/report.js'
import { CellMemory } from './check/window.js'
import { INCOMPATIBLE } from './header.js'
import { writeFeatures } from './header-update.js'
import { fixCopiedFlags } from './repair/copied-flags.js'
import { type CountChanges, fixCounts } from './repair/fix-refcounts.js'
import { soundL1Entry, soundL2Entries } from './repair/entries.js'
import { findSharedTables } from './repair/shared-tables.js'
import { dropLosses } from './repair/losses.js'
import { repairSnapshotTable } from './repair/snapshot-table.js'
import { TableEditor } from './repair/table-editor.js'

/** A bound, so that it ends; the next repair handles the rest. */
const MAX_ROUNDS = 5

/**
 * Repairs the image: `leaks` gives back space, `all` also repairs what may cost data. Throws ImageError if the header is
 * damaged or the repair is impossible, SystemError if the file cannot be read or written.
 */
export function repairQcow2(
  store: WritableStore,
  what: 'leaks' | 'all',
  options: CheckOptions = {},
): RepairResult {
  const before = new Qcow2Report()
  const changes = new Qcow2Report()
  const memory = new CellMemory()
  const image = new Qcow2Structure(store)
  const isKnown = checkImage(image, before, options, memory)
  const isDamaged = before.corruptions > 0 || before.checkErrors > 0
  const isMarked = (image.header.incompatible & (INCOMPATIBLE.dirty | INCOMPATIBLE.corrupt)) !== 0n
  if (image.obstacle || (!isDamaged && before.leaks === 0)) {
    if (what === 'all' && !isDamaged && isMarked) clearMarks(store)
    return { before, after: before, changes: [], changesLeftOut: 0 }
  }
  let after = before
  try {
    if (what === 'all') after = repairAll(store, isKnown, options, changes, memory)
    else after = giveBackLeaks(store, isKnown, before, options, changes, memory)
  } catch (error) {
    // Each step so far was correct by itself, and the counts are no worse than before.
    if (error instanceof ImageError) writeMarks(store, image.header.incompatible)
    throw error
  }
  if (what === 'all' && after.corruptions === 0 && after.checkErrors === 0) clearMarks(store)
  else if (what === 'all') writeMarks(store, image.header.incompatible)
  return { before, after, changes: changes.findings, changesLeftOut: changes.findingsLeftOut }
}

/**
 * Makes the counts what the tables say, and touches nothing else: what an image needs whose dirty bit is
 * set, before it is written. Throws ImageError where tables are damaged, so that nobody knows what they
 * use, and then has changed nothing.
 */
export function rebuildRefcounts(store: WritableStore, options: CheckOptions = {}): CountChanges {
  const memory = new CellMemory()
  requireKnownCounts(store, options, memory)
  return fixCounts(store, { raise: 'all', lower: 'all' }, undefined, memory)
}

/** Throws ImageError where tables are damaged, so that nobody knows what the counts should be. */
export function requireKnownCounts(
  store: Store,
  options: CheckOptions = {},
  memory = new CellMemory(),
): void {
  const report = new Qcow2Report()
  if (checkImage(new Qcow2Structure(store), report, options, memory)) return
  const [worst] = report.findings.filter(({ kind }) => kind !== 'leak' && kind !== 'notice')
  throw new ImageError(
    'CORRUPT',
    `its reference counts cannot be made right: ${worst?.message ?? 'its tables are damaged'}`,
    { path: store.path, hint: 'run vimgfs check to see what is damaged' },
  )
}

/**
 * Repairs until nothing is left to do: what kept one table from being repaired may be what another one
 * lost, as an entry that lay over it; and a file that ended within a cluster ends with a whole one
 * afterwards, so that tables are in it that were not (Qcow2Structure.isInFile). Returns what a check finds
 * in the end.
 */
function repairAll(
  store: WritableStore,
  isKnownBefore: boolean,
  options: CheckOptions,
  changes: Qcow2Report,
  memory: CellMemory,
): Qcow2Report {
  let isKnown = isKnownBefore
  let hasDropped = false
  for (let round = 1; ; round++) {
    const made = new Qcow2Report()
    if (!isKnown) made.note('error', 0, hasDropped ? lostOnesAreKept : leaksAreKept)
    const hasDroppedNow = repairOnce(store, isKnown, made, memory)
    if (hasDroppedNow && !hasDropped) changes.note('error', 0, lostOnesAreKept)
    hasDropped ||= hasDroppedNow
    const after = new Qcow2Report()
    isKnown = checkImage(new Qcow2Structure(store), after, options, memory) && !hasDropped
    const isWhole = after.corruptions + after.leaks + after.checkErrors === 0
    const hasChanged = made.findingsLeftOut > 0 || made.findings.some(({ kind }) => kind === 'fix')
    const isLast = isWhole || !hasChanged || round === MAX_ROUNDS
    for (const { kind, at, message } of made.findings) {
      // Only the last round reports what could not be repaired.
      if (isLast || kind === 'fix') changes.note(kind, at, () => message)
    }
    changes.findingsLeftOut += made.findingsLeftOut
    if (isLast) return after
  }
}

/** Returns whether it dropped snapshots that are lost. */
function repairOnce(
  store: WritableStore,
  isKnown: boolean,
  changes: Qcow2Report,
  memory: CellMemory,
): boolean {
  let image = new Qcow2Structure(store)
  writeMarks(store, image.header.incompatible | INCOMPATIBLE.dirty)
  store.sync()
  dropLosses(image, store, changes)
  fixEntries(image, store, changes, memory)
  const hasDropped = repairSnapshotTable(image, store, changes, memory, isKnown)
  store.sync()
  const lower = isKnown && !hasDropped ? 'all' : 'none'
  fixCounts(store, { raise: 'all', lower }, changes, memory)
  image = new Qcow2Structure(store)
  fixCopiedFlags(image, store, changes, memory)
  store.sync()
  return hasDropped
}

const leaksAreKept = () => 'leaks are kept: damaged entries may have named them'
const lostOnesAreKept = () =>
  'leaks are kept: snapshots that are lost may own them, and may still be recovered; --repair leaks gives them back'

/**
 * Where there is more wrong than leaks, and than the flags that leaks make wrong, only clusters that
 * nothing uses are given back: a count of 1 asks for a COPIED flag, which is right only where all counts
 * are.
 */
function giveBackLeaks(
  store: WritableStore,
  isKnown: boolean,
  before: Qcow2Report,
  options: CheckOptions,
  changes: Qcow2Report,
  memory: CellMemory,
): Qcow2Report {
  if (!isKnown) {
    changes.note('error', 0, leaksAreKept)
    return before
  }
  const { corruptions, wrongFlags, checkErrors } = before
  const isDamaged = corruptions > wrongFlags || checkErrors > 0
  fixCounts(store, { raise: 'none', lower: isDamaged ? 'unused' : 'all' }, changes, memory)
  if (!isDamaged) fixCopiedFlags(new Qcow2Structure(store), store, changes, memory)
  store.sync()
  const after = new Qcow2Report()
  checkImage(new Qcow2Structure(store), after, options, memory)
  return after
}

function fixEntries(
  image: Qcow2Structure,
  store: WritableStore,
  changes: Qcow2Report,
  memory: CellMemory,
): void {
  const shared = findSharedTables(image, memory)
  const editor = new TableEditor(image, store, shared, changes)
  for (const table of image.l1Tables) editor.editL1(table, soundL1Entry)
  for (const isActive of [true, false]) {
    const tables = image.l1Tables.filter(table => table.isActive === isActive)
    const catalog = new L2Catalog(store, tables, image.fileBytes)
    editor.editL2(catalog, () => true, soundL2Entries(image))
  }
  store.sync()
}

function clearMarks(store: WritableStore): void {
  const { incompatible } = new Qcow2Structure(store).header
  writeMarks(store, incompatible & ~(INCOMPATIBLE.dirty | INCOMPATIBLE.corrupt))
}

/** Sets the incompatible features; version 2 has none. */
function writeMarks(store: WritableStore, incompatible: bigint): void {
  const { version, compatible, autoclear, incompatible: old } = new Qcow2Structure(store).header
  if (version < 3 || incompatible === old) return
  writeFeatures(store, { incompatible, compatible, autoclear })
  store.sync()
}
