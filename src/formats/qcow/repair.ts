/**
 * Repairs a qcow image. No byte of the disk reads differently afterwards. If something is damaged that cannot be corrected,
 * nothing changes: space that nothing names any more may be the lost data.
 *
 * The steps; each is on the disk before the next:
 *
 *  (1) An L1 entry that names a table which was never written is cleared.
 *  (2) Unused space is given back, unless a lost table may have named it (see losses.ts).
 */
import type { WritableStore } from '../../io/store.js'
import { type RepairResult, repairResult, CheckReport } from '../check/report.js'
import { checkTables, type QcowCheckOptions } from './check.js'
import { ENTRY_BYTES, readQcowHeader } from './header.js'
import { isLossPossible } from './losses.js'
import { inspectTables } from './inspection.js'
import { Reclaiming } from '../check/reclaim.js'

const DAMAGED =
  'nothing of it is changed: something is damaged that nobody can make right, and what nothing names may be what was lost'
const UNPROVEN =
  'space is kept: nothing names it, but a lost table reads as zeros, too, so it may be data; to be rid of it, copy the disk to a new image'
const KEPT = 'space is kept: repair it with "all" first'

/**
 * Repairs the image: `leaks` gives back space, `all` also repairs what may cost data. Throws what `checkQcow` throws, and
 * SystemError if the file cannot be written.
 */
export function repairQcow(
  store: WritableStore,
  what: 'leaks' | 'all',
  options: QcowCheckOptions = {},
): RepairResult {
  const before = new CheckReport()
  const changes = new CheckReport()
  const { unwrittenAt, others } = checkTables(store, before, options)
  const refuse = (why: string) => changes.note('error', 0, () => why)
  if (others > 0) refuse(DAMAGED)
  else if (unwrittenAt !== undefined && what === 'leaks') {
    if (before.leaks > 0) refuse(KEPT)
  } else {
    if (unwrittenAt !== undefined) forgetTable(store, unwrittenAt, changes)
    if (before.leaks > 0) {
      if (isLossPossible(store, readQcowHeader(store), options)) refuse(UNPROVEN)
      else giveBack(store, changes, options)
    }
  }
  return repairResult(before, changes, () => {
    const after = new CheckReport()
    checkTables(store, after, options)
    return after
  })
}

/** Step (1). */
function forgetTable(store: WritableStore, entryAt: number, changes: CheckReport): void {
  store.write(Buffer.alloc(ENTRY_BYTES), 0, ENTRY_BYTES, entryAt)
  store.sync()
  changes.note('fix', entryAt, () => 'the L1 entry names no table any more')
}

/** Step (2). */
function giveBack(store: WritableStore, changes: CheckReport, options: QcowCheckOptions): void {
  const space = new Reclaiming(store, (kind, at, message) => changes.note(kind, at, message))
  const unused = (at: number, bytes: number) => space.add(at, bytes)
  inspectTables(store, readQcowHeader(store), { corruption: () => {}, unused }, options)
  space.finish()
}
