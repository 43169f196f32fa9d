/** The memory that the threads share that write a qcow2 image; see disk-memory.ts. */
import type { Store } from '../../io/store.js'
import { type BitmapMemory, loadBitmaps } from './bitmap-memory.js'
import { readCount } from './refcount-bits.js'
import { createFreeMemory } from './free-queue.js'
import { createMetadataMapMemory } from './metadata-map.js'
import { clusterBytes, type Qcow2Header } from './header.js'

export interface Qcow2Memory {
  readonly metadataMap: SharedArrayBuffer
  readonly freed: SharedArrayBuffer
  readonly state: SharedArrayBuffer
  readonly bitmaps: BitmapMemory
}

/** Indexes of `Qcow2Memory.state`: the fields of the header that change, and the state of the search for free clusters. */
export const STATE = {
  sizeBytes: 0,
  l1Offset: 1,
  l1Entries: 2,
  refcountTableOffset: 3,
  refcountTableClusters: 4,
  /** The cluster with which the next search begins. */
  cursor: 5,
  /** How many clusters before the cursor were freed since the search last went back. */
  freedBehind: 6,
  /** The lowest of these clusters. */
  lowestFreed: 7,
} as const

/** Reads the image's persistent bitmaps, if it has any. Throws SystemError. */
export function createQcow2Memory(header: Qcow2Header, store: Store): Qcow2Memory {
  const state = new SharedArrayBuffer(8 * Object.keys(STATE).length)
  const values = new Float64Array(state)
  values[STATE.sizeBytes] = header.sizeBytes
  values[STATE.l1Offset] = header.l1Offset
  values[STATE.l1Entries] = header.l1Entries
  values[STATE.refcountTableOffset] = header.refcountTableOffset
  values[STATE.refcountTableClusters] = header.refcountTableClusters
  values[STATE.lowestFreed] = Number.POSITIVE_INFINITY
  const isSole = (at: number) => readCount(store, header, at / clusterBytes(header)) === 1
  return {
    metadataMap: createMetadataMapMemory(),
    freed: createFreeMemory(),
    state,
    bitmaps: loadBitmaps(store, header, isSole),
  }
}
