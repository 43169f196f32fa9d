/** Reads what is left of a damaged disk: what cannot be read becomes zeros, and is reported. */
import type { Extent, FormatDriver, View } from '../../formats/driver.js'
import { clear } from '../../io/libc.js'
import type { Store } from '../../io/store.js'
import { readView } from './engine.js'
import { isDamage, type OnLoss, walkLayers } from './walk-layers.js'
import { SECTOR_BYTES } from '../../sector.js'

/** Returns the place in the file of `store` from which on data were lost with its end: reading them is an error. */
export const lostAt = (store: Store, { unitBytes }: FormatDriver): number =>
  Math.ceil(store.sizeBytes / unitBytes) * unitBytes

/**
 * Reads as `readView` does. What cannot be read becomes zeros, and `onLoss` is told: sector by sector where a file cannot be
 * read, whole clusters where they cannot be decompressed.
 */
export function readSalvaging(
  view: View,
  target: Buffer,
  start: number,
  length: number,
  offset: number,
  onLoss: OnLoss,
): void {
  const inside = Math.max(0, Math.min(length, view.driver.sizeBytes - offset))
  const read = (from: number, bytes: number, isWhole: boolean): void => {
    const to = start + from - offset
    try {
      readView(view, target, to, bytes, from)
    } catch (error) {
      if (!isDamage(error)) throw error
      // A sector is the least that is given up.
      if (isWhole || bytes <= SECTOR_BYTES) {
        clear(target, to, to + bytes)
        onLoss(from, bytes, error)
        return
      }
      const half = Math.ceil(bytes / 2 / SECTOR_BYTES) * SECTOR_BYTES
      read(from, half, false)
      read(from + half, bytes - half, false)
    }
  }
  for (const { offset: from, length: bytes, extent, driver } of walkLayers(
    view,
    offset,
    inside,
    onLoss,
  )) {
    if (extent.kind === 'zero' || extent.kind === 'parent') {
      clear(target, start + from - offset, start + from - offset + bytes)
    } else {
      const left = extent.kind === 'data' ? leftOf(extent, driver) : 0
      if (left > 0) read(from, left, false)
      if (left < bytes) read(from + left, bytes - left, true)
    }
  }
  clear(target, start + inside, start + length)
}

/** Returns how many bytes of data come before what was lost with the end of their file. */
const leftOf = ({ store, at, length }: Extent & { kind: 'data' }, driver: FormatDriver): number =>
  Math.max(0, Math.min(length, lostAt(store, driver) - at))

export interface Loss {
  readonly offset: number
  readonly length: number
  readonly reason: string
}

/** Collects what was lost. Neighbours that come in order are joined. */
export class Losses {
  readonly list: Loss[] = []

  readonly add: OnLoss = (offset, length, { message }) => {
    const last = this.list.at(-1)
    const isNext = last !== undefined && last.offset + last.length === offset
    if (isNext) this.list[this.list.length - 1] = { ...last, length: last.length + length }
    else this.list.push({ offset, length, reason: message })
  }
}
