/**
 * Makes the active tables of the new state. COPIED must be set there exactly where a count is 1 (QEMU docs/interop/qcow2.rst,
 * "Cluster mapping"). An L2 table with wrong flags is copied to a new place, because the old state still shows its own.
 */
import type { WritableStore } from '../../../io/store.js'
import { COMPRESSED, COPIED, putEntry } from '../words.js'
import type { NewCounts } from './new-counts.js'
import type { L1Place, References } from './references.js'

export interface ActiveParts {
  readonly store: WritableStore
  readonly references: References
  readonly counts: NewCounts
  /** Is told the index of each L1 entry that names a table. */
  reached(index: number): void
}

/**
 * Returns the active L1 table of the new state: `entries` entries, of which those of `source` name its L2 tables. The counts
 * must be those of the new state.
 *
 * @param holders how many L1 tables get a copied L2 table: the active one, and perhaps that of a new snapshot
 */
export function makeActiveTable(
  { store, references, counts, reached }: ActiveParts,
  source: L1Place,
  entries: number,
  holders: number,
): Buffer {
  const l1 = Buffer.alloc(entries * 8)
  const { clusterBytes } = references
  references.eachTable(source, (oldAt, index) => {
    reached(index)
    const table = references.readL2(oldAt)
    let at = oldAt
    // With a snapshot that holds the same tables, no cluster belongs to the disk alone.
    const hasChanged =
      holders > 1 ? references.clearFlags() : correctFlags(table, references, counts)
    if (hasChanged) {
      const { cluster } = counts.takeRow(clusterBytes)
      at = cluster * clusterBytes
      if (holders > 1) counts.add(cluster, holders - 1)
      counts.add(oldAt / clusterBytes, -holders)
      store.write(table, 0, clusterBytes, at)
    }
    const isCopied = counts.get(at / clusterBytes) === 1
    putEntry(l1, index * 8, at, isCopied ? COPIED : 0, 0)
  })
  return l1
}

/** Returns the same table without the flags, for a snapshot. */
export function withoutFlags(l1: Buffer): Buffer {
  const copy = Buffer.from(l1)
  for (let at = 0; at < copy.length; at += 8) copy[at] = (copy[at] as number) & 0x7f
  return copy
}

/** Corrects the COPIED flags of an L2 table in memory. Returns whether one was wrong. */
function correctFlags(table: Buffer, references: References, counts: NewCounts): boolean {
  let hasChanged = false
  for (let i = 0; i < table.length; i += references.entryBytes) {
    const high = table.readUInt32BE(i)
    const host = references.hostOf(table, i)
    const isPacked = (high & COMPRESSED) !== 0
    // Without a host cluster, the flag means nothing.
    if (host === 0 && !isPacked) continue
    const isCopied = !isPacked && counts.get(host / references.clusterBytes) === 1
    if (isCopied === ((high & COPIED) !== 0)) continue
    table.writeUInt32BE((high ^ COPIED) >>> 0, i)
    hasChanged = true
  }
  return hasChanged
}
