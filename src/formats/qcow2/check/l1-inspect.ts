/** Checks the entries of the L1 tables (QEMU docs/interop/qcow2.rst, "L1 table entry"). */
import type { Qcow2Structure, L1Table } from './structure.js'
import { walkL1 } from './l1-walk.js'
import type { RefcountBlocks } from './refcount-blocks.js'
import type { Qcow2Report } from './report.js'
import { COPIED, hostOffset, L1_RESERVED } from '../words.js'

/** Returns false if some tables cannot be read, so that what they name is unknown. */
export function inspectL1Tables(
  image: Qcow2Structure,
  blocks: RefcountBlocks,
  report: Qcow2Report,
): boolean {
  const { snapshots } = image.snapshots
  const named = image.l1Tables.filter(table => !table.isActive).length
  let isReadable = named === snapshots.filter(({ l1Entries }) => l1Entries > 0).length
  for (const table of image.l1Tables) {
    const bytes = table.entries * 8
    if (table.at + bytes > image.store.sizeBytes) {
      isReadable = false
      if (image.isInFile(table.at, bytes)) {
        report.corruption(table.at, () => `${table.name} is cut off by the end of the file`)
      }
    }
    if (!inspect(image, table, blocks, report)) isReadable = false
  }
  return isReadable
}

function inspect(
  image: Qcow2Structure,
  table: L1Table,
  blocks: RefcountBlocks,
  report: Qcow2Report,
): boolean {
  const { clusterBytes } = image
  let isReadable = true
  walkL1(image.store, table, (high, low, index) => {
    const entryAt = table.at + index * 8
    const corruption = (what: string) =>
      report.corruption(entryAt, () => `entry ${index} of ${table.name} ${what}`)
    const at = hostOffset(high, low)
    if (at === 0) {
      corruption('has flags, but names no L2 table')
      return
    }
    if ((high & L1_RESERVED.high) !== 0 || (low & L1_RESERVED.low) !== 0) {
      corruption('has reserved bits set')
    }
    if (!image.isInFile(at, clusterBytes)) {
      corruption(`names an L2 table at ${at}, past the end of the file`)
      isReadable = false
    } else if (at + clusterBytes > image.store.sizeBytes) {
      corruption(`names an L2 table at ${at}, which is cut off by the end of the file`)
      isReadable = false
    }
    if (at % clusterBytes !== 0) {
      corruption(`names an L2 table at ${at}, which is not aligned`)
      isReadable = false
    }
    if (!table.isActive) return
    const count = blocks.get(Math.floor(at / clusterBytes))
    const isCopied = (high & COPIED) !== 0
    if (count >= 0 && (count === 1) !== isCopied) {
      const what = `${isCopied ? 'has' : 'lacks'} the COPIED flag, while the L2 table's count is ${count}`
      report.wrongFlag(entryAt, () => `entry ${index} of ${table.name} ${what}`)
    }
  })
  return isReadable
}
