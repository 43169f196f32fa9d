/**
 * Decides which of the two directories of an extent, or of their tables, is right where they differ.
 *
 * Data that only one of them names are never given up:
 *
 *  (1) If a directory names no table, or junk, and the other one names a sound table, its entry is set: to its old table if
 *      that is still in its place, else to a copy of the sound one.
 *  (2) If the first table names no grain and the redundant one does, the first one gets that grain, if the grain lies in the
 *      file and belongs to nothing else. The same holds if the first one names something outside the file, or something that
 *      belongs to another structure.
 *  (3) A redundant entry is set to the first one if it names nothing, something outside the file, or something that the first
 *      tables name for another grain.
 *  (4) All else is a contradiction that nobody can resolve. Both entries stay.
 */
import type { Store } from '../../../io/store.js'
import { type Patch, PatchedStore } from '../check/patched-store.js'
import { type GrainLayout, tableBytesOf } from '../layout.js'
import { isInFile } from '../sparse-header.js'
import { wholeSectors } from '../grain-tables.js'
import { markTaken, Range } from './claims.js'
import { Entries, eachPair, type Table } from './table-pairs.js'
import { SECTOR_BYTES } from '../../../sector.js'
import { ENTRY_BYTES, UNALLOCATED } from '../entries.js'

/** How many entries are handled in one round: the image decides their number. */
const MAX_ENTRIES = 2 ** 18

/** An entry of a directory that gets a copy of the table at `from`. */
export interface Copy {
  readonly entryAt: number
  readonly from: number
}

export interface Plan {
  /** New words of the first tables and of both directories. */
  readonly patches: readonly Patch[]
  readonly copies: readonly Copy[]
  /** Grains whose redundant entries must stay. The first grain of a table stands for the whole table. */
  readonly kept: ReadonlySet<number>
  /** Whether there may be more to decide after this. */
  readonly isPartial: boolean
}

export interface PlanOptions {
  /** Whether the first directory counts only where the redundant one agrees. */
  readonly distrustsFirst?: boolean
  /** Whether rule (2) holds only for redundant tables whose grains are all in the file, as in reading. */
  readonly needsSound?: boolean
}

/** Makes the plan. Throws SystemError; ImageError if the file becomes shorter meanwhile. */
export function planTables(store: Store, layout: GrainLayout, options: PlanOptions = {}): Plan {
  const { directoryAt, redundantDirectoryAt } = layout
  if (redundantDirectoryAt === undefined || redundantDirectoryAt === directoryAt) return NOTHING
  const directories = planDirectories(store, layout, options)
  const { patches, kept, isPartial } = new EntryPlan(
    planned(store, directories),
    layout,
    options,
  ).made()
  return {
    patches: [...directories.patches, ...patches],
    copies: directories.copies,
    kept: new Set([...directories.kept, ...kept]),
    isPartial: isPartial || directories.isPartial,
  }
}

export const NOTHING: Plan = { patches: [], copies: [], kept: new Set(), isPartial: false }

/** Returns the file as it will be after the plan; instead of copies it has the tables themselves. */
export const planned = (store: Store, { patches, copies }: Plan): Store =>
  new PatchedStore(store, [...patches, ...copies.map(shared)])

/** Makes both directories name one table, as readers see it. */
export const shared = ({ entryAt, from }: Copy): Patch => ({
  at: entryAt,
  value: from / SECTOR_BYTES,
})

/** Returns the new redundant table: a copy of the first one, except the entries that must stay. */
export function redundantWords(
  first: Uint32Array,
  redundant: Uint32Array,
  firstGrain: number,
  kept: ReadonlySet<number>,
): Uint32Array {
  const words = Uint32Array.from(first)
  if (kept.size === 0) return words
  words.forEach((_, k) => {
    if (kept.has(firstGrain + k)) words[k] = redundant[k] as number
  })
  return words
}

/** Applies rule (1). */
function planDirectories(
  store: Store,
  layout: GrainLayout,
  { distrustsFirst = false }: PlanOptions,
): Plan {
  const entries = new Entries(store, layout)
  const patches: Patch[] = []
  const copies: Copy[] = []
  const kept = new Set<number>()
  const lost: { entryAt: number; from: number; old: Range }[] = []
  const tableSectors = tableBytesOf(layout) / SECTOR_BYTES
  const repoint = (directoryAt: number, index: number, bad: Table, good: Table) => {
    const { entryAt } = bad
    const from = good.sector * SECTOR_BYTES
    const at = usualPlace(layout, directoryAt, index)
    const isBorneOut = isTwin(store, layout, at, good.words, entries)
    const old = new Range(-2 - index, at / SECTOR_BYTES, isBorneOut ? tableSectors : 0)
    lost.push({ entryAt, from, old })
  }
  const isStray = ({ sector, isThere }: Table) => sector !== UNALLOCATED && !isThere
  eachPair(store, layout, (index, first, redundant) => {
    const areBlank = first.isBlank && redundant.isBlank
    if (areBlank && !isStray(first) && !isStray(redundant)) return true
    const isGood = (table: Table, other: Table) =>
      table.isThere && !(entries.isJunk(table.words) && entries.isSound(other.words))
    const isFirstGood =
      isGood(first, redundant) &&
      !(distrustsFirst && redundant.isThere && !areTwins(first.words, redundant.words, entries))
    const isRedundantGood = isGood(redundant, first) && entries.isSound(redundant.words)
    if (!isFirstGood && isRedundantGood) {
      // An empty table counts as none.
      if (first.sector !== UNALLOCATED || redundant.words.some(word => word !== UNALLOCATED))
        repoint(layout.directoryAt, index, first, redundant)
    } else if (!isFirstGood && redundant.words.some(word => word !== UNALLOCATED)) {
      kept.add(index * layout.tableEntries)
    } else if (isFirstGood && !isRedundantGood && redundant.sector !== UNALLOCATED) {
      const isLost = !redundant.isThere || entries.isJunk(redundant.words)
      if (isLost && entries.isSound(first.words))
        repoint(layout.redundantDirectoryAt as number, index, redundant, first)
    }
    return lost.length < MAX_ENTRIES
  })
  markTaken(
    store,
    layout,
    lost.flatMap(({ old }) => (old.sectors > 0 ? old : [])),
  )
  for (const { entryAt, from, old } of lost) {
    if (old.sectors > 0 && old.isFree) patches.push({ at: entryAt, value: old.start })
    else copies.push({ entryAt, from })
  }
  return { patches, copies, kept, isPartial: lost.length >= MAX_ENTRIES }
}

/** Returns where programs put the table of a directory's entry: all tables follow their directory. */
function usualPlace(layout: GrainLayout, directoryAt: number, index: number): number {
  const directoryBytes = wholeSectors(layout.directoryEntries * ENTRY_BYTES)
  return directoryAt + directoryBytes + index * tableBytesOf(layout)
}

/** Reports whether the other copy of the table `words` is at `at` of the file. */
function isTwin(
  store: Store,
  layout: GrainLayout,
  at: number,
  words: Uint32Array,
  entries: Entries,
): boolean {
  const bytes = Buffer.from(new ArrayBuffer(tableBytesOf(layout)))
  if (!isInFile(at, bytes.length, store.sizeBytes)) return false
  if (store.read(bytes, 0, bytes.length, at) < bytes.length) return false
  const found = new Uint32Array(bytes.buffer, 0, layout.tableEntries)
  return areTwins(found, words, entries)
}

/** Reports whether two tables may be copies of each other, one of them older. */
function areTwins(one: Uint32Array, other: Uint32Array, entries: Entries): boolean {
  let equal = 0
  for (let k = 0; k < one.length; k++) {
    const [a, b] = [one[k] as number, other[k] as number]
    if (a === b) equal += a === UNALLOCATED ? 0 : 1
    else if (a !== UNALLOCATED && b !== UNALLOCATED) return false
    else if (entries.isPlace(a) && !entries.isInFile(a)) return false
  }
  return equal > 0 || one.every(word => word === UNALLOCATED)
}

/** An entry for which it matters whether others name the same place. */
interface Doubt {
  readonly grain: number
  readonly at: number
  readonly redundant: number
  readonly ofFirst: Range | undefined
  readonly ofRedundant: Range
  /** Whether the first entry means that the grain is zeros. */
  readonly isZeroed: boolean
}

/** Applies rules (2) to (4). */
class EntryPlan {
  private readonly entries: Entries
  private readonly patches: Patch[] = []
  private readonly kept = new Set<number>()
  private readonly doubts: Doubt[] = []

  constructor(
    private readonly store: Store,
    private readonly layout: GrainLayout,
    private readonly options: PlanOptions,
  ) {
    this.entries = new Entries(store, layout)
  }

  made(): Omit<Plan, 'copies'> {
    const { store, layout, patches, kept } = this
    let isPartial = false
    eachPair(store, layout, (index, first, redundant) => {
      if (first.isThere && redundant.isThere && first.sector !== redundant.sector) {
        this.compare(index, first, redundant)
      }
      isPartial = patches.length + kept.size + this.doubts.length >= MAX_ENTRIES
      return !isPartial
    })
    const ranges = this.doubts.flatMap(({ ofFirst, ofRedundant }) =>
      ofFirst ? [ofFirst, ofRedundant] : [ofRedundant],
    )
    markTaken(store, layout, ranges)
    for (const doubt of this.doubts) this.decide(doubt)
    return { patches, kept, isPartial }
  }

  private compare(index: number, first: Table, redundant: Table): void {
    const { entries, layout } = this
    if (first.isBlank && redundant.isBlank) return
    const table = first.sector * SECTOR_BYTES
    const isTrusted = !this.options.needsSound || entries.isSound(redundant.words)
    for (let k = 0; k < layout.tableEntries; k++) {
      const said = first.words[k] as number
      const other = redundant.words[k] as number
      if (said === other) continue
      const grain = index * layout.tableEntries + k
      const at = table + k * ENTRY_BYTES
      const isLost = entries.isPlace(said) && !entries.isInFile(said)
      if (entries.isZero(other)) {
        if (said !== UNALLOCATED && !isLost) continue
        if (isTrusted) this.patches.push({ at, value: other })
        else this.kept.add(grain)
      } else if (other === UNALLOCATED || !entries.isInFile(other)) {
        if (isLost) this.kept.add(grain)
      } else if (!entries.isWhole(other) || !isTrusted) this.kept.add(grain)
      else this.doubt(grain, at, said, other)
    }
  }

  private doubt(grain: number, at: number, said: number, redundant: number): void {
    const { entries } = this
    const rangeOf = (sector: number) => new Range(grain, sector, entries.grainSectors)
    this.doubts.push({
      grain,
      at,
      redundant,
      ofFirst: entries.isInFile(said) ? rangeOf(said) : undefined,
      ofRedundant: rangeOf(redundant),
      isZeroed: entries.isZero(said),
    })
  }

  private decide({ grain, at, redundant, ofFirst, ofRedundant, isZeroed }: Doubt): void {
    // A grain was zeroed and then written again: a power cut may leave its new place in one table only.
    if (isZeroed && this.options.needsSound && this.layout.isUnclean) return
    // Readers show this grain, and would show another one if the redundant entry changed.
    if (this.options.needsSound && !ofFirst && !isZeroed && ofRedundant.isTaken) {
      this.kept.add(grain)
      return
    }
    const isOwn = ofFirst === undefined ? isZeroed : !ofFirst.isTaken
    if (ofRedundant.isFree && !isOwn) this.patches.push({ at, value: redundant })
    else if (!ofRedundant.isTaken || ofFirst?.isTaken) this.kept.add(grain)
  }
}
