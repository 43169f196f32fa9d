import type { WritableStore } from '../../io/store.js'
import { INCOMPATIBLE, type Qcow2Header } from './header.js'
import { Change } from './snapshot/change.js'

const ENTRY_BYTES = 8

/**
 * Makes the whole disk unallocated: it gets an L1 table of zeros. A power cut leaves the old disk or the empty one, and what the
 * old one used is free. Only with an external data file, a power cut may leave some entries, and the tables are leaked.
 */
export function makeEmpty(store: WritableStore, header: Qcow2Header): void {
  const { l1Entries, l1Offset, incompatible } = header
  const zeros = Buffer.alloc(l1Entries * ENTRY_BYTES)
  if ((incompatible & INCOMPATIBLE.externalData) !== 0n) {
    store.write(zeros, 0, zeros.length, l1Offset)
    store.sync()
    return
  }
  Change.run(store, change => {
    const { active, snapshots } = change
    change.refer(active, -1)
    change.forget(active.at, active.entries * ENTRY_BYTES)
    const { sizeBytes } = change.header
    const at = change.place(zeros) || l1Offset
    change.commit(snapshots, { sizeBytes, l1Entries, l1Offset: at })
  })
}
