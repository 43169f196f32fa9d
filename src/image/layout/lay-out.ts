/**
 * Lays a disk out as a file without a name that shares the blocks of the image's files, so that the kernel can read it by itself
 * (FUSE passthrough). It takes no space but for its own list of extents. The file keeps the bytes that it got: when the image is
 * written afterwards, the file system gives the image new blocks.
 */
import fs from 'node:fs'
import { constants } from 'node:os'
import { dirname } from 'node:path'
import { isExpected } from '../../errors.js'
import type { LayerSpec } from '../../formats/format.js'
import type { View } from '../../formats/driver.js'
import { openBacking, readsSectorsDirectly } from '../../io/backing.js'
import { errno, ftruncate, pwrite } from '../../io/libc.js'
import { CLONED_BLOCK_BYTES, clone, hasReflinks, takeCopyOnWriteOf } from '../../io/reflinks.js'
import { openTmpfile } from '../../io/unnamed-file.js'
import type { CatalogEntry } from '../catalog.js'
import { readView } from '../reading/engine.js'
import { ViewSet } from '../reading/view-set.js'
import { type CopiedPart, type LayoutPlan, type PlanObstacle, planLayout } from './plan.js'

/** Plain data. */
export interface LayoutSetup {
  /** Their files stay open until the end. */
  readonly layers: readonly LayerSpec[]
  readonly entry: CatalogEntry
  /** How many bytes may be written out because they are compressed, encrypted or not aligned. */
  readonly copiedBytes: number
  /** A /dev/fuse of the mount. */
  readonly device: number
}

export type LayoutObstacle =
  | PlanObstacle
  | 'otherFiles'
  | 'noFile'
  | 'full'
  | 'refused'
  | 'unreadable'

/** The kernel's number of the file and whether it reads single sectors with O_DIRECT, or why there is none. */
export type LayoutResult =
  | { readonly backing: number; readonly readsSectors: boolean }
  | { readonly obstacle: LayoutObstacle }

const { EDQUOT, EINTR, ENOMEM, ENOSPC } = constants.errno

const CACHES = { metadataBytes: 4 * 2 ** 20, clusterBytes: 2 ** 20 }
/** The time to share one part, in milliseconds: measured on xfs, with 16,384 clusters of 64 KiB in random order. */
const PART_MS = 0.04
/** An opening waits for the layout. It may take this long by that measure, in milliseconds, */
const LEAST_MS = 1000
/** or this part of the time of reading all data, at a rate in bytes a millisecond, */
const PART_OF_READING = 0.02
const READ_BYTES_A_MS = 10 ** 6
/** but never longer, by the clock. */
export const MOST_LAYOUT_MS = 5000
/** One call shares only so much at once, so that it ends soon if the file system has many extents there. */
const STEP_BYTES = 64 * 2 ** 20
const COPY_BYTES = 2 ** 20
const MOST_PARTS = MOST_LAYOUT_MS / PART_MS

/** Returns how many parts are worth their time, for a file that shares `sharedBytes` bytes. */
export function mostParts(sharedBytes: number): number {
  const milliseconds = Math.max(LEAST_MS, (PART_OF_READING * sharedBytes) / READ_BYTES_A_MS)
  return Math.min(MOST_PARTS, Math.floor(milliseconds / PART_MS))
}

/** Lays out the file that `entry` shows, and gives it to the kernel. Throws what is a bug. */
export function layOut({ layers, entry, copiedBytes, device }: LayoutSetup): LayoutResult {
  const end = performance.now() + MOST_LAYOUT_MS
  const isLate = () => performance.now() > end
  const { sizeBytes } = entry
  try {
    const view = new ViewSet(layers, CACHES).viewOf(entry)
    const limits = { blockBytes: CLONED_BLOCK_BYTES, copiedBytes, parts: MOST_PARTS, isLate }
    const plan = planLayout(view, sizeBytes, limits)
    if (typeof plan === 'string') return { obstacle: plan }
    if (plan.shared.length > mostParts(plan.sharedBytes)) return { obstacle: 'pieces' }
    const beside = (layers[entry.layer] as LayerSpec).fd
    return giveFile({ view, plan, sizeBytes, beside, isLate }, device)
  } catch (error) {
    if (isExpected(error)) return { obstacle: 'unreadable' }
    throw error
  }
}

export interface LayoutJob {
  readonly view: View
  readonly plan: LayoutPlan
  readonly sizeBytes: number
  /** The file beside which the new one is made if nothing is shared. */
  readonly beside: number
  isLate(): boolean
}

function giveFile(job: LayoutJob, device: number): LayoutResult {
  const fd = layOutFile(job)
  if (typeof fd === 'string') return { obstacle: fd }
  try {
    const readsSectors = readsSectorsDirectly(fd)
    const backing = openBacking(device, fd)
    return backing > 0 ? { backing, readsSectors } : { obstacle: 'refused' }
  } finally {
    // The kernel keeps the file for as long as it has the number.
    fs.closeSync(fd)
  }
}

/** Returns a descriptor of the new file, or why there is none. Throws ImageError, SystemError. */
export function layOutFile(job: LayoutJob): number | LayoutObstacle {
  const source = mostShared(job.plan) ?? job.beside
  if (!hasReflinks(source)) return 'otherFiles'
  let fd: number
  try {
    fd = openTmpfile(dirname(fs.readlinkSync(`/proc/self/fd/${source}`)), 0o600)
  } catch {
    return 'noFile'
  }
  const obstacle = orClose(fd, () => fill(fd, source, job))
  if (obstacle) fs.closeSync(fd)
  return obstacle ?? fd
}

function orClose<T>(fd: number, act: () => T): T {
  try {
    return act()
  } catch (error) {
    fs.closeSync(fd)
    throw error
  }
}

function fill(fd: number, source: number, job: LayoutJob): LayoutObstacle | undefined {
  const { plan, sizeBytes, isLate } = job
  takeCopyOnWriteOf(fd, source)
  if (ftruncate(fd, sizeBytes) !== 0) return 'noFile'
  for (const { fd: from, at, offset, length } of plan.shared) {
    for (let done = 0; done < length; done += STEP_BYTES) {
      if (isLate()) return 'slow'
      const step = Math.min(STEP_BYTES, length - done)
      if (!clone(fd, from, at + done, step, offset + done)) return becauseOf(errno(), 'otherFiles')
    }
  }
  for (const part of plan.copied) {
    const obstacle = copy(fd, part, job)
    if (obstacle) return obstacle
  }
  return undefined
}

function copy(
  fd: number,
  { offset, length }: CopiedPart,
  job: LayoutJob,
): LayoutObstacle | undefined {
  const bytes = Buffer.allocUnsafeSlow(Math.min(COPY_BYTES, length))
  for (let done = 0; done < length; ) {
    if (job.isLate()) return 'slow'
    const step = Math.min(bytes.length, length - done)
    readView(job.view, bytes, 0, step, offset + done)
    for (let wrote = 0; wrote < step; ) {
      const now = pwrite(fd, bytes.subarray(wrote), step - wrote, offset + done + wrote)
      if (now > 0) wrote += now
      else if (now === 0 || errno() !== EINTR) return becauseOf(errno(), 'noFile')
    }
    done += step
  }
  return undefined
}

const becauseOf = (reason: number, otherwise: LayoutObstacle): LayoutObstacle =>
  reason === ENOSPC || reason === EDQUOT || reason === ENOMEM ? 'full' : otherwise

/** Returns the file of which the most is shared: the new file is made beside it. */
function mostShared({ shared }: LayoutPlan): number | undefined {
  const bytes = new Map<number, number>()
  for (const { fd, length } of shared) bytes.set(fd, (bytes.get(fd) ?? 0) + length)
  return [...bytes].sort(([, a], [, b]) => b - a)[0]?.[0]
}
