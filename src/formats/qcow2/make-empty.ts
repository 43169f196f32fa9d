import type { WritableStore } from '../../io/store.js'
import type { Qcow2Header } from './header.js'

const ENTRY_BYTES = 8

/**
 * Makes the whole disk unallocated: all entries of the active L1 table become zero. A power cut leaves some of them. What they
 * named is leaked until a repair gives it back.
 */
export function makeEmpty(store: WritableStore, { l1Entries, l1Offset }: Qcow2Header): void {
  const zeros = Buffer.alloc(l1Entries * ENTRY_BYTES)
  store.write(zeros, 0, zeros.length, l1Offset)
  store.sync()
}
