/**
 * Opens a disk of an image for the commands that read: the image's own disk, or a snapshot that the name says. It tells
 * what each piece of the disk is, and where its bytes lie.
 */
import { ImageError } from '../../errors.js'
import type { Extent, View } from '../../formats/driver.js'
import type { LayerSpec, SnapshotGuard } from '../../formats/format.js'
import { CipherStore, type StoreCipher } from '../../io/cipher-store.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { Store } from '../../io/store.js'
import { type CatalogEntry, catalogOf } from '../catalog.js'
import { type Chain, closeChain, type OpenOptions } from '../opening/chain.js'
import { type AskPassphrase, cipherOf, lockChain, unlockChain } from '../opening/encryption.js'
import { readView } from './engine.js'
import { FileRuns } from './file-runs.js'
import { isInside, isPackedInside, startOf } from './part-places.js'
import {
  hasSnapshotNamed,
  hasSnapshotWithId,
  type SnapshotChoice,
  snapshotChosen,
  splitImageName,
} from './image-name.js'
import { type CacheSizes, ViewSet } from './view-set.js'
import { filesFrom, storeOf } from '../layer.js'
import { openChain } from '../opening/open-chain.js'
import type { StoreSource } from '../opening/store-source.js'
import { lostAt, readSalvaging } from './salvage.js'
import { type LayerPiece, type OnLoss, walkLayers } from './walk-layers.js'
import { SECTOR_BYTES } from '../../sector.js'

export interface SourceOptions
  extends Pick<OpenOptions, 'format' | 'allowPaths' | 'maxDepth' | 'ignoreCid'> {
  /** Whether QEMU's locks keep others from writing the image; true by default. */
  readonly takesLocks?: boolean
  /** Asks for the passphrase of each encrypted layer. Without it encrypted data cannot be read, only located. */
  readonly ask?: AskPassphrase | undefined
  readonly caches?: Partial<CacheSizes>
  /** Calls `open`, and may call it again if the image is in use. */
  readonly whenFree?: (open: () => Chain) => Promise<Chain>
}

/** All that a thread needs to read the disk: plain data. The files stay open as long as the source. */
export interface SourceSpec {
  readonly layers: Chain['layers']
  readonly entry: CatalogEntry
}

/** A part of a disk. */
export interface Piece {
  readonly offset: number
  readonly length: number
  /**
   *  data: a layer has bytes there.
   *  zero: it reads as zeros: a layer says so, or its file has a hole there.
   *  unallocated: no layer has anything there; it reads as zeros.
   */
  readonly kind: 'data' | 'zero' | 'unallocated'
  /** How many layers down the layer is that decides, from 0 on. */
  readonly depth: number
  readonly isCompressed: boolean
  /** The place of the bytes as they are; undefined if they are compressed or encrypted, or if there are none. */
  readonly place: Place | undefined
}

export interface Place {
  /** A file that is open for reading. */
  readonly file: FileSpec
  readonly at: number
}

export interface Origin extends Place {
  /** Of a compressed cluster: the format's own numbers for it, which count from `at`. */
  readonly packed?: readonly number[]
}

/** A piece as one layer has it: its bytes come from one place. */
export interface Part extends Piece {
  /** Where its bytes come from, in any form. */
  readonly origin: Origin | undefined
  /** How many bytes of the decompressed cluster come before it. */
  readonly skip: number
}

const CACHES: CacheSizes = { metadataBytes: 4 * 2 ** 20, clusterBytes: 8 * 2 ** 20 }

/** Returns the view of a source's disk, for one thread. */
export const viewOfSource = ({ layers, entry }: SourceSpec, caches = CACHES): View =>
  new ViewSet(layers, caches).viewOf(entry)

/** An image that is open for reading. `close` it: until then its files are open and locked. */
export class SourceImage {
  private readonly files = new KnownFiles()
  private readonly entries: readonly CatalogEntry[]
  private readonly views: ViewSet
  /** Warnings for the user, a line each. */
  readonly warnings: readonly string[]
  private isOpen = true

  private constructor(
    private readonly chain: Chain,
    caches: Partial<CacheSizes>,
  ) {
    const { entries, warnings } = catalogOf(chain)
    this.entries = entries
    this.warnings = [...chain.warnings, ...warnings]
    this.views = new ViewSet(
      chain.layers,
      { ...CACHES, ...caches },
      undefined,
      undefined,
      this.files,
    )
  }

  /** Opens the image at `path` with all that it stands on. Throws ImageError, and then leaves nothing open. */
  static async open(path: string, options: SourceOptions = {}): Promise<SourceImage> {
    const { takesLocks = true, whenFree = async open => open(), ask, caches = {} } = options
    const opened = await whenFree(() => openChain(path, { ...options, takesLocks, access: 'read' }))
    let chain: Chain | undefined
    try {
      chain = ask ? await unlockChain(opened, ask) : opened
      return new SourceImage(chain, caches)
    } catch (error) {
      if (chain) lockChain(chain)
      closeChain(opened)
      throw error
    }
  }

  /** Takes a chain that is open already, and unlocked. The caller closes its files: do not call `close`. */
  static of(chain: Chain): SourceImage {
    return new SourceImage(chain, {})
  }

  /**
   * Returns the image's disk, or the snapshot with that tag. Throws ImageError if there is no such snapshot.
   * @param name a tag, or what else names it
   * @param onClose called when the disk is closed
   */
  disk(name?: string | SnapshotChoice, onClose = () => {}): Source {
    const { layers } = this.chain
    const [own] = this.entries as [CatalogEntry]
    const choice = typeof name === 'string' ? { tag: name } : name
    const entry = choice ? snapshotChosen(this.entries, choice, layers[0].path) : own
    const view = this.views.viewOf(entry)
    const guard = this.views.guardOf(entry)
    return new Source({ layers, entry }, view, this.files, this.warnings, onClose, guard)
  }

  /** Reports whether there is a snapshot with that tag. */
  hasTag(tag: string): boolean {
    return hasSnapshotNamed(this.entries, tag, this.chain.layers[0].path)
  }

  /** Reports whether the image itself has a snapshot with that ID. */
  hasId(id: string): boolean {
    return hasSnapshotWithId(this.entries, id)
  }

  close(): void {
    if (!this.isOpen) return
    this.isOpen = false
    lockChain(this.chain)
    closeChain(this.chain)
  }
}

/** Opens the disk with the name IMAGE or IMAGE@TAG. Throws ImageError, and then leaves nothing open. */
export async function openSource(name: string, options: SourceOptions = {}): Promise<Source> {
  const { image, tag } = splitImageName(name)
  const opened = await SourceImage.open(image, options)
  try {
    return opened.disk(tag, () => opened.close())
  } catch (error) {
    opened.close()
    throw error
  }
}

/** A disk that is open for reading. */
export class Source {
  readonly sizeBytes: number
  /** The layers that it is read from, the nearest first. */
  readonly layers: readonly LayerSpec[]

  constructor(
    readonly spec: SourceSpec,
    readonly view: View,
    private readonly known: KnownFiles,
    readonly warnings: readonly string[],
    private readonly onClose: () => void,
    private readonly guard?: SnapshotGuard,
  ) {
    this.sizeBytes = view.driver.sizeBytes
    this.layers = layersFrom(spec)
  }

  close(): void {
    this.onClose()
  }

  /**
   * Throws ImageError if it is a snapshot that another program has deleted: then what was read of it may be anything. Called when
   * all has been read, and before anybody relies on it.
   */
  requireThere(): void {
    if (!this.guard || this.guard.isThere()) return
    const what = 'its snapshot has been deleted while it was read'
    throw new ImageError('MISSING', what, { path: this.path, hint: 'what was read is of no use' })
  }

  /** The size in whole sectors, as QEMU has it: it rounds a raw file up, and other disks down. */
  get sectorBytes(): number {
    const round = this.format === 'raw' ? Math.ceil : Math.floor
    return round(this.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES
  }

  /** The absolute path of the image. */
  get path(): string {
    return this.spec.layers[0].path
  }

  /** The name of the format of the layer that it is read from. */
  get format(): string {
    return (this.layers[0] as LayerSpec).format
  }

  /** All files that it is read from. */
  get files(): readonly FileSpec[] {
    return filesFrom(this.spec.layers, this.spec.entry.layer)
  }

  /** Reads as `readView` does: past the end of the disk come zeros. Throws ImageError, SystemError. */
  read(target: Buffer, start: number, length: number, offset: number): void {
    readView(this.view, target, start, length, offset)
  }

  /**
   * Yields what each piece of the range is, neighbours of one kind joined. Throws ImageError for damaged tables, unless
   * `onLoss` takes over: then what they should map counts as zeros.
   */
  *pieces(offset = 0, length = this.sizeBytes - offset, onLoss?: OnLoss): Generator<Piece> {
    let last: Piece | undefined
    for (const { origin: _, skip: __, ...piece } of this.parts(offset, length, onLoss)) {
      const joined: Piece | undefined = last && join(last, piece)
      if (last && !joined) yield last
      last = joined ?? piece
    }
    if (last) yield last
  }

  /** Yields the same, but each part of one place for itself. */
  *parts(offset = 0, length = this.sizeBytes - offset, onLoss?: OnLoss): Generator<Part> {
    for (const found of this.walk(offset, length, onLoss)) yield* this.withHoles(found)
  }

  /** Yields the answers of the layers, as they come. Throws ImageError for damaged tables. */
  walk(offset = 0, length = this.sizeBytes - offset, onLoss?: OnLoss): Generator<LayerPiece> {
    return walkLayers(this.view, offset, length, onLoss)
  }

  /** Reads as `read` does. What cannot be read becomes zeros, and `onLoss` is told. Throws only bugs. */
  salvage(target: Buffer, start: number, length: number, offset: number, onLoss: OnLoss): void {
    readSalvaging(this.view, target, start, length, offset, onLoss)
  }

  /** Returns where the file that holds `store` has data and holes. */
  runsOf(store: Store): FileRuns {
    return this.known.runsOf(store)
  }

  /**
   * Returns where an extent's bytes lie, in any form; undefined if there are none.
   * @param isPlain whether the bytes of the file are those of the disk
   */
  placeOf(extent: Extent): (Origin & { readonly isPlain: boolean }) | undefined {
    if (extent.kind === 'data') {
      const { store, at, length } = extent
      const file = this.known.fileOf(store)
      const isPlain = !(store instanceof CipherStore) && isInside(file, at + length)
      return { file, at: startOf(file) + at, isPlain }
    }
    if (extent.kind !== 'packed') return undefined
    const { storeId, numbers } = extent.job
    const file = numberedFile(this.spec.layers, storeId)
    if (!isPackedInside(extent, file)) return undefined
    return { file, at: startOf(file), packed: numbers, isPlain: false }
  }

  /** Splits data at the holes of their file. */
  private *withHoles({ offset, length, depth, driver, extent }: LayerPiece): Generator<Part> {
    const bare = { offset, length, depth, isCompressed: extent.kind === 'packed', skip: 0 }
    if (extent.kind !== 'data' && extent.kind !== 'packed') {
      const kind = extent.kind === 'zero' ? 'zero' : 'unallocated'
      yield { ...bare, kind, place: undefined, origin: undefined }
      return
    }
    const place = this.placeOf(extent)
    if (extent.kind === 'packed' || !place?.isPlain) {
      const skip = extent.kind === 'packed' ? extent.skip : 0
      yield { ...bare, kind: 'data', place: undefined, origin: place, skip }
      return
    }
    const { store } = extent
    const lostFrom = lostAt(store, driver)
    for (let done = 0; done < length; ) {
      const at = extent.at + done
      const run = this.runsOf(store).at(at, length - done)
      // The part that was lost with the end of the file is no hole: reading it is an error.
      const isHole = !run.isData && at < lostFrom
      const bytes = isHole ? Math.min(run.length, lostFrom - at) : run.length
      const kind = isHole ? 'zero' : 'data'
      const origin = isHole ? undefined : { file: place.file, at: place.at + done }
      yield { ...bare, offset: offset + done, length: bytes, kind, place: origin, origin }
      done += bytes
    }
  }
}

/**
 * Yields `items`, which are found in the tables of `sources`. Throws ImageError at the end, or in place of another error, if another
 * program has deleted a snapshot that one of them shows.
 */
export function* whileThere<T>(sources: readonly Source[], items: Iterable<T>): Generator<T> {
  try {
    yield* items
  } catch (error) {
    for (const source of sources) source.requireThere()
    throw error
  }
  for (const source of sources) source.requireThere()
}

function join(a: Piece, b: Piece): Piece | undefined {
  const isSame = a.kind === b.kind && a.depth === b.depth && a.isCompressed === b.isCompressed
  if (!isSame || !follows(a, b)) return undefined
  return { ...a, length: a.length + b.length }
}

function follows({ place: a, length }: Piece, { place: b }: Piece): boolean {
  if (!a || !b) return a === b
  return a.file.fd === b.file.fd && a.at + length === b.at
}

function layersFrom({ layers, entry }: SourceSpec): LayerSpec[] {
  const found: LayerSpec[] = []
  for (let i: number | undefined = entry.layer; i !== undefined; i = layers[i]?.below) {
    found.push(layers[i] as LayerSpec)
  }
  return found
}

/** Returns the file with a number that ViewSet gives: those of layers come first, then those of extents. */
function numberedFile(layers: readonly LayerSpec[], storeId: number): FileSpec {
  const extents = layers.flatMap(({ extentFiles = [] }) => extentFiles)
  return (layers[storeId] ?? extents[storeId - layers.length]) as FileSpec
}

/** Knows the files of the stores that it makes, and their runs of data. */
class KnownFiles implements StoreSource {
  private readonly files = new Map<Store, FileSpec>()
  private readonly runs = new Map<Store, FileRuns>()

  readable(file: FileSpec): Store {
    const store = storeOf(file)
    this.files.set(store, file)
    return store
  }

  /** Nothing is written. */
  writable(): never {
    throw new TypeError('a source is only read')
  }

  cipher(layer: LayerSpec): StoreCipher | undefined {
    const isLocked = layer.encryption && !layer.encryption.spec
    return isLocked ? { cipher: LOCKED, countsBy: 'disk', unitBytes: 1 } : cipherOf(layer)
  }

  fileOf(store: Store): FileSpec {
    return this.files.get(store instanceof CipherStore ? store.base : store) as FileSpec
  }

  runsOf(store: Store): FileRuns {
    const known = this.runs.get(store) ?? new FileRuns(store)
    this.runs.set(store, known)
    return known
  }
}

const LOCKED: StoreCipher['cipher'] = {
  encrypt: refuse,
  decrypt: refuse,
}

function refuse(): never {
  throw new TypeError('an encrypted layer was not unlocked')
}
