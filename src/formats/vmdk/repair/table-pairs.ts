/** Reads the grain tables of both directories of an extent side by side. */
import type { Store } from '../../../io/store.js'
import { Directory } from '../check/directory.js'
import { type GrainLayout, tableBytesOf } from '../layout.js'
import { isInFile } from '../sparse-header.js'
import { SECTOR_BYTES } from '../../../sector.js'
import { ENTRY_BYTES, noGrainMax, UNALLOCATED } from '../entries.js'

/** Fewer lost entries than this are examined one by one. */
const MIN_JUNK = 8

/** A table as a directory names it. */
export interface Table {
  /** The place of the directory's entry in the file. */
  readonly entryAt: number
  /** The value of the entry: the table's first sector. */
  readonly sector: number
  /** Whether the table lies in the file. If not, its words are zeros. */
  readonly isThere: boolean
  /** Whether all of its words are known to be zeros. */
  readonly isBlank: boolean
  /** The words of its entries. Valid until the next pair is read. */
  readonly words: Uint32Array
}

/** Decides what entries of an extent's tables mean. Counts are in sectors. */
export class Entries {
  readonly grainSectors: number
  private readonly fileSectors: number
  private readonly wholeFileSectors: number
  private readonly noGrainMax: number

  constructor(store: Store, layout: GrainLayout) {
    this.grainSectors = layout.grainBytes / SECTOR_BYTES
    this.fileSectors = Math.ceil(store.sizeBytes / SECTOR_BYTES)
    this.wholeFileSectors = Math.floor(store.sizeBytes / SECTOR_BYTES)
    this.noGrainMax = noGrainMax(layout)
  }

  isPlace(entry: number): boolean {
    return entry > this.noGrainMax
  }

  isZero(entry: number): boolean {
    return entry !== UNALLOCATED && !this.isPlace(entry)
  }

  /** Reports whether the entry names a grain that begins in the file. */
  isInFile(entry: number): boolean {
    return this.isPlace(entry) && entry < this.fileSectors
  }

  /** Reports whether the entry names a grain that is completely in the file. */
  isWhole(entry: number): boolean {
    return this.isPlace(entry) && entry + this.grainSectors <= this.wholeFileSectors
  }

  /** Reports whether the file has all grains that the table names. */
  isSound(words: Uint32Array): boolean {
    return words.every(word => !this.isPlace(word) || this.isWhole(word))
  }

  /** Reports whether most grains that the table names are not in the file. */
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

/**
 * Calls `visit` for each entry that at least one of the directories has, in order, until it returns false. For the other
 * entries, which may be millions, it calls `absent` with the first one and the number of a run.
 */
export function eachPair(
  store: Store,
  layout: GrainLayout,
  visit: (index: number, first: Table, redundant: Table) => boolean,
  absent: (index: number, count: number) => boolean = () => true,
): void {
  const { directoryAt, redundantDirectoryAt = directoryAt, directoryEntries } = layout
  const open = (at: number) => new PairedDirectory(store, layout, at)
  const first = open(directoryAt)
  const redundant = redundantDirectoryAt === directoryAt ? first : open(redundantDirectoryAt)
  for (let at = 0; at < directoryEntries; ) {
    const named = Math.min(first.skipHole(at), redundant.skipHole(at))
    if (named > at && !absent(at, named - at)) return
    at = named
    if (at >= directoryEntries) return
    const count = first.read(at)
    if (redundant !== first) redundant.read(at)
    for (let i = 0; i < count; ) {
      let end = i
      while (end < count && first.lacks(end) && redundant.lacks(end)) end++
      if (end > i && !absent(at + i, end - i)) return
      if (end < count && !visit(at + end, first.table(end), redundant.table(end))) return
      i = end + 1
    }
    at += count
  }
}

class PairedDirectory {
  private readonly directory: Directory
  private readonly tableBytes: number
  private first = 0
  private isBlank = true

  constructor(
    private readonly store: Store,
    private readonly layout: GrainLayout,
    private readonly at: number,
  ) {
    this.tableBytes = tableBytesOf(layout)
    this.directory = new Directory(store, '', at, layout.directoryEntries, this.tableBytes)
  }

  /** Returns the start of the first batch from `first` on that may name a table. */
  skipHole(first: number): number {
    return this.directory.skipHole(first)
  }

  /** Reads a batch of entries, and their tables. Returns how many. */
  read(first: number): number {
    const { directory, store, tableBytes } = this
    const count = directory.readEntries(first)
    for (let i = 0; i < count; i++) {
      const place = (directory.entries[i] as number) * SECTOR_BYTES
      if (!isInFile(place, tableBytes, store.sizeBytes)) directory.passOver(i)
    }
    this.first = first
    this.isBlank = !directory.readTables(count)
    return count
  }

  lacks(i: number): boolean {
    return this.directory.entries[i] === UNALLOCATED
  }

  table(i: number): Table {
    const { directory, layout, at, first, isBlank } = this
    const { words, stride } = directory.tables
    return {
      entryAt: at + (first + i) * ENTRY_BYTES,
      sector: directory.entries[i] as number,
      isThere: !directory.isSkipped(i),
      isBlank,
      words: words.subarray(i * stride, i * stride + layout.tableEntries),
    }
  }
}
