/**
 * Opening an image with its backing files and data files: the one way that mounting, `info` and `check` share.
 * Only headers and snapshot tables are read, and nothing is changed (see recovery.ts).
 */
import { ImageError } from '../../errors.js'
import type { Format, LayerSpec, OpenContext, Reference } from '../../formats/format.js'
import { MAX_CHAIN_DEPTH, MAX_LAYERS } from '../../formats/limits.js'
import { probe } from '../../formats/probe.js'
import { guessFormat, requireWritableFormat } from '../../formats/raw/guess.js'
import { findFormat, formatOf } from '../../formats/registry.js'
import { loopAt, readOnlyWarning } from '../../formats/way-out.js'
import { closeFolders, type Folder } from '../../io/folders.js'
import {
  type Access,
  type OpenedFile,
  openFirst,
  openNamed,
  type ReadersProblem,
  WriteProtected,
} from '../../io/named-file.js'
import type { Chain, OpenOptions } from './chain.js'
import { ExternalSnapshotFinder } from '../snapshots/external-snapshots.js'
import { checkForeignLocks } from './foreign-locks.js'
import { fileSpec, referenceOf, storeOf } from '../layer.js'
import { snapshotsBelow } from '../snapshots/layer-snapshots.js'
import { type Archive, openNamedImage } from './archive.js'
import { isSame, OpenFiles } from './open-files.js'
import { probedWarning } from './probed.js'
import { statedFormat } from './stated-format.js'
import { requireUnneeded } from './write-protection.js'

/** Opens `image` and its lower layers. Throws ImageError, and then leaves nothing open. */
export function openChain(image: string, options: OpenOptions = {}): Chain {
  const { access = 'read' } = options
  if (access !== 'write if possible') return openFor(access, image, options)
  try {
    return openFor('write', image, options)
  } catch (error) {
    if (!(error instanceof WriteProtected)) throw error
    const { context, message, forReaders } = error
    const chain = openFor('read', image, options, forReaders?.problem)
    const reading = forReaders && `; ${forReaders.reading}`
    const readOnly = `${readOnlyWarning(context.path ?? image, message)}${reading ?? ''}`
    return { ...chain, warnings: [readOnly, ...chain.warnings] }
  }
}

function openFor(
  access: Access,
  image: string,
  options: OpenOptions,
  known?: ReadersProblem,
): Chain {
  const opener = new ChainOpener(image, options, access, known)
  try {
    return opener.open()
  } catch (error) {
    opener.files.close()
    throw error
  } finally {
    opener.letGo()
  }
}

class ChainOpener {
  readonly files: OpenFiles
  private readonly warnings: string[] = []
  private readonly warn = (text: string) => this.warnings.push(text)
  private allowed: readonly Folder[] = []
  private archive: Archive | undefined
  private needsRecovery = false

  constructor(
    private readonly image: string,
    private readonly options: OpenOptions,
    private readonly access: Access,
    private readonly known: ReadersProblem | undefined,
  ) {
    this.files = new OpenFiles(options.takesLocks === true, this.warn)
  }

  open(): Chain {
    const { options, access } = this
    const file = openNamedImage(this.image, access, options.allowPaths ?? [])
    this.files.add(file)
    this.archive = file.archive
    this.files.archive = file.archive
    this.allowed = file.folders
    const layers: [LayerSpec, ...LayerSpec[]] = [this.layer(file, options.format, access)]
    if (options.describe === 'file') return this.chainOf(layers)
    if (options.describe !== 'image') this.openBelowLast(layers)
    const depth = layers.length
    const { internalSnapshots } = formatOf(layers[0])
    const snapshots = internalSnapshots?.read(storeOf(layers[0]), layers[0].spec) ?? []
    const externalSnapshots = this.externalSnapshots(layers, file.own)
    const isWritable = access === 'write'
    if (!file.source && (isWritable || !options.describe)) {
      checkForeignLocks(layers[0], this.allowed, access, this.warn)
    }
    const isProtected = isWritable && (!options.describe || options.changesDisk === true)
    if (isProtected && !options.force && !file.stat.isBlockDevice() && !file.source) {
      const frozen = externalSnapshots.filter(({ layer }) => layer === 0)
      requireUnneeded(layers[0], frozen, file.own)
    }
    const found = options.describe ? undefined : snapshotsBelow(layers.slice(0, depth))
    this.warnings.push(...(found?.warnings ?? []))
    const layerSnapshots = found?.snapshots ?? []
    return { ...this.chainOf(layers), depth, snapshots, layerSnapshots, externalSnapshots }
  }

  /** Closes what only opening needs. */
  letGo(): void {
    closeFolders(this.allowed)
    this.archive?.close()
  }

  private chainOf(layers: Chain['layers']): Chain {
    const recovery = this.options.access === 'write' ? 'required' : 'if possible'
    return {
      layers,
      depth: layers.length,
      ...{ snapshots: [], layerSnapshots: [], externalSnapshots: [] },
      warnings: this.warnings,
      isWritable: this.access === 'write',
      recovery: this.needsRecovery ? recovery : undefined,
    }
  }

  /** Adds the layers below the last of `layers`, down to the lowest, or to one that is already among them. */
  private openBelowLast(layers: LayerSpec[]): void {
    const first = layers.length - 1
    const maxDepth = this.options.maxDepth ?? MAX_CHAIN_DEPTH.default
    for (;;) {
      const at = layers.length - 1
      const last = layers[at] as LayerSpec
      const reference = referenceOf(last)
      if (!reference) return
      if (at - first >= maxDepth - 1 || (first > 0 && at >= MAX_LAYERS - 1)) {
        const what = `its chain of backing files is longer than ${maxDepth}`
        throw new ImageError('UNSUPPORTED', what, {
          path: (layers[first] as LayerSpec).path,
          hint: 'raise --max-chain, or shorten it with vimgfs commit or vimgfs rebase',
        })
      }
      // Only the disk of a snapshot may join a chain that is open already.
      const known = first > 0 ? this.knownBelow(last, reference, layers) : -1
      if (known >= first) throw loopAt(last, reference)
      layers[at] = { ...last, below: known >= 0 ? known : at + 1 }
      if (known >= 0) return
      layers.push(this.below(last, reference))
    }
  }

  /** Returns the index among `layers` of the parent of `above`; -1 if it is not open. */
  private knownBelow(above: LayerSpec, reference: Reference, layers: readonly LayerSpec[]): number {
    if (!reference.skipsOpen) return -1
    const naming = this.namingBy(above, reference)
    const file = openFirst(reference.names, naming, file => !isSame(file, above))
    if (!file) return -1
    const known = layers.findIndex(layer => isSame(file, layer))
    OpenFiles.close(file)
    if (known >= 0) this.checkBelow(above, layers[known] as LayerSpec)
    return known
  }

  private below(above: LayerSpec, reference: Reference): LayerSpec {
    const format = statedFormat(above, reference, this.warn)
    const naming = this.namingBy(above, reference)
    const { name, names, skipsOpen } = reference
    const file = skipsOpen
      ? openFirst(names, naming, file => !this.files.has(file))
      : openNamed(name, naming)
    if (!file) throw loopAt(above, reference)
    const isLoop = this.files.has(file)
    this.files.add(file)
    if (isLoop) throw loopAt(above, reference)
    const layer = this.layer(file, format, 'read')
    this.checkBelow(above, layer)
    return layer
  }

  private namingBy({ path }: LayerSpec, reference: Reference) {
    return { ...reference, by: path, allowed: this.allowed, archive: this.archive }
  }

  private checkBelow(above: LayerSpec, below: LayerSpec): void {
    const ignoreCid = this.options.ignoreCid === true
    formatOf(above).checkBelow?.(above, below, { ignoreCid, warn: this.warn })
  }

  private externalSnapshots(layers: [LayerSpec, ...LayerSpec[]], own: readonly Folder[]) {
    const finder = new ExternalSnapshotFinder(layers, {
      files: this.files,
      allowed: this.allowed,
      isDescribed: this.options.describe !== undefined,
      warn: this.warn,
      open: (file, format) => {
        layers.push(this.layer(file, format, 'read'))
        this.openBelowLast(layers)
      },
    })
    return finder.find(own)
  }

  private layer(file: OpenedFile, format: string | undefined, access: Access): LayerSpec {
    const isFileOnly = this.options.describe === 'file'
    // An image that is never written has to be locked for reading only.
    if (access === 'write' && !isFileOnly) {
      requireWritableFormat(storeOf(fileSpec(file)), format)
    }
    // Lock before anything is read: without the lock others could change what was read.
    this.files.lock(file, access)
    const spec = fileSpec(file)
    const actual = this.formatOf(file, format)
    const bare = { ...spec, format: actual.name, isProbed: format === undefined, spec: undefined }
    if (isFileOnly) return bare
    const { needsRecovery, ...opened } = actual.open(spec, this.contextOf(file, bare, access))
    if (needsRecovery) this.needsRecovery = true
    const layer = { ...bare, ...opened }
    const warning = probedWarning(layer)
    if (warning !== undefined) this.warn(warning)
    return layer
  }

  private formatOf(file: OpenedFile, stated: string | undefined): Format {
    if (stated !== undefined) return findFormat(stated) as Format
    const store = storeOf(fileSpec(file))
    return this.files.count === 1 ? guessFormat(store) : probe(store)
  }

  private contextOf(file: OpenedFile, layer: LayerSpec, access: Access): OpenContext {
    const { describe, dropsChangeTracking = false } = this.options
    const parts = this.files.partsOf(layer, access, this.allowed)
    return {
      access,
      isDescribed: describe !== undefined,
      isDevice: file.stat.isBlockDevice() || file.source !== undefined,
      dropsChangeTracking,
      known: this.files.count === 1 ? this.known : undefined,
      warn: this.warn,
      storeOf,
      openDataFile: name => parts.openDataFile(name),
      openExtent: (name, names, isWritable) => parts.openExtent(name, names, isWritable),
    }
  }
}
