/**
 * The files of a mount with `-o scratch`: programs write the disk and every snapshot, and partitions of these, and the image stays
 * as it is.
 *
 *  (1) A disk's or snapshot's copy begins when a program first opens it, or one of its partitions, for writing. Until then reading
 *      it is reading the image.
 *  (2) Nothing of a copy has to survive the mount, so syncing and closing do not flush, except of the one that is kept.
 */
import type { CatalogEntry } from '../../image/catalog.js'
import { allocatedNow } from '../../image/layer.js'
import { PartitionDisk } from '../../image/writing/partition-disk.js'
import { windowOf } from '../../image/reading/view-set.js'
import { lowerCount } from '../nodes/allocated-bytes.js'
import { DiskFile } from '../writing/disk-file.js'
import type { GapActions } from '../writing/gap-actions.js'
import { Ownership } from '../nodes/ownership.js'
import { dropPages, PageDropper } from '../writing/page-dropper.js'
import type { OpenScratch, ScratchDisks } from './scratch-disks.js'
import type { ImageNode, Node } from '../nodes/tree.js'
import { Truncations } from '../writing/truncations.js'
import type { WrittenFiles } from '../writing/written-files.js'

export interface ScratchFilesParts {
  /** The files of the world. */
  readonly entries: readonly CatalogEntry[]
  readonly disks: ScratchDisks
  /** By place in the catalog. */
  readonly allocated: Float64Array
  readonly isGrowable: boolean
  readonly onFlush: () => void
  /** How long to wait for the start of a thread that drops pages, in milliseconds. */
  readonly pageDropperStartMs: number
  /** Where several files show the same bytes: drops pages of all that show a range of a disk. */
  readonly dropShared: GapActions['dropPages'] | undefined
}

/** The part of a disk that a file shows. */
type Part = Pick<ImageNode, 'id' | 'entry'>

export class ScratchFiles implements WrittenFiles {
  /** The files of whole disks, by place in the catalog, and those of partitions, by number. */
  private readonly wholes = new Map<number, DiskFile>()
  private readonly parts = new Map<number, DiskFile>()

  constructor(private readonly needs: ScratchFilesParts) {}

  /** Partitions have nothing that their disks do not have, too. */
  get found(): Iterable<DiskFile> {
    for (const scratch of this.needs.disks.all()) this.wholeOf(scratch)
    return this.wholes.values()
  }

  isWritable(node: Node | undefined): boolean {
    return this.placeOf(node) !== undefined
  }

  find(node: Node | undefined): DiskFile | undefined {
    const place = this.placeOf(node)
    if (place === undefined) return undefined
    const known = isPart(node) ? this.parts.get(node.id) : this.wholes.get(place)
    if (known) return known
    const scratch = this.needs.disks.find(place)
    return scratch && this.fileOf(node as ImageNode, scratch)
  }

  open(node: Node | undefined): DiskFile | undefined {
    const place = this.placeOf(node)
    if (place === undefined) return undefined
    return this.find(node) ?? this.fileOf(node as ImageNode, this.needs.disks.open(place))
  }

  /** Returns the place in the catalog of the disk or snapshot that `node` shows, or of which it shows a part. */
  private placeOf(node: Node | undefined): number | undefined {
    if (node?.kind !== 'image') return undefined
    const place = node.entry.whole ?? node.place
    const kind = this.needs.entries[place]?.kind
    return kind === 'disk' || kind === 'snapshot' ? place : undefined
  }

  private fileOf(node: ImageNode, scratch: OpenScratch): DiskFile {
    return isPart(node) ? this.partOf(node, scratch) : this.wholeOf(scratch)
  }

  private wholeOf(scratch: OpenScratch): DiskFile {
    const { place } = scratch.shared
    let file = this.wholes.get(place)
    if (!file) {
      file = this.newFile(scratch, undefined)
      this.wholes.set(place, file)
    }
    return file
  }

  private partOf(part: Part, scratch: OpenScratch): DiskFile {
    const file = this.newFile(scratch, part)
    this.parts.set(part.id, file)
    return file
  }

  /** @param part undefined for the file of the whole disk */
  private newFile({ shared, disk, view }: OpenScratch, part: Part | undefined): DiskFile {
    const { disks, isGrowable, onFlush, pageDropperStartMs, dropShared } = this.needs
    const { place, isKept, layer } = shared
    const start = part?.entry.startOffset ?? 0
    const sizeBytes = part?.entry.sizeBytes ?? 0
    const truncations = new Truncations(shared.truncations, () => {
      if (!dropShared) disks.source.startPageDropper(place)
    })
    const ownership = new Ownership(shared.ownership)
    return new DiskFile(part ? new PartitionDisk(disk, start, sizeBytes) : disk, {
      view: part ? windowOf(view, start, sizeBytes) : view,
      isGrowable: isGrowable && part === undefined,
      isThrownAway: !isKept,
      onFlush,
      makeRoom: () => disks.flushAllBut(disk),
      ownBytes: () => allocatedNow(layer),
      onZero: (offset, length) => this.lower(place, start + offset, length),
      // The number of a disk within its own copy is 0.
      truncations: part
        ? truncations.at({ file: part.id, disk: 0, start, end: start + sizeBytes })
        : truncations,
      ownership: part ? ownership.of(part.id) : ownership,
      dropPages: dropShared
        ? (offset, length, isLocked) => dropShared(start + offset, length, isLocked)
        : dropPages(new PageDropper(shared.pageDrops), pageDropperStartMs),
    })
  }

  /** Lowers the counts of all files that show a range of the copy at `place` that was zeroed. */
  private lower(place: number, offset: number, length: number): void {
    const { entries, allocated } = this.needs
    lowerCount(allocated, place, length)
    for (const [at, { whole, startOffset, sizeBytes }] of entries.entries()) {
      if (whole !== place) continue
      const end = Math.min(offset + length, startOffset + sizeBytes)
      const bytes = end - Math.max(offset, startOffset)
      if (bytes > 0) lowerCount(allocated, at, bytes)
    }
  }
}

const isPart = (node: Node | undefined): node is ImageNode =>
  node?.kind === 'image' && node.entry.whole !== undefined
