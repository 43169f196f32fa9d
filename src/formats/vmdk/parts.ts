/** Types that all drivers of VMDK extents use. */
import type { ClusterCache } from '../../cache/cluster-cache.js'
import type { Store } from '../../io/store.js'

/**
 * Returns `length` bytes of the extent's file at `at`, through the cache. Both are multiples of 512, and `length` is at most
 * 4096. Valid until the next call. Throws ImageError if the file ends earlier, SystemError.
 */
export type ReadTable = (at: number, length: number) => Buffer

/** Returns the kind of a sparse extent, from its first bytes. */
export function extentKind(head: Buffer): 'sparse' | 'cowd' | 'sesparse' | undefined {
  const magic = head.toString('latin1', 0, 8)
  if (magic.startsWith('KDMV')) return 'sparse'
  if (magic.startsWith('COWD')) return 'cowd'
  return magic === SESPARSE_MAGIC ? 'sesparse' : undefined
}

const SESPARSE_MAGIC = '\xbe\xba\xfe\xca\0\0\0\0'

export interface ExtentParts {
  readonly store: Store
  /** The id of the store in the caches. */
  readonly storeId: number
  readonly readTable: ReadTable
  /** The cache of decompressed grains. */
  readonly grains: ClusterCache
}
