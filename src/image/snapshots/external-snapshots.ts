/** Finds a disk's snapshots in its virtual machine's list, with the disk files that they froze. */
import { ImageError, printable } from '../../errors.js'
import type { ExternalSnapshot, LayerSpec } from '../../formats/format.js'
import { MAX_LAYERS, MAX_REFUSED_SNAPSHOTS, MAX_VMSD_BYTES } from '../../formats/limits.js'
import { formatOf } from '../../formats/registry.js'
import { besideImage } from '../../formats/way-out.js'
import { type Folder, namesIn } from '../../io/folders.js'
import { type OpenedFile, readIfThere } from '../../io/named-file.js'
import { isSame, OpenFiles } from '../opening/open-files.js'

export interface FinderContext {
  readonly files: OpenFiles
  readonly allowed: readonly Folder[]
  /** Whether the snapshots are only described: then their disks need not exist. */
  readonly isDescribed: boolean
  warn(text: string): void
  /** Adds the layer in `file`, and its lower layers, to the layers. Throws ImageError. */
  open(file: OpenedFile, format: string): void
}

export class ExternalSnapshotFinder {
  private readonly top: LayerSpec

  /** @param layers the layers of the disk; layers that only snapshots need are added */
  constructor(
    private readonly layers: LayerSpec[],
    private readonly context: FinderContext,
  ) {
    this.top = layers[0] as LayerSpec
  }

  /** Finds the snapshots, parents first. One whose disk cannot be opened is left out, with a warning. */
  find(folders: readonly Folder[]): ExternalSnapshot[] {
    const { top, layers } = this
    const { files, allowed, isDescribed, warn } = this.context
    const { externalSnapshots } = formatOf(top)
    if (!externalSnapshots) return []
    const { archive } = files
    const naming = { by: top.path, role: 'list of snapshots', allowed, hint: besideImage, archive }
    const read = (name: string) => readIfThere(name, naming, MAX_VMSD_BYTES)
    const beside = archive?.namesBeside(top.path) ?? namesIn(folders[0] as Folder)
    const found: ExternalSnapshot[] = []
    let refused = 0
    for (const snapshot of externalSnapshots.list(beside, layers, read, warn)) {
      const name = printable(snapshot.displayName)
      if (layers.length >= MAX_LAYERS || refused >= MAX_REFUSED_SNAPSHOTS) {
        warn(
          `${top.path}: snapshots from "${name}" on are not shown: there are too many, or too many of them are damaged`,
        )
        break
      }
      const before = { layers: layers.length, files: files.count }
      try {
        const layer = isDescribed ? 0 : this.frozen(snapshot.fileName)
        found.push({ ...snapshot, layer })
      } catch (error) {
        if (!(error instanceof ImageError)) throw error
        refused++
        layers.length = before.layers
        files.close(before.files)
        warn(`${top.path}: the snapshot "${name}" is not shown: ${error.message}`)
      }
    }
    return found
  }

  /**
   * Returns the index of a disk file among the layers. Adds it if it is not there yet. Throws ImageError if it is based on none
   * of them: then it belongs to another disk.
   */
  private frozen(fileName: string): number {
    const { top, layers } = this
    const { files, allowed, open } = this.context
    const { archive } = files
    const naming = { by: top.path, role: 'snapshot', allowed, hint: besideImage, archive }
    const file = formatOf(top).externalSnapshots?.open(fileName, naming, layers, isSame)
    const known = layers.findIndex(layer => isSame(file as OpenedFile, layer))
    if (known >= 0) {
      OpenFiles.close(file as OpenedFile)
      return known
    }
    files.add(file as OpenedFile)
    const place = layers.length
    open(file as OpenedFile, top.format)
    if ((layers.at(-1)?.below ?? place) >= place) {
      const what = `its disk "${fileName}" has nothing in common with this one`
      throw new ImageError('CORRUPT', what, { path: top.path })
    }
    return place
  }
}
