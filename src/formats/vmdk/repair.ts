/**
 * Repairs a VMDK image: its hosted sparse and COWD extents that may be written. It never touches compressed, seSparse and flat
 * extents, or a descriptor.
 *
 * Data read the same afterwards. A grain that only a redundant table names comes back, if nothing else uses its place (see
 * repair/reconcile.ts). Nothing that either table names is freed. If structures overlap, nothing changes at all: writing one
 * would change the other.
 *
 * These are the steps. Each is on the disk before the next, so that a power cut in between makes nothing worse:
 *
 *  (1) Damaged entries of the directories and of the first tables, and a next free sector that is too low, are corrected.
 *  (2) Redundant tables are made equal to the first ones if nothing else is damaged any more; otherwise they may still be
 *      useful. An entry that contradicts the first one and may be right stays.
 *  (3) Space is given back only if nothing was damaged and no table can have been lost (see check/losses.ts): space that
 *      nothing names any more may be the lost data.
 *  (4) The mark that the extent is open is cleared if nothing is damaged or contradictory any more.
 */
import type { Store, WritableStore } from '../../io/store.js'
import { type CheckOptions, type RepairResult, repairResult, CheckReport } from '../check/report.js'
import { type CheckedExtent, checkExtents, type ExtentCounts, speaker } from './check.js'
import { findLosses } from './check/losses.js'
import type { Patch } from './check/patched-store.js'
import { isTail, reclaimableIn } from './check/tail.js'
import { readCowdHeader } from './cowd.js'
import { inspectGrains } from './grain-check.js'
import type { GrainSink } from './check/grain-sink.js'
import { wholeSectors } from './grain-tables.js'
import type { ExtentLayout } from './open.js'
import { type GrainLayout, grainLayout, MAX_FILE_BYTES, tableBytesOf } from './layout.js'
import {
  type Copy,
  type Plan,
  planned,
  planTables,
  redundantWords,
  shared,
} from './repair/reconcile.js'
import { eachPair } from './repair/table-pairs.js'
import { readSparseHeader } from './sparse-header.js'
import { SECTOR_BYTES } from '../../sector.js'
import { ENTRY_BYTES } from './entries.js'
import { Reclaiming } from '../check/reclaim.js'

export interface RepairedExtent extends CheckedExtent {
  readonly store: WritableStore | undefined
  /** Why it may not be written. */
  readonly obstacle: string | undefined
}

/**
 * Repairs the image: `leaks` makes older redundant tables equal to the first ones and gives back space; `all` also repairs what
 * may cost data. Throws SystemError if a file cannot be read or written, ImageError if it becomes shorter meanwhile.
 */
export function repairVmdk(
  extents: readonly RepairedExtent[],
  what: 'leaks' | 'all',
  options: CheckOptions = {},
): RepairResult {
  const before = new CheckReport()
  const changes = new CheckReport()
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
  return repairResult(before, changes, () => {
    const after = new CheckReport()
    checkExtents(extents.map(readAgain), after, options)
    return after
  })
}

/** Returns the extent with the current content of its header. */
function readAgain(extent: RepairedExtent): RepairedExtent {
  return extent.store ? { ...extent, layout: layoutNow(extent.store, extent.layout) } : extent
}

function layoutNow(store: Store, layout: ExtentLayout): ExtentLayout {
  if (layout.kind === 'sparse') return { kind: 'sparse', header: readSparseHeader(store) }
  if (layout.kind === 'cowd') return { kind: 'cowd', header: readCowdHeader(store) }
  return layout
}

type Note = (kind: 'fix' | 'error', at: number, message: () => string) => void

const OVERLAP =
  'nothing of it is changed: things lie over each other, and writing one would write the other'
const LOST_DIRECTORY = 'nothing of it is changed: one of its two grain directories is damaged'
const LOST_TABLE = 'nothing of it is changed: a table is missing, and nobody knows what it names'
const KEPT =
  'space is kept: what nothing names may be what was lost; it is given back once nothing is damaged'
const UNPROVEN =
  'space is kept: nothing names it, but a lost table reads as zeros, too, so it may be data; to be rid of it, copy the disk to a new image'

const contradiction = (entries: number): string =>
  `${entries === 1 ? '1 entry of its two grain tables names different things' : `${entries} entries of its two grain tables name different things`}, and neither is given up: mount it with -o ro, and copy the disk to a new image`

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
    if (what === 'leaks' && found.corruptions > 0) {
      if (found.leaks > 0) this.refuse(KEPT)
      return
    }
    const mended = this.mend(layout)
    if (mended === undefined) return
    if (mended.damages > 0) {
      if (found.leaks > 0) this.refuse(KEPT)
      return
    }
    const unnamedBytes = this.copyTables(layout, mended.kept)
    if (mended.kept.size > 0) {
      this.refuse(contradiction(mended.kept.size))
      return
    }
    if (found.corruptions > 0) {
      if (unnamedBytes > 0) this.refuse(KEPT)
    } else if (unnamedBytes > 0) {
      // Check it as a closed extent: a state that a crash can leave in an open one is a loss in a closed one.
      const losses = findLosses(this.store, { ...layout, isUnclean: false })
      if (losses.isPossible(unnamedBytes)) this.refuse(UNPROVEN)
      else this.giveBack(layout)
      if (losses.lostAt !== undefined) return
    }
    if (layout.isUnclean) this.close(layout)
  }

  /** Returns why nothing of the extent may change, whatever its tables say. */
  private obstacle(): string | undefined {
    const { layout, obstacle } = this.extent
    const isLost = layout.kind === 'sparse' && layout.header.lacksDirectory
    return obstacle ?? (isLost ? LOST_DIRECTORY : undefined)
  }

  private refuse(why: string): void {
    this.note('error', 0, () => why)
  }

  /**
   * Makes step (1). Returns how much damage is left, except contradictions of redundant tables, and which redundant entries must
   * stay; undefined if nothing may be written.
   */
  private mend(layout: GrainLayout): { damages: number; kept: ReadonlySet<number> } | undefined {
    const { store } = this
    const copies: Copy[] = []
    for (;;) {
      const plan = planTables(store, layout)
      const found = inspected(planned(store, plan), layout)
      // Grains of an unknown table may lie where the repair would write.
      const obstacle = found.overlaps > 0 ? OVERLAP : found.tables > 0 ? LOST_TABLE : undefined
      if (obstacle !== undefined) {
        this.refuse(obstacle)
        return undefined
      }
      this.carryOut(plan, layout)
      copies.push(...plan.copies)
      if (plan.isPartial && plan.patches.length + plan.copies.length > 0) continue
      if (plan.isPartial) {
        this.refuse(contradiction(plan.kept.size))
        return undefined
      }
      const isRaised = this.raiseFreeSector(layout, found.endBytes)
      if (isRaised) store.sync()
      const damages = found.damages - Number(isRaised)
      if (damages === 0) this.makeCopies(copies, layout)
      return { damages, kept: plan.kept }
    }
  }

  private carryOut({ patches, copies }: Plan, layout: GrainLayout): void {
    const { store } = this
    const isTable = ({ at }: Patch) => !isInDirectory(layout, at)
    for (const patch of [...patches, ...copies.map(shared)]) {
      const { at, value } = patch
      writeWord(store, value, at)
      const place = value * SECTOR_BYTES
      this.note('fix', at, () =>
        isTable(patch)
          ? 'the damaged entry is what the redundant one is'
          : `the damaged directory names the table at ${place}`,
      )
    }
    if (patches.length + copies.length > 0) store.sync()
  }

  /**
   * Makes a copy, at the end of the file, of each table that both directories name. Nothing may name a place past the end,
   * because the copies go there.
   */
  private makeCopies(copies: readonly Copy[], layout: GrainLayout): void {
    const { store } = this
    const bytes = Buffer.alloc(tableBytesOf(layout))
    const end = wholeSectors(store.sizeBytes) + copies.length * bytes.length
    if (copies.length === 0 || this.extent.isDevice || end > MAX_FILE_BYTES) return
    const places = copies.map(({ from }) => {
      const at = wholeSectors(store.sizeBytes)
      store.read(bytes, 0, bytes.length, from)
      store.write(bytes, 0, bytes.length, at)
      return at
    })
    store.sync()
    copies.forEach(({ entryAt }, i) => {
      const at = places[i] as number
      writeWord(store, at / SECTOR_BYTES, entryAt)
      this.note('fix', entryAt, () => `the directory names a copy of that table, at ${at}`)
    })
    store.sync()
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

  /** Makes step (2), if nothing else is damaged. Returns how many bytes are unused and could be given back. */
  private copyTables(layout: GrainLayout, kept: ReadonlySet<number>): number {
    const { store } = this
    let isChanged = false
    eachPair(store, layout, (index, first, redundant) => {
      if (!first.isThere || !redundant.isThere || first.sector === redundant.sector) return true
      if (first.isBlank && redundant.isBlank) return true
      const words = redundantWords(first.words, redundant.words, index * layout.tableEntries, kept)
      if (words.every((word, k) => word === redundant.words[k])) return true
      const at = redundant.sector * SECTOR_BYTES
      const from = first.sector * SECTOR_BYTES
      store.write(Buffer.from(words.buffer), 0, words.byteLength, at)
      isChanged = true
      this.note('fix', at, () => `the redundant table is what the first one is, at ${from}`)
      return true
    })
    if (isChanged) store.sync()
    let unnamedBytes = 0
    inspectGrains(store, layout, {
      ...IGNORE,
      unused: (at, length) => {
        unnamedBytes += reclaimableIn(this.extent, store, at, length)
      },
    })
    return unnamedBytes
  }

  /** Makes step (3). */
  private giveBack(layout: GrainLayout): void {
    const { store, extent } = this
    if (extent.isDevice) return
    const space = new Reclaiming(store, this.note)
    inspectGrains(store, layout, {
      ...IGNORE,
      unused: (at, bytes) => space.add(at, bytes, isTail(extent, store, at + bytes)),
    })
    space.finish()
  }

  /** Makes step (4). */
  private close({ uncleanAt, uncleanBytes }: GrainLayout): void {
    this.store.write(Buffer.alloc(uncleanBytes), 0, uncleanBytes, uncleanAt)
    this.store.sync()
    this.note('fix', uncleanAt, () => 'it is marked as closed cleanly')
  }
}

const IGNORE: GrainSink = { corruption: () => {}, disagreement: () => {} }

/** Returns the damage in an extent, except contradictions of redundant tables, and the end of the space in use. */
function inspected(store: Store, layout: GrainLayout) {
  const found = { damages: 0, overlaps: 0, tables: 0, endBytes: 0 }
  inspectGrains(store, layout, {
    ...IGNORE,
    corruption: (at, _message, isOverlap) => {
      found.damages++
      if (isOverlap) found.overlaps++
      if (isInDirectory(layout, at)) found.tables++
    },
    grains: ({ endBytes }) => {
      found.endBytes = endBytes
    },
  })
  return found
}

/** Reports whether `at` of the file is in one of the directories. */
function isInDirectory(layout: GrainLayout, at: number): boolean {
  const { directoryAt, redundantDirectoryAt = directoryAt, directoryEntries } = layout
  return [directoryAt, redundantDirectoryAt].some(
    start => at >= start && at < start + directoryEntries * ENTRY_BYTES,
  )
}

function writeWord(store: WritableStore, value: number, at: number): void {
  const word = Buffer.alloc(ENTRY_BYTES)
  word.writeUInt32LE(value)
  store.write(word, 0, word.length, at)
}
