/** Changes entries of L1 and L2 tables in place. */
import type { WritableStore } from '../../../io/store.js'
import type { Qcow2Structure, L1Table } from '../check/structure.js'
import { type L2Catalog, type L2Tables, walkL1 } from '../check/l1-walk.js'
import { L2Entry } from '../check/l2-entry.js'
import { L2Reader } from '../check/l2-read.js'
import type { Qcow2Report } from '../check/report.js'

/** The corrected entry, and the message about it. */
export interface Change {
  readonly high: number
  readonly low: number
  readonly message: string
}

export class TableEditor {
  changes = 0
  private readonly reader: L2Reader
  private readonly entry: L2Entry

  constructor(
    private readonly image: Qcow2Structure,
    private readonly store: WritableStore,
    /** The places of tables that share their clusters with something else. */
    private readonly shared: ReadonlySet<number>,
    private readonly report: Qcow2Report,
  ) {
    this.reader = new L2Reader(image)
    this.entry = new L2Entry(image)
  }

  /** @param change returns the correction of an entry that is not 0; undefined if it may stay */
  editL1(
    table: L1Table,
    change: (high: number, low: number, index: number) => Change | undefined,
  ): void {
    const entry = Buffer.alloc(8)
    walkL1(this.image.store, table, (high, low, index) => {
      const wanted = change(high, low, index)
      if (!wanted) return
      const at = table.at + index * 8
      if (this.shared.has(table.at)) {
        this.report.note(
          'error',
          at,
          () => `${table.name} is not repaired, as it shares its cluster`,
        )
        return
      }
      entry.writeUInt32BE(wanted.high, 0)
      entry.writeUInt32BE(wanted.low, 4)
      this.store.write(entry, 0, entry.length, at)
      this.noted(at, wanted.message)
    })
  }

  /**
   * Goes over L2 tables.
   *
   * @param wants reports whether to read a table
   * @param edit changes the words of the entry at word `i`, and returns a description if it changed anything
   */
  editL2(
    catalog: L2Catalog,
    wants: (tables: L2Tables, index: number) => boolean,
    edit: (words: Uint32Array, i: number) => string | undefined,
  ): void {
    const { image } = this
    const step = image.l2EntryBytes / 4
    for (const tables of catalog.parts()) {
      this.reader.read(
        tables,
        i => (tables.at[i] as number) % image.clusterBytes === 0 && wants(tables, i),
        (words, index) => {
          const at = tables.at[index] as number
          const obstacle = this.obstacleOf(words, at)
          let first = -1
          let end = 0
          for (let i = 0; i < words.length; i += step) {
            if (words[i] === 0 && words[i + 1] === 0 && !image.isExtended) continue
            const message = edit(words, i)
            if (message === undefined) continue
            if (first < 0) first = i
            end = i + step
            if (obstacle === undefined) this.noted(at + i * 4, message)
          }
          if (first < 0) return
          if (obstacle === undefined) this.writeWords(words.subarray(first, end), at + first * 4)
          else this.report.note('error', at, () => `the L2 table is not repaired: ${obstacle}`)
        },
      )
    }
  }

  /** Returns why a table must not change. A table with a lost entry may not be a table at all. */
  private obstacleOf(words: Uint32Array, at: number): string | undefined {
    if (this.shared.has(at)) return 'it shares its cluster'
    const { entry, image } = this
    for (let i = 0; i < words.length; i += image.l2EntryBytes / 4) {
      if (words[i] === 0 && words[i + 1] === 0 && !image.isExtended) continue
      entry.decode(words, i)
      if (entry.isLost) return 'it has entries that do not say where their data are'
    }
    return undefined
  }

  private writeWords(words: Uint32Array, at: number): void {
    const bytes = Buffer.alloc(words.length * 4)
    words.forEach((word, i) => {
      bytes.writeUInt32BE(word, i * 4)
    })
    this.store.write(bytes, 0, bytes.length, at)
  }

  private noted(at: number, message: string): void {
    this.changes++
    this.report.note('fix', at, () => message)
  }
}
