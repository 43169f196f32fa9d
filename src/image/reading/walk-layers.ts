/** Walks over a disk piece by piece, and says which layer of its chain decides each piece. */
import { ImageError, SystemError } from '../../errors.js'
import type { Extent, FormatDriver, View } from '../../formats/driver.js'
import { lookupAt } from './engine.js'

export interface LayerPiece {
  readonly offset: number
  readonly length: number
  /** How many layers down the layer is that decides, from 0 on. */
  readonly depth: number
  readonly driver: FormatDriver
  /**
   * That layer's answer. `parent` if no layer has anything there: then `depth` is the last layer that was asked, and the
   * piece reads as zeros.
   */
  readonly extent: Extent
}

/** Is told of a part of the disk that cannot be read, and why. */
export type OnLoss = (offset: number, length: number, reason: Error) => void

/**
 * Yields the pieces of `length` bytes at `offset`, in order. Each layer is asked about a part that it does not have once
 * only, however many pieces the layers below have there. Throws ImageError, SystemError.
 * @param onLoss takes over: what damaged tables should map counts as zeros, and is reported
 */
export function* walkLayers(
  view: View,
  offset: number,
  length: number,
  onLoss?: OnLoss,
): Generator<LayerPiece> {
  const drivers = driversOf(view)
  /** Up to where each layer is known to have nothing. */
  const silent = drivers.map(() => -1)
  const end = offset + length
  for (let at = offset; at < end; ) {
    let stop = end
    for (let depth = 0; ; depth++) {
      const driver = drivers[depth] as FormatDriver
      if ((silent[depth] as number) <= at) {
        const extent = lookUp(driver, at, Math.min(stop, driver.sizeBytes) - at, onLoss)
        if (extent.kind !== 'parent') {
          yield { offset: at, length: extent.length, depth, driver, extent }
          at += extent.length
          break
        }
        silent[depth] = at + extent.length
      }
      stop = Math.min(stop, silent[depth] as number)
      const belowBytes = drivers[depth + 1]?.sizeBytes ?? 0
      if (belowBytes <= at) {
        const extent = { kind: 'parent', length: stop - at } as const
        yield { offset: at, length: extent.length, depth, driver, extent }
        at = stop
        break
      }
      stop = Math.min(stop, belowBytes)
    }
  }
}

/** How much of the disk is given up at once where tables are damaged, in bytes: the least that one entry maps. */
const LOST_BYTES = 4096

function lookUp(driver: FormatDriver, at: number, length: number, onLoss?: OnLoss): Extent {
  try {
    return lookupAt(driver, at, length)
  } catch (error) {
    if (!onLoss || !isDamage(error)) throw error
    const step = Math.max(driver.unitBytes, LOST_BYTES)
    const lost = Math.min(length, step - (at % step))
    onLoss(at, lost, error)
    return { kind: 'zero', length: lost }
  }
}

export const isDamage = (error: unknown): error is Error =>
  error instanceof ImageError || error instanceof SystemError

function driversOf(view: View): FormatDriver[] {
  const drivers: FormatDriver[] = []
  for (let each: View | undefined = view; each; each = each.parent) drivers.push(each.driver)
  return drivers
}
