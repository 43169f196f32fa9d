/** An image that is open in this process: its disk, its snapshots and its layers, without FUSE, in one thread. */
import { ImageError } from '../errors.js'
import type { View } from '../formats/driver.js'
import type { EncryptionMethod } from '../formats/format.js'
import type { WritableDisk } from '../formats/writable.js'
import { type CatalogEntry, catalogOf } from './catalog.js'
import { type Chain, closeChain, type OpenOptions } from './opening/chain.js'
import { createDiskMemory } from './writing/disk-memory.js'
import { type AskPassphrase, lockChain, unlockChain } from './opening/encryption.js'
import { readView } from './reading/engine.js'
import { nextData, nextHole } from './reading/holes.js'
import type { Access } from '../io/named-file.js'
import { type CacheSizes, ViewSet } from './reading/view-set.js'
import { openChain } from './opening/open-chain.js'
import { type ImageStores, openStores } from './opening/store-chain.js'
import { OPENED_FILES, type StoreSource } from './opening/store-source.js'

export interface OpenImageOptions
  extends Pick<
    OpenOptions,
    | 'format'
    | 'allowPaths'
    | 'maxDepth'
    | 'ignoreCid'
    | 'dropsChangeTracking'
    | 'force'
    | 'takesLocks'
  > {
  /** The access to the disk; lower layers are only read. Reading is the default. */
  readonly access?: Access
  /** Of each encrypted layer; a function is asked with the layer's path. Buffers are tried in order, and wiped after use. */
  readonly passphrase?:
    | string
    | ((path: string, method: EncryptionMethod) => Promise<string | readonly Buffer[]>)
  readonly caches?: Partial<CacheSizes>
}

/** A part of a disk, in bytes; neighbours differ in `kind`. */
export interface DiskExtent {
  readonly offset: number
  readonly length: number
  /** 'zero' reads as zeros, and takes no space. */
  readonly kind: 'data' | 'zero'
}

const CACHES: CacheSizes = { metadataBytes: 4 * 2 ** 20, clusterBytes: 8 * 2 ** 20 }

/** A disk that can be read: the image's own, a snapshot's, or a layer's. */
export class ReadableDisk {
  constructor(
    protected readonly view: View,
    private readonly entry: CatalogEntry,
    private readonly guard: Pick<WritableDisk, 'beginRead' | 'endRead'> | undefined,
  ) {}

  /** The name of the file that a mount shows for it. */
  get name(): string {
    return this.entry.name
  }

  /** Its kind: 'disk', 'snapshot', 'vmstate' or 'layer'. */
  get kind(): CatalogEntry['kind'] {
    return this.entry.kind
  }

  /** Facts of the format, such as the ID and the date of a snapshot. */
  get attributes(): Readonly<Record<string, string>> {
    return this.entry.attributes
  }

  /** In bytes. */
  get sizeBytes(): number {
    return this.view.driver.sizeBytes
  }

  /**
   * Fills all of `target` with the bytes from `offset` on. Throws RangeError past the disk's end, ImageError for
   * damage, SystemError.
   */
  read(target: Buffer, offset: number): void {
    const { length } = target
    requireInside(offset, length, this.sizeBytes)
    this.guard?.beginRead(offset, length)
    try {
      readView(this.view, target, 0, length, offset)
    } finally {
      this.guard?.endRead()
    }
  }

  /** Yields what the range is, from `offset` on, `length` bytes or all the rest. Throws as `read`. */
  *extents(offset = 0, length = this.sizeBytes - offset): Generator<DiskExtent> {
    requireInside(offset, length, this.sizeBytes)
    const end = offset + length
    for (let at = offset; at < end; ) {
      const data = this.next(nextData, at)
      const dataAt = data < 0 ? end : Math.min(data, end)
      if (dataAt > at) yield { offset: at, length: dataAt - at, kind: 'zero' }
      if (dataAt === end) return
      at = Math.min(this.next(nextHole, dataAt), end)
      yield { offset: dataAt, length: at - dataAt, kind: 'data' }
    }
  }

  private next(find: (view: View, at: number) => number, at: number): number {
    this.guard?.beginRead(at, this.sizeBytes - at)
    try {
      return find(this.view, at)
    } finally {
      this.guard?.endRead()
    }
  }
}

/** The image's own disk, which can be written where the image was opened so. */
export class ImageDisk extends ReadableDisk {
  constructor(
    view: View,
    entry: CatalogEntry,
    private readonly written: WritableDisk | undefined,
    private readonly path: string,
  ) {
    super(view, entry, written)
  }

  override get sizeBytes(): number {
    return this.written?.sizeBytes ?? super.sizeBytes
  }

  /** Writes all of `source` at `offset`. Throws RangeError past the disk's end, ImageError, SystemError. */
  write(source: Buffer, offset: number): void {
    requireInside(offset, source.length, this.sizeBytes)
    this.writable.write(source, 0, source.length, offset)
  }

  /** Makes `length` bytes at `offset` read as zeros, and gives back their space. Throws as `write`. */
  zero(offset: number, length: number): void {
    requireInside(offset, length, this.sizeBytes)
    this.writable.zero(offset, length)
  }

  /** Returns when all that was written would survive a power cut. Throws SystemError. */
  flush(): void {
    this.writable.flush()
  }

  /** Makes the disk larger; the new part reads as zeros. Throws ImageError where the format cannot. */
  grow(sizeBytes: number): void {
    this.writable.grow(sizeBytes)
  }

  private get writable(): WritableDisk {
    if (this.written) return this.written
    throw new ImageError('READ_ONLY', 'it is not open for writing', {
      path: this.path,
      hint: "open it with access: 'write'",
    })
  }
}

/** An open image. `close` it: until then its files are open and locked. */
export class OpenImage {
  readonly disk: ImageDisk
  /** Internal and external ones, and VM states; of layers below, too. */
  readonly snapshots: readonly ReadableDisk[]
  /** The layers below the image, the nearest first. */
  readonly layers: readonly ReadableDisk[]
  /** Warnings for the user, one line each. */
  readonly warnings: readonly string[]
  private readonly written: WritableDisk | undefined
  private isOpen = true

  /** @param images the view of `chain`, with its disk where that is written */
  constructor(
    private readonly chain: Chain,
    private readonly views: ViewSet,
    private readonly closeFiles: () => void,
    warnings: readonly string[],
  ) {
    const { entries, warnings: more } = catalogOf(chain)
    const { disk } = views
    this.written = disk
    const [first, ...others] = entries as [CatalogEntry, ...CatalogEntry[]]
    this.disk = new ImageDisk(views.viewOf(first), first, disk, chain.layers[0].path)
    const readable = (entry: CatalogEntry) => new ReadableDisk(this.viewOf(entry), entry, disk)
    const isSnapshot = ({ kind }: CatalogEntry) => kind === 'snapshot' || kind === 'vmstate'
    this.snapshots = others.filter(isSnapshot).map(readable)
    this.layers = others.filter(({ kind }) => kind === 'layer').map(readable)
    this.warnings = [...chain.warnings, ...more, ...warnings]
  }

  /** The name of its format, as QEMU has it. */
  get format(): string {
    return this.chain.layers[0].format
  }

  get path(): string {
    return this.chain.layers[0].path
  }

  get isWritable(): boolean {
    return this.written !== undefined
  }

  /**
   * Flushes, marks the image as closed cleanly, and closes its files. Returns what could not be kept, a line each.
   * Throws what `flush` throws; the files are closed then, too.
   */
  close(): readonly string[] {
    if (!this.isOpen) return []
    this.isOpen = false
    try {
      return this.written?.close() ?? []
    } finally {
      lockChain(this.chain)
      this.closeFiles()
    }
  }

  private viewOf(entry: CatalogEntry): View {
    return this.views.viewOf(entry)
  }
}

/**
 * Opens the image at a path, or in stores, with its backing files and snapshots. Takes QEMU's locks on files
 * unless `takesLocks` is false. Throws ImageError, and then leaves nothing open.
 */
export async function openImage(
  image: string | ImageStores,
  options: OpenImageOptions = {},
): Promise<OpenImage> {
  const { access = 'read', passphrase, takesLocks = true, caches } = options
  const opened =
    typeof image === 'string'
      ? { chain: openChain(image, { ...options, takesLocks, access }), source: OPENED_FILES }
      : openStores(image, { ...options, access })
  const source: StoreSource = opened.source
  const closeFiles = () => {
    if (typeof image === 'string') closeChain(opened.chain)
  }
  let chain: Chain | undefined
  try {
    chain = await unlockChain(opened.chain, askFrom(passphrase), source)
    const [top] = chain.layers
    const memory = access === 'write' ? createDiskMemory(top, 1, source.readable(top)) : undefined
    const sizes = { ...CACHES, ...caches }
    const writing = memory && { memory, thread: 0 }
    const views = new ViewSet(chain.layers, sizes, undefined, writing, source)
    return new OpenImage(chain, views, closeFiles, memory?.warnings ?? [])
  } catch (error) {
    if (chain) lockChain(chain)
    closeFiles()
    throw error
  }
}

/** Returns a function that gives the passphrase of a layer. It throws ImageError if none was given. */
export const askFrom =
  (passphrase: OpenImageOptions['passphrase']): AskPassphrase =>
  async (path, method) => {
    if (passphrase === undefined) {
      throw new ImageError('REFUSED', 'it is encrypted, and no passphrase was given', {
        path,
        hint: 'give its passphrase',
      })
    }
    const given = typeof passphrase === 'string' ? passphrase : await passphrase(path, method)
    return typeof given === 'string' ? [Buffer.from(given)] : given
  }

function requireInside(offset: number, length: number, sizeBytes: number): void {
  const isRange = Number.isSafeInteger(offset) && Number.isSafeInteger(length)
  if (isRange && offset >= 0 && length >= 0 && offset + length <= sizeBytes) return
  throw new RangeError(`${length} bytes at ${offset} are not within a disk of ${sizeBytes} bytes`)
}
