/**
 * Repairing a VMDK image: the hosted sparse and the COWD extents of it that may be written. Compressed,
 * seSparse and flat extents are never touched, nor is a descriptor.
 *
 * No byte of the disk reads differently afterwards: a damaged entry takes what its redundant one says,
 * which is what is read for it, and all else that is changed is what does not count. Where things lie
 * over each other nothing is changed at all: writing the one would write the other.
 *
 * The order, each step on the disk before the next, so that a power cut in between leaves nothing worse:
 *
 *  (1) Damaged entries of the first tables, and a next free sector that is too low, are made right.
 *  (2) Redundant tables are made equal to the first ones, if nothing else is damaged any more: else what
 *      they say may still be of use.
 *  (3) Space is given back, and only where nothing was damaged: what nothing names any more may be what
 *      was lost.
 *  (4) The mark that the extent is open is taken away, if it has no corruption any more.
 */
import type { Store, WritableStore } from '../../io/store.js'
import { type CheckOptions, type RepairResult, Report } from '../check/report.js'
import { type CheckedExtent, checkExtents, type ExtentCounts, speaker } from './check.js'
import { type Patch, PatchedStore } from './check/patched-store.js'
import { isTail, reclaimable } from './check/space.js'
import { Directory } from './check/directory.js'
import { readCowdHeader } from './cowd.js'
import { type GrainSink, inspectGrains } from './grain-check.js'
import type { ExtentLayout } from './image.js'
import { type GrainLayout, grainLayout, tableBytesOf } from './layout.js'
import { SECTOR_BYTES } from './parts.js'
import { isInFile, readSparseHeader } from './sparse-header.js'

export interface RepairedExtent extends CheckedExtent {
  readonly store: WritableStore | undefined
  /** Why it may not be written. */
  readonly obstacle: string | undefined
}

/**
 * Repairs the image: `leaks` makes lagging redundant tables equal to the first ones and gives back space,
 * `all` also makes right what may cost data. Throws SystemError where a file cannot be read or written,
 * ImageError where it becomes shorter meanwhile.
 */
export function repairVmdk(
  extents: readonly RepairedExtent[],
  what: 'leaks' | 'all',
  options: CheckOptions = {},
): RepairResult {
  const before = new Report()
  const changes = new Report()
  const counts = checkExtents(extents, before, options)
  const repaired = new Set<Store>()
  extents.forEach((extent, i) => {
    const { store } = extent
    if (!store || repaired.has(store)) return
    repaired.add(store)
    const say = speaker(extents, store)
    const repair = new Repair(extent, store, what, (kind, at, message) =>
      changes.note(kind, at, say(message)),
    )
    repair.run(counts[i] as ExtentCounts)
  })
  const isChanged = changes.findings.some(({ kind }) => kind === 'fix')
  const after = isChanged ? new Report() : before
  if (isChanged) checkExtents(extents.map(readAgain), after, options)
  return { before, after, changes: changes.findings, changesLeftOut: changes.findingsLeftOut }
}

/** With what its header says now. */
function readAgain(extent: RepairedExtent): RepairedExtent {
  return extent.store ? { ...extent, layout: layoutNow(extent.store, extent.layout) } : extent
}

function layoutNow(store: Store, layout: ExtentLayout): ExtentLayout {
  if (layout.kind === 'sparse') return { kind: 'sparse', header: readSparseHeader(store) }
  if (layout.kind === 'cowd') return { kind: 'cowd', header: readCowdHeader(store) }
  return layout
}

type Note = (kind: 'fix' | 'error', at: number, message: () => string) => void

const ENTRY_BYTES = 4
/** An entry that names nothing. */
const SILENT = 0
/** One that says that the grain is zeros, where the header allows it. */
const ZERO = 1

/** Entries that are mended at once: their number is the image's word. */
const MAX_PATCHES = 65536

const OVERLAP =
  'nothing of it is changed: things lie over each other, and writing one would write the other'
const LOST_DIRECTORY = 'nothing of it is changed: one of its two grain directories is damaged'
const LOST_TABLE = 'nothing of it is changed: a table is missing, and nobody knows what it names'
const KEPT =
  'space is kept: what nothing names may be what was lost; it is given back once nothing is damaged'

class Repair {
  private readonly layout: GrainLayout | undefined

  constructor(
    private readonly extent: RepairedExtent,
    private readonly store: WritableStore,
    private readonly what: 'leaks' | 'all',
    private readonly note: Note,
  ) {
    this.layout = grainLayout(extent.layout)
  }

  run(found: ExtentCounts): void {
    const { layout, what } = this
    if (found.corruptions + found.leaks === 0 && !layout?.isUnclean) return
    if (!layout) {
      this.refuse('an extent of this kind is not repaired')
      return
    }
    const obstacle = this.obstacle()
    if (obstacle !== undefined) {
      this.refuse(obstacle)
      return
    }
    // What only redundant tables name is theirs to lose, as after a crash.
    const shape = what === 'all' ? { ...layout, isUnclean: true } : layout
    const damages = what === 'all' ? this.mend(shape) : found.corruptions
    if (damages !== 0) {
      if (damages !== undefined && found.leaks > 0) this.refuse(KEPT)
      return
    }
    const hasSpace = this.copyTables(shape)
    if (found.corruptions === 0) this.giveBack(shape)
    else if (hasSpace) this.refuse(KEPT)
    if (layout.isUnclean) this.close(layout)
  }

  /** Why nothing of the extent may be changed, whatever its tables say. */
  private obstacle(): string | undefined {
    const { layout, obstacle } = this.extent
    const isLost = layout.kind === 'sparse' && layout.header.lacksDirectory
    return obstacle ?? (isLost ? LOST_DIRECTORY : undefined)
  }

  private refuse(why: string): void {
    this.note('error', 0, () => why)
  }

  /**
   * Step (1). How much damage is left, redundant tables that contradict aside; undefined where nothing may
   * be written.
   */
  private mend(layout: GrainLayout): number | undefined {
    const patches = this.patches(layout)
    const found = inspected(new PatchedStore(this.store, patches), layout)
    // What an unknown table names may lie where something is written.
    const obstacle = found.overlaps > 0 ? OVERLAP : found.tables > 0 ? LOST_TABLE : undefined
    if (obstacle !== undefined) {
      this.refuse(obstacle)
      return undefined
    }
    for (const { at, value } of patches) {
      writeWord(this.store, value, at)
      this.note('fix', at, () => 'the damaged entry is what the redundant one is')
    }
    if (patches.length === MAX_PATCHES)
      this.refuse('there may be more damaged entries: repair it again')
    const isRaised = this.raiseFreeSector(layout, found.endBytes)
    if (patches.length > 0 || isRaised) this.store.sync()
    return found.damages - Number(isRaised)
  }

  /** What redundant entries say where the first ones name what is not in the file. */
  private patches(layout: GrainLayout): Patch[] {
    const { directoryAt, redundantDirectoryAt, directoryEntries } = layout
    if (redundantDirectoryAt === undefined || redundantDirectoryAt === directoryAt) return []
    const [first, redundant] = [directoryAt, redundantDirectoryAt].map(
      at => new Directory(this.store, '', at, directoryEntries, tableBytesOf(layout)),
    ) as [Directory, Directory]
    const patches: Patch[] = []
    for (let at = 0; at < directoryEntries && patches.length < MAX_PATCHES; ) {
      const count = first.readEntries(at)
      redundant.readEntries(at)
      for (const directory of [first, redundant]) this.skipMissing(directory, count, layout)
      if (first.readTables(count) && redundant.readTables(count)) {
        for (let i = 0; i < count; i++) this.patchTable(first, redundant, i, layout, patches)
      }
      at += count
    }
    return patches
  }

  private skipMissing(directory: Directory, count: number, layout: GrainLayout): void {
    for (let i = 0; i < count; i++) {
      const at = (directory.entries[i] as number) * SECTOR_BYTES
      if (!isInFile(at, tableBytesOf(layout), this.store.sizeBytes)) directory.passOver(i)
    }
  }

  private patchTable(
    first: Directory,
    redundant: Directory,
    i: number,
    { tableEntries, grainBytes, hasZeroGrains }: GrainLayout,
    patches: Patch[],
  ): void {
    if (first.wanted[i] === SILENT || redundant.wanted[i] === SILENT) return
    const { sizeBytes } = this.store
    const start = i * first.tables.stride
    const table = (first.wanted[i] as number) * SECTOR_BYTES
    for (let k = 0; k < tableEntries && patches.length < MAX_PATCHES; k++) {
      const said = (first.tables.words[start + k] as number) * SECTOR_BYTES
      const value = redundant.tables.words[start + k] as number
      if (said < sizeBytes || value === SILENT) continue
      const isZero = hasZeroGrains && value === ZERO
      // Of one that is cut off some may be read; it stays as it is.
      if (!isZero && value * SECTOR_BYTES + grainBytes > sizeBytes) continue
      patches.push({ at: table + k * ENTRY_BYTES, value })
    }
  }

  private raiseFreeSector({ freeSectorAt }: GrainLayout, endBytes: number): boolean {
    if (freeSectorAt === undefined) return false
    const field = Buffer.alloc(4)
    this.store.read(field, 0, field.length, freeSectorAt)
    const sector = endBytes / SECTOR_BYTES
    if (field.readUInt32LE() >= sector || sector >= 2 ** 32) return false
    writeWord(this.store, sector, freeSectorAt)
    this.note('fix', freeSectorAt, () => `the next grain is to go to sector ${sector}`)
    return true
  }

  /** Step (2), where nothing else is damaged; returns whether there is space that nothing uses. */
  private copyTables(layout: GrainLayout): boolean {
    const { store } = this
    const bytes = Buffer.alloc(tableBytesOf(layout))
    let hasSpace = false
    let isChanged = false
    // Nothing lies over anything, so what is written here is not what is walked.
    inspectGrains(store, layout, {
      ...IGNORE,
      disagreement: (at, from) => {
        store.read(bytes, 0, bytes.length, from)
        store.write(bytes, 0, bytes.length, at)
        isChanged = true
        this.note('fix', at, () => `the redundant table is what the first one is, at ${from}`)
      },
      surplusTable: at => {
        writeWord(store, SILENT, at)
        isChanged = true
        this.note('fix', at, () => 'the redundant directory names no table, as the first one')
      },
      unused: (at, length) => {
        hasSpace ||= reclaimable(this.extent, store, at, length) > 0
      },
    })
    if (isChanged) store.sync()
    return hasSpace
  }

  /** Step (3). */
  private giveBack(layout: GrainLayout): void {
    const { store } = this
    let end = store.sizeBytes
    let isChanged = false
    inspectGrains(store, layout, {
      ...IGNORE,
      unused: (at, bytes) => {
        if (reclaimable(this.extent, store, at, bytes) === 0) return
        if (isTail(this.extent, store, at + bytes)) end = at
        else if (store.punch(at, bytes)) {
          isChanged = true
          this.note('fix', at, () => `${bytes} bytes that nothing uses are a hole`)
        } else {
          const what = `${bytes} bytes that nothing uses stay: the file system makes no holes`
          this.note('error', at, () => what)
        }
      },
    })
    if (end < store.sizeBytes) {
      const bytes = store.sizeBytes - end
      store.truncate(end)
      isChanged = true
      this.note('fix', end, () => `${bytes} bytes that nothing uses are cut off`)
    }
    if (isChanged) store.sync()
  }

  /** Step (4). */
  private close({ uncleanAt, uncleanBytes }: GrainLayout): void {
    this.store.write(Buffer.alloc(uncleanBytes), 0, uncleanBytes, uncleanAt)
    this.store.sync()
    this.note('fix', uncleanAt, () => 'it is marked as closed cleanly')
  }
}

const IGNORE: GrainSink = { corruption: () => {}, disagreement: () => {} }

/** What is damaged in an extent, redundant tables that contradict aside, and where what it uses ends. */
function inspected(store: Store, layout: GrainLayout) {
  const { directoryAt, redundantDirectoryAt = directoryAt, directoryEntries } = layout
  const found = { damages: 0, overlaps: 0, tables: 0, endBytes: 0 }
  const isIn = (directory: number, at: number) =>
    at >= directory && at < directory + directoryEntries * ENTRY_BYTES
  inspectGrains(store, layout, {
    ...IGNORE,
    corruption: (at, _message, isOverlap) => {
      found.damages++
      if (isOverlap) found.overlaps++
      if (isIn(directoryAt, at) || isIn(redundantDirectoryAt, at)) found.tables++
    },
    grains: ({ endBytes }) => {
      found.endBytes = endBytes
    },
  })
  return found
}

function writeWord(store: WritableStore, value: number, at: number): void {
  const word = Buffer.alloc(ENTRY_BYTES)
  word.writeUInt32LE(value)
  store.write(word, 0, word.length, at)
}
