/** Drops an image's statements about lost parts, so that the rest of it can be used. */
import type { WritableStore } from '../../../io/store.js'
import type { Qcow2Structure } from '../check/structure.js'
import type { Qcow2Report } from '../check/report.js'
import { AUTOCLEAR, INCOMPATIBLE } from '../header.js'
import { endExtensions, writeExtensionType, writeFeatures, writeL1 } from '../header-update.js'
import type { Defect } from '../table-places.js'

/** A type that no program knows, so that all skip the extension: "void". */
const VOID_EXTENSION = 0x766f6964

/**
 * Repairs header fields that only writers use, and gives up bitmaps that cannot be found. Other steps repair lost snapshots
 * and reference counts. Everything is synced when it returns.
 */
export function dropLosses(image: Qcow2Structure, store: WritableStore, report: Qcow2Report): void {
  const { header, bitmaps } = image
  for (const defect of header.defects) repairHeader(image, defect, store, report)
  const isLost = bitmaps?.obstacle ?? header.defects.find(({ part }) => part === 'bitmaps')?.message
  if (isLost !== undefined && (header.autoclear & AUTOCLEAR.bitmaps) !== 0n) {
    const { incompatible, compatible, autoclear } = header
    writeFeatures(store, {
      // The dirty bit stays: a repair is under way.
      incompatible: incompatible | INCOMPATIBLE.dirty,
      compatible,
      autoclear: autoclear & ~AUTOCLEAR.bitmaps,
    })
    report.note('fix', bitmaps?.at ?? 0, () => `all bitmaps are given up: ${isLost}`)
  }
  store.sync()
}

function repairHeader(
  { header }: Qcow2Structure,
  { part, at }: Defect,
  store: WritableStore,
  report: Qcow2Report,
): void {
  const fix = (message: string) => report.note('fix', at, () => message)
  if (part === 'L1 size') {
    writeL1(store, header.l1Entries, header.l1Offset)
    fix(`the L1 table has ${header.l1Entries} entries`)
  } else if (part === 'bitmaps') {
    writeExtensionType(store, at, VOID_EXTENSION)
    fix('a damaged header extension of bitmaps is made void')
  } else if (part === 'extensions') {
    endExtensions(store, at)
    fix('the header extensions end before the one that is too long')
  }
}
