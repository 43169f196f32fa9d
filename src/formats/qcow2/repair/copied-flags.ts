/** Corrects the COPIED flags of the active tables: they are set exactly where the image's count is 1. */
import type { WritableStore } from '../../../io/store.js'
import { Census } from '../check/census.js'
import type { Qcow2Structure } from '../check/structure.js'
import type { L2Tables } from '../check/l1-walk.js'
import { L2Entry } from '../check/l2-entry.js'
import type { Qcow2Report } from '../check/report.js'
import { type CellMemory, COUNTED_ONCE, UNKNOWN } from '../check/window.js'
import { COPIED, hostOffset } from '../words.js'
import { findSharedTables } from './shared-tables.js'
import { TableEditor } from './table-editor.js'

/** Returns how many flags it changed. The counts must be right. */
export function fixCopiedFlags(
  image: Qcow2Structure,
  store: WritableStore,
  report: Qcow2Report,
  memory: CellMemory,
): number {
  const shared = findSharedTables(image, memory)
  const census = new Census(image, memory)
  const editor = new TableEditor(image, store, shared, report)
  const { blocks, window } = census
  const { clusterBytes, clusters } = image
  const message = (isCopied: boolean, at: number) =>
    `the COPIED flag of the entry that names ${at} is ${isCopied ? 'set' : 'cleared'}`

  for (const table of image.l1Tables.filter(({ isActive }) => isActive)) {
    editor.editL1(table, (high, low) => {
      const at = hostOffset(high, low)
      const count = blocks.get(Math.floor(at / clusterBytes))
      const isCopied = count === 1
      if (at === 0 || count < 0 || isCopied === ((high & COPIED) !== 0)) return undefined
      return { high: (high ^ COPIED) >>> 0, low, message: message(isCopied, at) }
    })
  }

  const entry = new L2Entry(image)
  /** Returns what the flag must be; undefined if the cluster is in another window, or if that is unknown. */
  const wanted = (cluster: number): boolean | undefined => {
    if (image.isExternal) return window.first === 0 ? true : undefined
    const index = cluster - window.first
    if (index >= 0 && index < window.length) {
      const cell = window.cells[index] as number
      return (cell & UNKNOWN) !== 0 ? undefined : (cell & COUNTED_ONCE) !== 0
    }
    if (cluster <= clusters || window.first > 0) return undefined
    const count = blocks.get(cluster)
    return count < 0 ? undefined : count === 1
  }
  const reaches = ({ lowest, highest }: L2Tables, i: number) =>
    window.first === 0 ||
    !((highest[i] as number) < window.first || (lowest[i] as number) >= window.end)
  census.run(undefined, () => {
    editor.editL2(census.activeTables, reaches, (words, i) => {
      entry.decode(words, i)
      if (entry.isCompressed || !entry.hasHost) return undefined
      const isCopied = wanted(Math.floor(entry.at / clusterBytes))
      if (isCopied === undefined || isCopied === entry.isCopied) return undefined
      words[i] = (entry.high ^ COPIED) >>> 0
      return message(isCopied, entry.at)
    })
  })
  return editor.changes
}
