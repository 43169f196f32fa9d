/** How large the files of a new vmdk may become together. No file that `convert` makes is larger. */
import { SECTOR_BYTES } from '../../sector.js'
import type { MeasuredImage, Measurement } from '../creating.js'
import { unitsTouched } from '../units-touched.js'
import { isFlat, isSplit, shapeOf, SPLIT_BYTES, type VmdkShape } from './create/options.js'
import { GRAIN_BYTES, sparseLayout } from './create/sparse-extent.js'
import { streamBytes } from './create/stream-extent.js'

/** The text of a descriptor without its extents, and a line of one with the longest name that a file can have. */
const DESCRIPTOR_BYTES = 1024
const LINE_BYTES = 512

/** Throws UsageError for options that contradict each other. */
export function measureVmdk({ sizeBytes, options, data }: MeasuredImage): Measurement {
  const shape = shapeOf({ options, backing: undefined, sizeBytes })
  const grains = Math.ceil(sizeBytes / GRAIN_BYTES)
  const all = bytesWith(shape, sizeBytes, grains)
  if (isFlat(shape)) return { required: all, fullyAllocated: all }
  const touched = unitsTouched(data, GRAIN_BYTES)
  return { required: bytesWith(shape, sizeBytes, touched), fullyAllocated: all }
}

/** Returns the bytes of all files if so many grains have data. */
function bytesWith(shape: VmdkShape, sizeBytes: number, grains: number): number {
  if (shape.subformat === 'streamOptimized') return streamBytes(sizeBytes, grains)
  const step = isSplit(shape) ? SPLIT_BYTES : sizeBytes
  const extents = sizeBytes === 0 ? 0 : Math.ceil(sizeBytes / step)
  const descriptor = DESCRIPTOR_BYTES + extents * LINE_BYTES
  if (isFlat(shape)) return descriptor + sizeBytes
  const tables = (bytes: number) => sparseLayout(bytes).firstGrainSector * SECTOR_BYTES
  if (!isSplit(shape)) return tables(sizeBytes) + grains * GRAIN_BYTES
  const whole = Math.max(0, extents - 1)
  const last = sizeBytes - whole * step
  return descriptor + whole * tables(step) + tables(last) + grains * GRAIN_BYTES
}
