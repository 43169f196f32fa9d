/** A disk or snapshot as it reads now, for the main thread: its scratch copy, if there is one. */
import type { View } from '../../formats/driver.js'
import type { WritableDisk } from '../../formats/writable.js'
import type { CatalogEntry } from '../../image/catalog.js'
import { readView } from '../../image/reading/engine.js'
import type { ViewSet } from '../../image/reading/view-set.js'
import type { ScratchDisks } from './scratch-disks.js'

export interface ReadableDisk {
  readonly sizeBytes: number
  /** Whether programs may have written it. */
  readonly isWritten: boolean
  read(target: Buffer, start: number, length: number, offset: number): void
}

/** @param place of `entry` in the catalog */
export function readableDisk(
  entry: CatalogEntry,
  place: number,
  views: ViewSet,
  scratch: ScratchDisks | undefined,
): ReadableDisk {
  const copy = scratch?.find(place)
  if (copy) return readable(copy.view, copy.disk, copy.disk.sizeBytes, true)
  const { disk } = views
  const isWritten = entry.kind === 'disk' && disk !== undefined
  // It may have grown since.
  const sizeBytes = isWritten ? disk.sizeBytes : entry.sizeBytes
  return readable(views.viewOf(entry), disk, sizeBytes, isWritten)
}

const readable = (
  view: View,
  lock: WritableDisk | undefined,
  sizeBytes: number,
  isWritten: boolean,
): ReadableDisk => ({
  sizeBytes,
  isWritten,
  read(target, start, length, offset) {
    lock?.beginRead(offset, length)
    try {
      readView(view, target, start, length, offset)
    } finally {
      lock?.endRead()
    }
  },
})
