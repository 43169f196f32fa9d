/** What all drivers of VMDK extents work with. */
import type { ClusterCache } from '../../cache/cluster-cache.js'
import type { Store } from '../../io/store.js'

export const SECTOR_BYTES = 512

/**
 * `length` bytes of the extent's file at `at`, both multiples of 512, `length` 4096 at most; from the
 * cache where they are there. Valid until the next call. Throws ImageError where the file ends before,
 * SystemError.
 */
export type ReadTable = (at: number, length: number) => Buffer

/** Which sparse extent a file is, by its first bytes. */
export function extentKind(head: Buffer): 'sparse' | 'cowd' | 'sesparse' | undefined {
  const magic = head.toString('latin1', 0, 8)
  if (magic.startsWith('KDMV')) return 'sparse'
  if (magic.startsWith('COWD')) return 'cowd'
  return magic === SESPARSE_MAGIC ? 'sesparse' : undefined
}

const SESPARSE_MAGIC = '\xbe\xba\xfe\xca\0\0\0\0'

export interface ExtentParts {
  readonly store: Store
  /** Tells stores apart in the caches. */
  readonly storeId: number
  readonly readTable: ReadTable
  /** Decompressed grains. */
  readonly grains: ClusterCache
}
