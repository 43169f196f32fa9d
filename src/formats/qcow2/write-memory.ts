/** What the threads that write a qcow2 image share; see disk-memory.ts. */
import type { Store } from '../../io/store.js'
import { type BitmapMemory, loadBitmaps } from './bitmap-memory.js'
import { createFreeMemory } from './free-queue.js'
import { createGuardMemory, type GuardMemory } from './guard.js'
import { clusterBytes, type Qcow2Header } from './header.js'
import { readCount } from './refcounts.js'

export interface Qcow2Memory {
  readonly guard: GuardMemory
  readonly freed: SharedArrayBuffer
  readonly state: SharedArrayBuffer
  readonly bitmaps: BitmapMemory
}

/** Places in `Qcow2Memory.state`: what of the header changes, and where free clusters are looked for. */
export const STATE = {
  sizeBytes: 0,
  l1Offset: 1,
  l1Entries: 2,
  refcountTableOffset: 3,
  refcountTableClusters: 4,
  /** The cluster that the next search begins with. */
  cursor: 5,
  /** Clusters that were freed behind the cursor since the search last went back. */
  freedBehind: 6,
  /** The lowest of them. */
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
    guard: createGuardMemory(),
    freed: createFreeMemory(),
    state,
    bitmaps: loadBitmaps(store, header, isSole),
  }
}
