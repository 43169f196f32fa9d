/** Tells which unused space of an extent's file can be given back. */
import type { Store } from '../../../io/store.js'
import { reclaimable } from '../../check/reclaim.js'
import type { ExtentLayout } from '../open.js'

/** The extent with the space. */
interface Place {
  readonly layout: ExtentLayout
  /** Whether its file is a device, which cannot be cut off. */
  readonly isDevice?: boolean
}

/** Returns how many of the `bytes` unused bytes at `at` can be given back: nothing of a device. */
export const reclaimableIn = (extent: Place, store: Store, at: number, bytes: number): number =>
  extent.isDevice ? 0 : reclaimable(store, at, bytes, isTail(extent, store, at + bytes))

/** Reports whether space that ends at `end` can be cut off. ESX makes COWD files longer before it needs the space. */
export const isTail = ({ layout }: Pick<Place, 'layout'>, store: Store, end: number): boolean =>
  layout.kind !== 'cowd' && end >= store.sizeBytes
