/** What `map` shows of vmdk besides data, zeros and what is unallocated. */
import { type Mapping, mappingWithHoles } from '../mapping.js'
import type { VmdkDriver } from './driver.js'
import type { VmdkSpec } from './open.js'

/** Holes are shown in flat extents only. */
export const vmdkMapping = ({ extents }: VmdkSpec, driver: VmdkDriver): Mapping =>
  mappingWithHoles(offset => {
    const { index } = driver.extentAt(offset)
    return extents[index]?.layout.kind === 'flat' ? 'both' : undefined
  })
