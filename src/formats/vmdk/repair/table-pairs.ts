/** The grain tables of both directories of an extent, read side by side. */
import type { Store } from '../../../io/store.js'
import { Directory } from '../check/directory.js'
import { type GrainLayout, tableBytesOf } from '../layout.js'
import { SECTOR_BYTES } from '../parts.js'
import { isInFile } from '../sparse-header.js'

const SILENT = 0
const ZERO = 1
const ENTRY_BYTES = 4
/** Fewer lost entries than this are judged one by one. */
const MIN_JUNK = 8

/** A table as a directory names it. */
export interface Table {
  /** Where the directory's entry is in the file. */
  readonly entryAt: number
  /** What that says: the table's first sector. */
  readonly sector: number
  /** Whether the table lies in the file; else its words are zeros. */
  readonly isThere: boolean
  /** Of its entries. Valid until the next pair is read. */
  readonly words: Uint32Array
}

/** What entries of an extent's tables mean. Counts are in sectors. */
export class Entries {
  readonly grainSectors: number
  private readonly fileSectors: number
  private readonly wholeFileSectors: number
  private readonly silentMax: number

  constructor(store: Store, layout: GrainLayout) {
    this.grainSectors = layout.grainBytes / SECTOR_BYTES
    this.fileSectors = Math.ceil(store.sizeBytes / SECTOR_BYTES)
    this.wholeFileSectors = Math.floor(store.sizeBytes / SECTOR_BYTES)
    this.silentMax = layout.hasZeroGrains ? ZERO : SILENT
  }

  isPlace(entry: number): boolean {
    return entry > this.silentMax
  }

  isZero(entry: number): boolean {
    return entry !== SILENT && !this.isPlace(entry)
  }

  /** Whether the entry names a grain that begins in the file. */
  isInFile(entry: number): boolean {
    return this.isPlace(entry) && entry < this.fileSectors
  }

  /** Whether the entry names a grain that the file has all of. */
  isWhole(entry: number): boolean {
    return this.isPlace(entry) && entry + this.grainSectors <= this.wholeFileSectors
  }

  /** Whether the file has all grains that the table names. */
  isSound(words: Uint32Array): boolean {
    return words.every(word => !this.isPlace(word) || this.isWhole(word))
  }

  /** Whether most of what the table names is not in the file. */
  isJunk(words: Uint32Array): boolean {
    let places = 0
    let lost = 0
    for (const word of words) {
      if (!this.isPlace(word)) continue
      places++
      if (!this.isInFile(word)) lost++
    }
    return lost >= MIN_JUNK && lost * 2 > places
  }
}

/** Calls `visit` for each entry of the directories, in their order, until it returns false. */
export function eachPair(
  store: Store,
  layout: GrainLayout,
  visit: (index: number, first: Table, redundant: Table) => boolean,
): void {
  const { directoryAt, redundantDirectoryAt = directoryAt, directoryEntries, tableEntries } = layout
  const tableBytes = tableBytesOf(layout)
  const pair = [directoryAt, redundantDirectoryAt].map(
    at => new Directory(store, '', at, directoryEntries, tableBytes),
  ) as [Directory, Directory]
  for (let at = 0; at < directoryEntries; ) {
    const count = pair[0].readEntries(at)
    pair[1].readEntries(at)
    for (const directory of pair) {
      for (let i = 0; i < count; i++) {
        const place = (directory.entries[i] as number) * SECTOR_BYTES
        if (!isInFile(place, tableBytes, store.sizeBytes)) directory.passOver(i)
      }
      directory.readTables(count)
    }
    for (let i = 0; i < count; i++) {
      const [first, redundant] = pair.map(
        (directory): Table => ({
          entryAt: directory.at + (at + i) * ENTRY_BYTES,
          sector: directory.entries[i] as number,
          isThere: !directory.isSkipped(i),
          words: directory.tables.words.subarray(
            i * directory.tables.stride,
            i * directory.tables.stride + tableEntries,
          ),
        }),
      ) as [Table, Table]
      if (!visit(at + i, first, redundant)) return
    }
    at += count
  }
}
