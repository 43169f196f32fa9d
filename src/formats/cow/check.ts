/**
 * Checks a cow image. Little can be wrong, because a sector's place depends only on its number. QEMU never had a check for
 * it.
 *
 *  (1) A marked sector that does not lie completely in the file is a corruption: reading it fails. Both programs write whole
 *      sectors, so a sector that is cut off is lost, too.
 *  (2) Space at the places of unmarked sectors counts as that many leaks, if it can be given back (see space.ts). A write that
 *      never got its bit leaves such space, and so does copying holes as zeros.
 *  (3) Bits after the disk's last sector have no meaning: they are a notice.
 */
import type { Store } from '../../io/store.js'
import { type CheckOptions, type CheckResult, CheckReport } from '../check/report.js'
import { firstLostSector, mappedBytes, walkBitmap } from './bitmap.js'
import { type CowHeader, readCowHeader } from './header.js'
import { UnusedSpace } from './space.js'
import { SECTOR_BYTES } from '../../sector.js'

/**
 * Checks the image, without its backing file. Throws ImageError if the header is damaged, SystemError if the file cannot be
 * read.
 */
export function checkCow(store: Store, options: CheckOptions = {}): CheckResult {
  const report = new CheckReport()
  options.began?.(report)
  const header = readCowHeader(store)
  for (const warning of header.warnings) report.note('notice', 0, () => warning)
  checkSectors(store, header, report, options)
  checkLastByte(store, header, report)
  return report
}

function checkSectors(
  store: Store,
  header: CowHeader,
  report: CheckReport,
  { progress }: CheckOptions,
): void {
  const sectors = Math.ceil(header.sizeBytes / SECTOR_BYTES)
  const lost = firstLostSector(header, store.sizeBytes)
  const unused = new UnusedSpace(store, header)
  report.totalClusters = sectors
  report.imageEndOffset = header.bitmapOffset + header.bitmapBytes
  walkBitmap(store, header, 0, (isMarked, first, end) => {
    if (isMarked) {
      report.allocatedClusters += end - first
      const inFile = Math.min(end, Math.max(first, lost))
      if (inFile > first) report.imageEndOffset = header.dataOffset + inFile * SECTOR_BYTES
      if (inFile < end) reportLost(header, inFile, end, report)
    } else reportUnused(unused, first, end, report)
    progress?.(end / sectors)
    return true
  })
}

function reportLost(
  { dataOffset }: CowHeader,
  first: number,
  end: number,
  report: CheckReport,
): void {
  const at = dataOffset + first * SECTOR_BYTES
  report.corruption(
    at,
    () => `${sectorsOf(first, end)} beyond the end of the file and marked as written`,
    end - first,
  )
}

function reportUnused(unused: UnusedSpace, first: number, end: number, report: CheckReport): void {
  const found = unused.of(first, end)
  if (found === undefined) return
  const { span, dataBytes } = found
  const message = () => `nothing uses ${dataBytes} bytes from sector ${first} to ${end - 1}`
  report.leak(span.at, message, Math.ceil(dataBytes / SECTOR_BYTES))
}

const sectorsOf = (first: number, end: number): string =>
  end - first === 1 ? `sector ${first} is` : `sectors ${first} to ${end - 1} are`

function checkLastByte(store: Store, header: CowHeader, report: CheckReport): void {
  const sectors = Math.ceil(mappedBytes(header) / SECTOR_BYTES)
  if (sectors % 8 === 0) return
  const at = header.bitmapOffset + header.bitmapBytes - 1
  const last = Buffer.alloc(1)
  store.read(last, 0, 1, at)
  if ((last[0] as number) >>> (sectors % 8) === 0) return
  report.note('notice', at, () => 'bits after the last sector are set, and mean nothing')
}
