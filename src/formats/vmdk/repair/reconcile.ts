/**
 * Decides what is right where the two directories of an extent, or their tables, say different things.
 *
 * No data that only one of them names is given up:
 *
 *  (1) Where a directory names no table, or one that is junk, and the other one a sound table, its entry
 *      names its old table again if that is still in its place, else a copy of the sound one.
 *  (2) Where the first table names no grain and the redundant one does, it names that grain, too, if the grain
 *      lies in the file and belongs to nothing else. The same where what the first one names is not in the
 *      file, or belongs to something else.
 *  (3) A redundant entry follows the first one where it names nothing, nothing in the file, or what the first
 *      tables name for another grain.
 *  (4) All else is a contradiction that nobody can resolve. Both entries stay as they are.
 */
import type { Store } from '../../../io/store.js'
import { type Patch, PatchedStore } from '../check/patched-store.js'
import { type GrainLayout, tableBytesOf } from '../layout.js'
import { SECTOR_BYTES } from '../parts.js'
import { isInFile } from '../sparse-header.js'
import { wholeSectors } from '../grain-tables.js'
import { markTaken, Range } from './claims.js'
import { Entries, eachPair, type Table } from './table-pairs.js'

const ENTRY_BYTES = 4
const SILENT = 0
/** Entries that are looked at in one round: their number is the image's word. */
const MAX_ENTRIES = 2 ** 18

/** An entry of a directory that is to name a copy of the table at `from`. */
export interface Copy {
  readonly entryAt: number
  readonly from: number
}

export interface Plan {
  /** Words of the first tables and of both directories. */
  readonly patches: readonly Patch[]
  readonly copies: readonly Copy[]
  /** Grains whose redundant entries must stay as they are; the first one of a table stands for all of it. */
  readonly kept: ReadonlySet<number>
  /** Whether there may be more to decide once this is done. */
  readonly isPartial: boolean
}

export interface PlanOptions {
  /** What the first directory says counts only where the redundant one bears it out. */
  readonly distrustsFirst?: boolean
  /** Rule (2) holds only for redundant tables that name nothing that is not in the file, as when reading. */
  readonly needsSound?: boolean
}

/** Throws SystemError; ImageError where the file becomes shorter meanwhile. */
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

/** The file as it will be once the plan is carried out, except that copies are the tables themselves. */
export const planned = (store: Store, { patches, copies }: Plan): Store =>
  new PatchedStore(store, [...patches, ...copies.map(shared)])

/** Both directories name one table, as readers have it. */
export const shared = ({ entryAt, from }: Copy): Patch => ({
  at: entryAt,
  value: from / SECTOR_BYTES,
})

/** What the redundant table is to be: a copy of the first one, but for the entries that must stay. */
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

/** Rule (1). */
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
  const isStray = ({ sector, isThere }: Table) => sector !== SILENT && !isThere
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
      // A table of nothing is as good as none.
      if (first.sector !== SILENT || redundant.words.some(word => word !== SILENT))
        repoint(layout.directoryAt, index, first, redundant)
    } else if (!isFirstGood && redundant.words.some(word => word !== SILENT)) {
      kept.add(index * layout.tableEntries)
    } else if (isFirstGood && !isRedundantGood && redundant.sector !== SILENT) {
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

/** Where programs put the table of a directory's entry: all of them stand behind their directory. */
function usualPlace(layout: GrainLayout, directoryAt: number, index: number): number {
  const directoryBytes = wholeSectors(layout.directoryEntries * ENTRY_BYTES)
  return directoryAt + directoryBytes + index * tableBytesOf(layout)
}

/** Whether what is at `at` of the file is the other copy of the table `words`. */
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

/** Whether two tables may be copies of each other, one of which lags. */
function areTwins(one: Uint32Array, other: Uint32Array, entries: Entries): boolean {
  let equal = 0
  for (let k = 0; k < one.length; k++) {
    const [a, b] = [one[k] as number, other[k] as number]
    if (a === b) equal += a === SILENT ? 0 : 1
    else if (a !== SILENT && b !== SILENT) return false
    else if (entries.isPlace(a) && !entries.isInFile(a)) return false
  }
  return equal > 0 || one.every(word => word === SILENT)
}

/** An entry of which it counts whether others name what it names. */
interface Doubt {
  readonly grain: number
  readonly at: number
  readonly redundant: number
  readonly ofFirst: Range | undefined
  readonly ofRedundant: Range
  /** Whether the first entry says that the grain is zeros. */
  readonly isZeroed: boolean
}

/** Rules (2) to (4). */
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
        if (said !== SILENT && !isLost) continue
        if (isTrusted) this.patches.push({ at, value: other })
        else this.kept.add(grain)
      } else if (other === SILENT || !entries.isInFile(other)) {
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
    // A grain that is written once more after it was zeroed: a cut may leave its new place in one table.
    if (isZeroed && this.options.needsSound && this.layout.isUnclean) return
    // Readers show this grain, and would show another one once the redundant entry follows.
    if (this.options.needsSound && !ofFirst && !isZeroed && ofRedundant.isTaken) {
      this.kept.add(grain)
      return
    }
    const isOwn = ofFirst === undefined ? isZeroed : !ofFirst.isTaken
    if (ofRedundant.isFree && !isOwn) this.patches.push({ at, value: redundant })
    else if (!ofRedundant.isTaken || ofFirst?.isTaken) this.kept.add(grain)
  }
}
