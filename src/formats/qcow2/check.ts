/**
 * Checks a qcow2 image: whether its tables make sense, and whether the reference count of each cluster is the number of
 * pointers to it (QEMU docs/interop/qcow2.rst).
 *
 * The totals are those of `qemu-img check`, with these exceptions:
 *
 *  (1) All that makes `vimgfs mount` answer EIO is a corruption, also where QEMU's check says nothing: the zero flag in version
 *      2, an entry that maps another place of an external data file, and a table that is cut off by the end of the file.
 *  (2) An L1 entry that has flags but names no table is one corruption. QEMU takes the header for its
 *      L2 table.
 *  (3) A compressed cluster whose extended entry has subcluster bits counts as used, because it can be read. QEMU does not
 *      count it, and would free it.
 *  (4) Structures that overlap are a corruption, even if the reference count agrees.
 *  (5) QEMU stops at a damaged entry of a bitmap table. Here it is one corruption, and so is a snapshot table or a bitmap
 *      directory that is damaged or cut off by the end of the file. The clusters that they owned show as leaks.
 *  (6) Images that `readHeader` refuses (an L1 table over the header or past the end of the file) are not checked. A lost
 *      refcount table is one corruption, besides the counts; QEMU refuses the image.
 *  (7) Images above 2^31 clusters are checked.
 */
import type { Store } from '../../io/store.js'
import type { CheckOptions, CheckResult } from '../check/report.js'
import { isTooLarge } from '../disk-size.js'
import { Census } from './check/census.js'
import { compareCounts } from './check/compare.js'
import { checkDataPlaces } from './check/data-places.js'
import { Qcow2Structure } from './check/structure.js'
import { inspectL1Tables } from './check/l1-inspect.js'
import { Qcow2Report } from './check/report.js'
import type { CellMemory } from './check/window.js'
import { SECTOR_BYTES } from '../../sector.js'

/**
 * Checks the image. Throws ImageError if the header is damaged, SystemError if the file cannot be read.
 */
export function checkQcow2(store: Store, options: CheckOptions = {}): CheckResult {
  const report = new Qcow2Report()
  options.began?.(report)
  checkImage(new Qcow2Structure(store), report, options)
  return report
}

/** Returns false if some structures are unknown: then clusters that nothing names may still be data. */
export function checkImage(
  image: Qcow2Structure,
  report: Qcow2Report,
  options: CheckOptions,
  memory?: CellMemory,
): boolean {
  const { header } = image
  // A disk that ends within a sector ends with the sector before it (formats.md, 6.4).
  const diskBytes = Math.floor(header.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES
  report.totalClusters = Math.ceil(diskBytes / image.clusterBytes)
  const { obstacle } = image
  if (obstacle) {
    report.error(obstacle.at, () => obstacle.message)
    return false
  }
  for (const { at, message } of image.losses) report.corruption(at, () => message)
  inspectLuks(image, report)
  inspectSnapshots(image, report)
  inspectBitmaps(image, report)
  const census = new Census(image, memory)
  const isReadable = inspectL1Tables(image, census.blocks, report)
  if (image.isExternal) checkDataPlaces(image, report)
  let end = 0
  census.run(
    report,
    () => {
      end = Math.max(end, compareCounts(census, report))
    },
    options.progress,
  )
  report.imageEndOffset = Math.max(1, end) * image.clusterBytes
  // The LUKS header's clusters must be known, so that they are not given away.
  return isReadable && !census.hasLost && image.hasPossibleLuks && !image.hasLostOwners
}

function inspectLuks({ header, hasPossibleLuks }: Qcow2Structure, report: Qcow2Report): void {
  const { encryption } = header
  if (!encryption || hasPossibleLuks) return
  const { offset, length } = encryption
  report.corruption(0, () => `a LUKS header of ${length} bytes at ${offset} is impossible`)
}

function inspectSnapshots(image: Qcow2Structure, report: Qcow2Report): void {
  const { snapshots } = image.snapshots
  for (const { number, entryAt, l1At, l1Entries, extraBytes, sizeBytes } of snapshots) {
    if (image.isIncomplete(extraBytes)) {
      report.corruption(entryAt, () => `the entry of snapshot ${number} lacks the disk's size`)
    }
    if (sizeBytes !== undefined && isTooLarge(sizeBytes)) {
      report.corruption(
        entryAt,
        () => `snapshot ${number} has a disk of about ${sizeBytes} bytes, which cannot be`,
      )
    }
    if (!image.namesL1Table(l1At, l1Entries)) {
      report.corruption(
        entryAt,
        () =>
          `snapshot ${number} has an L1 table of ${l1Entries} entries at ${l1At}, which cannot be`,
      )
    }
  }
  if (image.isExternal && snapshots.length > 0) {
    report.corruption(
      image.header.snapshotsOffset,
      () => 'it has snapshots and an external data file',
    )
  }
}

function inspectBitmaps(image: Qcow2Structure, report: Qcow2Report): void {
  for (const { number, entryAt, isInUse } of image.bitmaps?.tables ?? []) {
    if (!isInUse) continue
    report.note('notice', entryAt, () => `bitmap ${number} was not closed; what it says is void`)
  }
}
