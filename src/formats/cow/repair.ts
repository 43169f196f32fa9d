/**
 * Repairs a cow image: unused space becomes holes of the file. No byte of the disk reads differently afterwards.
 *
 * Sectors that were lost with the end of the file stay marked, and reading them fails. Without their marks the older data of
 * the backing file would appear, unnoticed. While there are such sectors, no space is given back: unmarked space may be the
 * lost data.
 */
import type { WritableStore } from '../../io/store.js'
import { type CheckOptions, type RepairResult, repairResult, CheckReport } from '../check/report.js'
import { walkBitmap } from './bitmap.js'
import { checkCow } from './check.js'
import { readCowHeader } from './header.js'
import { UnusedSpace } from './space.js'
import { Reclaiming } from '../check/reclaim.js'

const LOST =
  'sectors that were lost stay marked, and nothing is changed: restore them, or all of the image, from a copy'
const KEPT = 'space is kept: what nothing marks may be what was lost'

/**
 * Repairs the image: both `leaks` and `all` give back space. Throws ImageError if the header is damaged, SystemError if the
 * file cannot be read or written.
 */
export function repairCow(
  store: WritableStore,
  what: 'leaks' | 'all',
  options: CheckOptions = {},
): RepairResult {
  const before = checkCow(store, options)
  const changes = new CheckReport()
  if (before.corruptions > 0) changes.note('error', 0, () => (what === 'all' ? LOST : KEPT))
  else if (before.leaks > 0) giveBack(store, changes)
  return repairResult(before, changes, () => checkCow(store, options))
}

function giveBack(store: WritableStore, changes: CheckReport): void {
  const header = readCowHeader(store)
  const unused = new UnusedSpace(store, header)
  const space = new Reclaiming(store, (kind, at, message) => changes.note(kind, at, message))
  walkBitmap(store, header, 0, (isMarked, first, end) => {
    const found = isMarked ? undefined : unused.of(first, end)
    if (found) space.punch(found.span.at, found.span.bytes, found.dataBytes)
    return true
  })
  space.finish()
}
