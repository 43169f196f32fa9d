/** Scans grain directories, as far as opening an extent needs it. */
import type { Store } from '../../io/store.js'
import { SECTOR_BYTES } from '../../sector.js'
import { ENTRY_BYTES } from './entries.js'

const SCAN_BYTES = 64 * 1024
/** The most tables that are read to see whether they have entries. */
const MAX_LOOKED_AT = 256

/** Returns how many entries of the directory at `at` name a table that is not in the file. */
export function countStrays(
  store: Store,
  at: number,
  entries: number,
  isTable: (at: number) => boolean,
): number {
  let strays = 0
  const isWhole = eachPart([at], entries, store, ([part], count) => {
    for (let i = 0; i < count; i++) {
      const sector = (part as Buffer).readUInt32LE(i * ENTRY_BYTES)
      if (sector !== 0 && !isTable(sector * SECTOR_BYTES)) strays++
    }
  })
  return isWhole ? strays : entries
}

/** Reports whether only the redundant directory names some table that has entries. */
export function hasLostTables(
  store: Store,
  [directoryAt, redundantAt]: readonly [number, number],
  entries: number,
  bytes: number,
  isTable: (at: number) => boolean,
): boolean {
  const table = Buffer.alloc(bytes)
  let looked = 0
  let isLost = false
  eachPart([directoryAt, redundantAt], entries, store, ([first, other], count) => {
    for (let i = 0; i < count && !isLost; i++) {
      if ((first as Buffer).readUInt32LE(i * ENTRY_BYTES) !== 0) continue
      const at = (other as Buffer).readUInt32LE(i * ENTRY_BYTES) * SECTOR_BYTES
      if (!isTable(at)) continue
      store.read(table, 0, bytes, at)
      isLost = ++looked > MAX_LOOKED_AT || table.some(byte => byte !== 0)
    }
  })
  return isLost
}

/**
 * Reads directories in parallel, part by part, and visits the parts where the last directory names any table. Returns whether
 * the file contains all of them.
 */
function eachPart(
  places: readonly number[],
  entries: number,
  store: Store,
  visit: (parts: readonly Buffer[], count: number) => void,
): boolean {
  const size = Math.min(SCAN_BYTES, entries * ENTRY_BYTES)
  const parts = places.map(() => Buffer.alloc(size))
  const last = parts.at(-1) as Buffer
  const zeros = Buffer.alloc(size)
  for (let done = 0; done < entries * ENTRY_BYTES; done += size) {
    const wanted = Math.min(size, entries * ENTRY_BYTES - done)
    const isWhole = parts.every((part, i) => {
      return store.read(part, 0, wanted, (places[i] as number) + done) === wanted
    })
    if (!isWhole) return false
    if (last.compare(zeros, 0, wanted, 0, wanted) !== 0) visit(parts, wanted / ENTRY_BYTES)
  }
  return true
}
