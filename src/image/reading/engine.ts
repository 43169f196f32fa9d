/**
 * The engine: it moves the bytes that drivers locate. It handles clipping, parents, zeros and the ends of files once for all
 * formats.
 */
import assert from 'node:assert'
import { atOffset, ImageError } from '../../errors.js'
import { clear } from '../../io/libc.js'
import type { Extent, FormatDriver, View } from '../../formats/driver.js'
import type { DecompressQueue } from './decompress-queue.js'

/**
 * Reads `length` bytes of the disk from `offset` on into `target` from `start` on. Bytes past the end of the disk read as
 * zeros, because a parent may be shorter. Throws ImageError, SystemError.
 * @param queue takes over whole compressed clusters; `target` is complete when its `finish` returns
 */
export function readView(
  view: View,
  target: Buffer,
  start: number,
  length: number,
  offset: number,
  queue?: DecompressQueue,
): void {
  const { driver, parent } = view
  const inside = Math.max(0, Math.min(length, driver.sizeBytes - offset))
  let done = 0
  try {
    while (done < inside) {
      const extent = driver.lookup(offset + done, inside - done)
      assert(extent.length > 0 && extent.length <= inside - done)
      const to = start + done
      if (extent.kind === 'data') readData(extent, driver.unitBytes, target, to, offset + done)
      else if (extent.kind === 'parent' && parent) {
        readView(parent, target, to, extent.length, offset + done, queue)
      } else if (extent.kind === 'packed') {
        if (extent.length === extent.wholeBytes) {
          if (!queue?.add(extent, to, offset + done))
            extent.unpackInto(target.subarray(to, to + extent.length))
        } else extent.unpack().copy(target, to, extent.skip, extent.skip + extent.length)
      } else clear(target, to, to + extent.length)
      done += extent.length
    }
  } catch (error) {
    throw atOffset(error, offset + done)
  }
  if (inside < length) clear(target, start + inside, start + length)
}

/**
 * Reads an extent of data. A file may end within the last allocated cluster, since allocating does not extend it: the missing
 * part reads as zeros. A cluster completely past the end was lost with the end of the file, and must not read as zeros.
 */
function readData(
  extent: Extent & { kind: 'data' },
  unitBytes: number,
  target: Buffer,
  to: number,
  offset: number,
): void {
  const { store, at, length } = extent
  // The size before the read: meanwhile other threads may make the file longer within its last cluster.
  const { sizeBytes } = store
  const got = store.read(target, to, length, at, offset)
  if (got === length) return
  const end = at + got
  const problem =
    end < sizeBytes
      ? 'the file has become shorter since it was opened'
      : at + length > Math.ceil((got > 0 ? end : sizeBytes) / unitBytes) * unitBytes
        ? `the data at ${end} lies beyond the end of the file`
        : undefined
  if (problem) {
    throw new ImageError('CORRUPT', problem, { path: store.path, offset: offset + got })
  }
  clear(target, to + got, to + length)
}

/** Returns what `driver` has at `offset`, and adds that place to its errors: drivers do not know it. */
export function lookupAt(driver: FormatDriver, offset: number, length: number): Extent {
  try {
    return driver.lookup(offset, length)
  } catch (error) {
    throw atOffset(error, offset)
  }
}

/**
 * Calls `visit` for each piece of `[offset, offset + length)`, in order, with its final extent (never 'parent') and the unit
 * within which its file may end. Stops and returns false if `visit` returns false.
 */
export function walkView(
  view: View,
  offset: number,
  length: number,
  visit: (
    extent: Exclude<Extent, { kind: 'parent' }>,
    offset: number,
    unitBytes: number,
  ) => boolean,
): boolean {
  const { driver, parent } = view
  const { unitBytes } = driver
  const inside = Math.max(0, Math.min(length, driver.sizeBytes - offset))
  for (let done = 0; done < inside; ) {
    const extent = lookupAt(driver, offset + done, inside - done)
    assert(extent.length > 0 && extent.length <= inside - done)
    if (extent.kind !== 'parent') {
      if (!visit(extent, offset + done, unitBytes)) return false
    } else if (parent) {
      if (!walkView(parent, offset + done, extent.length, visit)) return false
    } else if (!visit({ kind: 'zero', length: extent.length }, offset + done, unitBytes))
      return false
    done += extent.length
  }
  const rest = length - inside
  return rest === 0 || visit({ kind: 'zero', length: rest }, offset + inside, unitBytes)
}
