/** Compares what two L1 tables map, without reading data. */
import type { Store } from '../../../io/store.js'
import { COPIED } from '../words.js'
import { readWhole } from './old-counts.js'
import type { L1Place, References } from './references.js'

/**
 * Reports whether both tables map the same host clusters, so that their disks read the same. A false answer does not say that
 * they differ.
 */
export function showsTheSame(
  store: Store,
  references: References,
  one: L1Place,
  other: L1Place,
): boolean {
  const a = tablesOf(references, one)
  const b = tablesOf(references, other)
  const { clusterBytes, entryBytes } = references
  const first = Buffer.alloc(clusterBytes)
  const second = Buffer.alloc(clusterBytes)
  const areEqual = (oneAt: number, otherAt: number) => {
    for (const [at, table] of [
      [oneAt, first],
      [otherAt, second],
    ] as const) {
      readWhole(store, table, at)
      // Flags say who may write a cluster, not what it shows.
      for (let i = 0; i < clusterBytes; i += entryBytes) {
        table.writeUInt32BE((table.readUInt32BE(i) & ~COPIED) >>> 0, i)
      }
    }
    return first.equals(second)
  }
  const isSame = (at: number, index: number) => {
    const otherAt = b[index] ?? 0
    return at === otherAt || areEqual(at, otherAt)
  }
  return a.length === b.length && a.every(isSame)
}

/** Returns the places of the L2 tables, by index; 0 where there is none. */
function tablesOf(references: References, l1: L1Place): Float64Array {
  const tables = new Float64Array(l1.entries)
  references.eachTable(l1, (at, index) => {
    tables[index] = at
  })
  return tables
}
