/**
 * Finds L1 and L2 tables that share a cluster with something else. They must not be written: the other content, perhaps data
 * of the disk, would change with them.
 */
import { ImageError } from '../../../errors.js'
import { Census } from '../check/census.js'
import type { Qcow2Structure } from '../check/structure.js'
import { type CellMemory, DATA, EXCLUSIVE } from '../check/window.js'

/** An image with more shared tables is beyond repair. */
const MAX_SHARED = 2 ** 18

/** Returns the places of these tables in the file. */
export function findSharedTables(image: Qcow2Structure, memory: CellMemory): ReadonlySet<number> {
  const census = new Census(image, memory)
  const { window } = census
  const { clusterBytes } = image
  const shared = new Set<number>()
  census.run(undefined, () => {
    for (const { at, entries } of image.l1Tables) {
      const last = Math.min(window.end - 1, Math.floor((at + entries * 8 - 1) / clusterBytes))
      for (let i = Math.max(window.first, at / clusterBytes); i <= last; i++) {
        if (window.referencesTo(i) !== 1) shared.add(at)
      }
    }
    for (const catalog of [census.activeTables, census.snapshotTables]) {
      for (const tables of catalog.parts()) {
        for (let i = 0; i < tables.length; i++) {
          const at = tables.at[i] as number
          const index = Math.floor(at / clusterBytes) - window.first
          if (index < 0 || index >= window.length) continue
          // Two L1 tables may share an L2 table.
          if (((window.cells[index] as number) & (DATA | EXCLUSIVE)) !== 0) shared.add(at)
        }
      }
    }
    if (shared.size > MAX_SHARED) {
      throw new ImageError('CORRUPT', 'its tables overlap, so they cannot be repaired', {
        path: image.store.path,
        hint: 'save its data with qemu-img convert, or restore a copy',
      })
    }
  })
  return shared
}
