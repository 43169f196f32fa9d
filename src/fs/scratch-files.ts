/**
 * The writable files of a mount of scratch copies: the disk and each snapshot. One is made when a program first opens it for
 * writing, so a mount with a thousand snapshots costs no more than another one.
 *
 * Each thread has such an object. What threads share of a file comes as a message from the main thread, which makes it.
 */
import type { WritableDisk } from '../formats/writable.js'
import type { CatalogEntry } from '../image/catalog.js'
import {
  openScratchDisk,
  type ScratchLayer,
  type ScratchThread,
} from '../image/scratch/scratch-layer.js'
import { allocatedNow } from '../image/layer.js'
import type { CacheSizes, ViewSet } from '../image/view-set.js'
import { lowerCount } from './allocated-bytes.js'
import { DiskFile } from './disk-file.js'
import { Ownership } from './ownership.js'
import { dropPages, PageDropper } from './page-dropper.js'
import type { ImageNode, Node } from './tree.js'
import { Truncations } from './truncations.js'
import type { WrittenFiles } from './written-files.js'

/** The memory that threads share for a file. */
export interface SharedScratch extends ScratchLayer {
  /** The file's place in the catalog. */
  readonly place: number
  /** For Truncations, Ownership and PageDropper. */
  readonly truncations: SharedArrayBuffer
  readonly ownership: SharedArrayBuffer
  readonly pageDrops: SharedArrayBuffer
}

/** Where a thread gets its files from. */
export interface ScratchSource {
  /** Returns what is shared of the file at `place`, if it has been made. */
  find(place: number): SharedScratch | undefined
  /** Does the same, and makes it if need be. Throws SystemError. */
  make(place: number): SharedScratch
  /** Returns what is shared of all files that have been made. */
  all(): Iterable<SharedScratch>
  /** Starts the thread that drops pages of the file at `place`. */
  startPageDropper(place: number): void
}

export interface ScratchFilesParts {
  readonly writer: ScratchThread
  readonly entries: readonly CatalogEntry[]
  readonly views: ViewSet
  /** By place in the catalog. */
  readonly allocated: Float64Array
  readonly caches: CacheSizes
  readonly isGrowable: boolean
  readonly onFlush: () => void
  /** How long to wait for the start of a thread that drops pages, in milliseconds. */
  readonly pageDropperStartMs: number
}

/** The tables of a snapshot's copy that each thread keeps, in bytes: programs may write to many of them. */
const SNAPSHOT_CACHES: CacheSizes = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 16 }

export const isScratch = (node: Node | undefined): node is ImageNode =>
  node?.kind === 'image' && (node.entry.kind === 'disk' || node.entry.kind === 'snapshot')

export class ScratchFiles implements WrittenFiles {
  private readonly files = new Map<number, DiskFile>()

  constructor(
    private readonly parts: ScratchFilesParts,
    private readonly source: ScratchSource,
  ) {}

  get found(): Iterable<DiskFile> {
    for (const shared of this.source.all()) this.fileOf(shared)
    return this.files.values()
  }

  isWritable(node: Node | undefined): boolean {
    return isScratch(node)
  }

  find(node: Node | undefined): DiskFile | undefined {
    if (!isScratch(node)) return undefined
    const known = this.files.get(node.place)
    if (known) return known
    const shared = this.source.find(node.place)
    return shared && this.fileOf(shared)
  }

  open(node: Node | undefined): DiskFile | undefined {
    if (!isScratch(node)) return undefined
    return this.find(node) ?? this.fileOf(this.source.make(node.place))
  }

  /** Returns whether another disk had something to flush: what was freed there is given back now. */
  private flushAllBut(own: WritableDisk): boolean {
    const dirty = [...this.found].filter(({ disk }) => disk !== own && disk.isDirty)
    for (const { disk } of dirty) if (disk.failure === '') disk.flush()
    return dirty.length > 0
  }

  private fileOf(shared: SharedScratch): DiskFile {
    const { place } = shared
    const known = this.files.get(place)
    if (known) return known
    const { entries, views, allocated, isGrowable, onFlush, pageDropperStartMs } = this.parts
    const base = views.viewOf(entries[place] as CatalogEntry)
    const caches = place === 0 ? this.parts.caches : SNAPSHOT_CACHES
    const { disk, view } = openScratchDisk(shared, base, caches, this.parts.writer)
    const file = new DiskFile(disk, {
      ...{ view, isGrowable, onFlush, isThrownAway: !shared.isKept },
      makeRoom: () => this.flushAllBut(disk),
      ownBytes: () => allocatedNow(shared.layer),
      onZero: (_, length) => lowerCount(allocated, place, length),
      truncations: new Truncations(shared.truncations, () => this.source.startPageDropper(place)),
      ownership: new Ownership(shared.ownership),
      dropPages: dropPages(new PageDropper(shared.pageDrops), pageDropperStartMs),
    })
    this.files.set(place, file)
    return file
  }
}
