/** Reads many grain tables at once: mostly they follow one another in the file, in the order of their directory. */
import { ImageError } from '../../../errors.js'
import type { Store } from '../../../io/store.js'
import { SECTOR_BYTES } from '../../../sector.js'
import { ENTRY_BYTES } from '../entries.js'

/** How much of the tables is read at once. */
const BATCH_BYTES = 256 * 1024

/** Returns how many tables of that size are read at once. */
export const batchOf = (tableBytes: number): number =>
  Math.max(1, Math.floor(BATCH_BYTES / tableBytes))

export class TableReader {
  /** The number of words from the start of a table to the start of the next. */
  readonly stride: number
  /** The entries of the last tables that were read. vimgfs runs only on little-endian machines. */
  readonly words: Uint32Array
  private readonly bytes: Buffer
  /** Whether `bytes` is all zeros: filling it again for tables that were never written would take most of the time. */
  private areZeros = true

  /** @param tableBytes the size of a table, in whole sectors */
  constructor(
    private readonly store: Store,
    private readonly tableBytes: number,
  ) {
    this.stride = tableBytes / ENTRY_BYTES
    this.bytes = Buffer.from(new ArrayBuffer(batchOf(tableBytes) * tableBytes))
    this.words = new Uint32Array(this.bytes.buffer)
  }

  /**
   * Reads the tables that begin at the first `count` of `sectors`; a table at 0 is all zeros. Returns whether there may be an
   * entry other than 0. Throws ImageError if the file ends within a table, SystemError.
   */
  read(sectors: Uint32Array, count: number): boolean {
    const { bytes, tableBytes, areZeros } = this
    let hasEntries = false
    for (let i = 0; i < count; ) {
      const sector = sectors[i] as number
      const step = sector === 0 ? 0 : tableBytes / SECTOR_BYTES
      let end = i + 1
      while (end < count && sectors[end] === sector + (end - i) * step) end++
      const [start, length] = [i * tableBytes, (end - i) * tableBytes]
      if (sector === 0 || this.isHole(sector * SECTOR_BYTES, length)) {
        if (!areZeros) bytes.fill(0, start, start + length)
      } else {
        this.fill(start, length, sector * SECTOR_BYTES)
        hasEntries = true
      }
      i = end
    }
    if (!hasEntries && !areZeros) bytes.fill(0)
    this.areZeros = !hasEntries
    return hasEntries
  }

  /** Reports whether the first `entries` entries of table `index` equal those of the same table of `other`. */
  isEqual(other: TableReader, index: number, entries: number): boolean {
    const start = index * this.tableBytes
    const end = start + entries * ENTRY_BYTES
    return this.bytes.compare(other.bytes, start, end, start, end) === 0
  }

  private isHole(at: number, length: number): boolean {
    const next = this.store.nextData(at)
    return next < 0 || next >= at + length
  }

  private fill(start: number, length: number, at: number): void {
    if (this.store.read(this.bytes, start, length, at) === length) return
    throw new ImageError('CORRUPT', 'the file has become shorter since it was opened', {
      path: this.store.path,
    })
  }
}
