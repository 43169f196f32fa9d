/** Makes the scratch copies of a mount, on the main thread: their files, and the memory that threads share of them. */
import type { LayerSpec } from '../../formats/format.js'
import type { CatalogEntry } from '../../image/catalog.js'
import type { Chain } from '../../image/opening/chain.js'
import { openScratchFolder, type ScratchFolder } from '../../image/scratch/scratch-folder.js'
import { makeScratchLayer, shareScratchLayer } from '../../image/scratch/scratch-layer.js'
import { ScratchSpace } from '../../image/scratch/space.js'
import { allocatedNow } from '../../image/layer.js'
import { closeFile } from '../../io/libc.js'
import { Ownership } from '../nodes/ownership.js'
import { PageDropper } from '../writing/page-dropper.js'
import type { ScratchSource, SharedScratch } from './scratch-disks.js'
import { Truncations } from '../writing/truncations.js'

/** The options of the user. */
export interface ScratchOptions {
  /** The overlay that keeps what is written to the disk; undefined if nothing is kept. */
  readonly file: string | undefined
  /** The folder for what is written; by default the image's own. */
  readonly folder: string | undefined
  /** How much may be written in all, in bytes. */
  readonly limitBytes: number | undefined
}

export class ScratchMaker implements ScratchSource {
  /** Called when the thread that drops pages of the file at a place is needed. */
  onPageDrops: (place: number) => void = () => {}
  private readonly folder: ScratchFolder
  private readonly made = new Map<number, SharedScratch>()
  private readonly space: ScratchSpace | undefined
  private readonly isEncrypted: boolean

  /**
   * Throws ImageError if there is no folder for the files.
   * @param threads the number of worker threads
   * @param kept the open overlay that keeps what is written to the disk
   */
  constructor(
    chain: Chain,
    private readonly entries: readonly CatalogEntry[],
    { folder, limitBytes }: ScratchOptions,
    private readonly threads: number,
    kept: LayerSpec | undefined,
  ) {
    this.folder = openScratchFolder(chain.layers[0], folder)
    this.space = limitBytes === undefined ? undefined : new ScratchSpace(limitBytes)
    this.isEncrypted = chain.layers.some(({ encryption }) => encryption !== undefined)
    try {
      // A folder that takes no such file is refused now.
      closeFile(this.layerFor(entries[0] as CatalogEntry).fd)
    } catch (error) {
      this.folder.close()
      throw error
    }
    if (kept) this.keep(kept)
  }

  /** The folder of the files. */
  get path(): string {
    return this.folder.path
  }

  find(place: number): SharedScratch | undefined {
    return this.made.get(place)
  }

  all(): Iterable<SharedScratch> {
    return this.made.values()
  }

  /** Makes the copy of the file at `place` of the catalog, if it has not been made. Throws what making a file throws. */
  make(place: number): SharedScratch {
    const known = this.made.get(place)
    if (known) return known
    return this.share(place, this.layerFor(this.entries[place] as CatalogEntry), false)
  }

  /** Makes the overlay the copy of the disk. What it has counts as written. */
  private keep(overlay: LayerSpec): void {
    const { memory } = this.share(0, overlay, true)
    const { seconds, nanoseconds } = overlay.modified
    new Float64Array(memory.times)[0] = seconds * 1000 + Math.floor(nanoseconds / 1e6)
    this.space?.count(allocatedNow(overlay))
  }

  private share(place: number, layer: LayerSpec, isKept: boolean): SharedScratch {
    const made = {
      ...shareScratchLayer(layer, this.threads + 1, this.space, isKept),
      place,
      truncations: new Truncations().shared,
      ownership: new Ownership().shared,
      pageDrops: new PageDropper().shared,
    }
    this.made.set(place, made)
    return made
  }

  startPageDropper(place: number): void {
    this.onPageDrops(place)
  }

  private layerFor({ name, sizeBytes }: CatalogEntry): LayerSpec {
    const fd = this.folder.newFile()
    try {
      const path = `${this.folder.path}/ (the scratch file of ${name})`
      return makeScratchLayer({ path, fd }, sizeBytes, this.isEncrypted)
    } catch (error) {
      closeFile(fd)
      throw error
    }
  }
}
