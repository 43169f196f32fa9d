/**
 * Checks a VMDK image: whether the tables of its extents make sense, and whether their files are long enough. It does not
 * check the parents.
 *
 * `qemu-img check` finds one thing in VMDK images: entries that name a grain past the end of the file. This check finds more,
 * and counts it so:
 *
 *  (1) Corruptions are: tables and grains that overlap something else, grains that are cut off, a next free sector of COWD
 *      within the space in use, and damage that sparse-header.ts can work around.
 *  (2) A redundant table that is older than the first one is one leak: it is useless, but no data are at stake, since the first
 *      one counts. A redundant table that contradicts the first one is a corruption.
 *  (3) Unused space counts as so many leaks as grains would fit in it, if it can be given back (see formats/check/reclaim.ts).
 *  (4) Such space is also a corruption if a table reads as zeros that was certainly written: the space may be all that is left
 *      of that table's data (see check/losses.ts).
 *  (5) Compressed grains are found by their markers and are not unpacked: reading them does that.
 */
import path from 'node:path'
import type { Store } from '../../io/store.js'
import { type CheckOptions, type CheckResult, CheckReport } from '../check/report.js'
import { findLosses } from './check/losses.js'
import { PackedInspection } from './check/packed-inspection.js'
import { inspectSesparse } from './check/sesparse-inspection.js'
import { reclaimableIn } from './check/tail.js'
import { inspectGrains } from './grain-check.js'
import type { GrainSink, GrainTotals } from './check/grain-sink.js'
import type { ExtentLayout } from './open.js'
import { type GrainLayout, grainLayout } from './layout.js'
import { SPARSE_FIELD_AT, type SparseHeader } from './sparse-header.js'

/** An open extent. Extents in one file share a store. */
export interface CheckedExtent {
  /** The size of its part of the disk. */
  readonly sizeBytes: number
  /** Undefined if all of it is zeros. */
  readonly store: Store | undefined
  readonly layout: ExtentLayout
  /** Whether its file is a device, which cannot be cut off. */
  readonly isDevice?: boolean
}

/** Checks all extents of an image. Throws SystemError; ImageError if a file becomes shorter meanwhile. */
export function checkVmdk(
  extents: readonly CheckedExtent[],
  options: CheckOptions = {},
): CheckResult {
  const report = new CheckReport()
  options.began?.(report)
  checkExtents(extents, report, options)
  return report
}

/** The findings in an extent. */
export interface ExtentCounts {
  readonly corruptions: number
  readonly leaks: number
}

const NONE: ExtentCounts = { corruptions: 0, leaks: 0 }

/** Adds the findings to `report`. Returns the counts by extent; only once for a file of several extents. */
export function checkExtents(
  extents: readonly CheckedExtent[],
  report: CheckReport,
  { progress }: CheckOptions = {},
): ExtentCounts[] {
  const checked = new Set<Store>()
  return extents.map((extent, i) => {
    const { store, layout, sizeBytes } = extent
    if (layout.kind === 'zero' || !store) return NONE
    const say = speaker(extents, store)
    if (layout.kind === 'flat') {
      return checkFlat(store, layout.startBytes + sizeBytes, say, report)
    }
    report.totalClusters += Math.ceil(sizeBytes / layout.header.grainBytes)
    // Two lines of the descriptor may name one file: that does not make its grains used twice.
    if (checked.has(store)) return NONE
    checked.add(store)
    const part = (done: number) => progress?.((i + done) / extents.length)
    return new ExtentCheck(extent, store, say, report, part).run()
  })
}

/** Adds the file's name to messages if there are several files, since a finding's place is in one of them. */
export function speaker(
  extents: readonly CheckedExtent[],
  store: Store,
): (message: () => string) => () => string {
  const isOne = extents.every(extent => !extent.store || extent.store === store)
  const name = path.basename(store.path)
  return message => (isOne ? message : () => `${name}: ${message()}`)
}

type Say = ReturnType<typeof speaker>

function checkFlat(store: Store, end: number, say: Say, report: CheckReport): ExtentCounts {
  const missing = end - store.sizeBytes
  report.imageEndOffset += Math.max(0, Math.min(end, store.sizeBytes))
  if (missing <= 0) return NONE
  const message = () => `its last ${missing} bytes are missing`
  report.corruption(store.sizeBytes, say(message))
  return { ...NONE, corruptions: 1 }
}

class ExtentCheck implements GrainSink {
  private corruptions = 0
  private leaks = 0
  /** The place of the first unused space. */
  private unusedAt: number | undefined

  constructor(
    private readonly extent: CheckedExtent,
    private readonly store: Store,
    private readonly say: Say,
    private readonly report: CheckReport,
    private readonly progress: (part: number) => void,
  ) {}

  run(): ExtentCounts {
    const { store, progress } = this
    const { layout } = this.extent
    const grains = grainLayout(layout)
    for (const warning of warningsOf(layout))
      this.report.note(
        'notice',
        0,
        this.say(() => warning),
      )
    if (layout.kind === 'sparse') this.inspectDirectories(layout.header)
    if (grains) {
      inspectGrains(store, grains, this, { progress })
      this.inspectLosses(grains)
    } else if (layout.kind === 'sparse') {
      new PackedInspection(store, packedLayout(layout.header), this, { progress }).run()
    } else if (layout.kind === 'sesparse') inspectSesparse(store, layout.header, this, { progress })
    const { corruptions, leaks } = this
    return { corruptions, leaks }
  }

  corruption(at: number, message: () => string): void {
    this.corruptions++
    this.report.corruption(at, this.say(message))
  }

  disagreement(at: number, _from: number, isContradiction: boolean, message: () => string): void {
    if (isContradiction) this.corruption(at, message)
    else this.leak(at, message)
  }

  surplusTable(at: number, message: () => string): void {
    this.leak(at, message)
  }

  unused(at: number, bytes: number): void {
    // In a stream only the grains are known.
    const grains = grainLayout(this.extent.layout)
    const lost = grains ? reclaimableIn(this.extent, this.store, at, bytes) : 0
    if (!grains || lost === 0) return
    this.unusedAt ??= at
    this.leak(at, () => `nothing uses ${bytes} bytes`, Math.ceil(lost / grains.grainBytes))
  }

  /** Reports a table that reads as zeros while there is space that no table names. */
  private inspectLosses(grains: GrainLayout): void {
    if (this.unusedAt === undefined) return
    const { lostAt } = findLosses(this.store, grains)
    if (lostAt === undefined) return
    this.corruption(
      lostAt,
      () =>
        `there are grains that no table names, the first one at ${this.unusedAt}: the table that belongs here may be lost`,
    )
  }

  grains({ allocated, fragmented, endBytes }: GrainTotals): void {
    const { report } = this
    const { layout } = this.extent
    report.allocatedClusters += allocated
    report.fragmentedClusters += fragmented
    if (layout.kind === 'sparse' && layout.header.isCompressed) {
      report.compressedClusters += allocated
    }
    report.imageEndOffset += endBytes
  }

  private leak(at: number, message: () => string, times = 1): void {
    this.leaks += times
    this.report.leak(at, this.say(message), times)
  }

  private inspectDirectories({ lacksDirectory, readsRedundant }: SparseHeader): void {
    if (!lacksDirectory) return
    if (!readsRedundant) {
      const message = () => 'its redundant grain directory cannot be used'
      this.report.note('notice', 0, this.say(message))
    } else {
      this.corruption(
        SPARSE_FIELD_AT.directory,
        () => 'its grain directory is damaged, and the redundant one is read instead',
      )
    }
  }
}

/** Returns the warnings of reading the header. */
export const warningsOf = (layout: ExtentLayout): readonly string[] =>
  layout.kind === 'zero' || layout.kind === 'flat' ? [] : layout.header.warnings

/** Returns the layout of a compressed extent's tables, which is the same as in other extents. */
function packedLayout(header: SparseHeader): GrainLayout {
  return grainLayout({ kind: 'sparse', header: { ...header, isCompressed: false } }) as GrainLayout
}
