/** Images over stores, opened by the program's own ViewSet: the one place that tests open them. */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import type { View } from '../../src/formats/driver.js'
import type { Format, LayerSpec } from '../../src/formats/format.js'
import { findFormat, formatOf } from '../../src/formats/registry.js'
import type { WritableDisk } from '../../src/formats/writable.js'
import type { CatalogEntry } from '../../src/image/catalog.js'
import { createDiskMemory } from '../../src/image/writing/disk-memory.js'
import { readView } from '../../src/image/reading/engine.js'
import { type DiskChanges, ViewSet } from '../../src/image/reading/view-set.js'
import { StoreFiles } from '../../src/image/opening/store-chain.js'
import type { StoreCipher } from '../../src/io/cipher-store.js'
import type { FileSpec } from '../../src/io/file-spec.js'
import type { Store, WritableStore } from '../../src/io/store.js'
import { MemoryStore } from './stores.js'

/** An image and what it stands on. */
export interface StoreImage<S extends Store = WritableStore> {
  readonly store: S
  /** The external data file. */
  readonly dataStore?: S | undefined
  /** The files of extents, by their paths. */
  readonly extents?: readonly S[]
  /** The disk of the backing file. */
  readonly parent?: Buffer | undefined
  /** What its clusters are encrypted by. */
  readonly cipher?: StoreCipher | undefined
}

/** What scenarios do to a disk. */
export type TestedDisk = Pick<
  WritableDisk,
  'sizeBytes' | 'failure' | 'write' | 'zero' | 'flush' | 'grow' | 'close'
>

export interface OpenDisk {
  readonly disk: TestedDisk
  /** Reads as a request would. */
  read(offset: number, length: number): Buffer
}

const CACHES = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 20 }
/** Reading all of a disk once finds nothing in a cache that it would need again. */
const SMALL_CACHES = { metadataBytes: 2 ** 16, clusterBytes: 2 ** 20 }
const DISK: CatalogEntry = {
  name: 'disk.raw',
  kind: 'disk',
  layer: 0,
  startOffset: 0,
  sizeBytes: 0,
  modified: { seconds: 0, nanoseconds: 0 },
  attributes: {},
}

class TestFiles extends StoreFiles {
  constructor(private readonly top: StoreCipher | undefined) {
    super()
  }

  cipher({ fd }: LayerSpec): StoreCipher | undefined {
    return fd === 0 ? this.top : undefined
  }
}

/** The layers of the image, and the warnings of opening it. Throws what opening throws. */
function layersOf(format: string, image: StoreImage<Store>) {
  const { store, dataStore, extents = [], parent, cipher } = image
  const source = new TestFiles(cipher)
  const warnings: string[] = []
  const file = source.add(store)
  const opened = (findFormat(format) as Format).open(file, {
    access: 'read',
    isDescribed: true,
    isDevice: false,
    dropsChangeTracking: true,
    known: undefined,
    warn: text => warnings.push(text),
    storeOf: spec => source.readable(spec),
    openDataFile: () => source.add(dataStore as Store),
    openExtent: name => {
      const found = [store, ...extents].find(({ path }) => path === name)
      if (!found) throw new Error(`there is no file ${name}`)
      return source.add(found)
    },
  })
  const dataFile = dataStore && source.add(dataStore)
  const { spec } = opened
  const top: LayerSpec = {
    ...{ ...file, format, spec },
    ...(opened.extentFiles && { extentFiles: opened.extentFiles }),
    ...(dataFile && { dataFile }),
  }
  if (!parent) return { layers: [top] as [LayerSpec], source, warnings }
  const below: FileSpec = source.add(parentStore(parent))
  const raw: LayerSpec = { ...below, format: 'raw', spec: undefined }
  return { layers: [{ ...top, below: 1 }, raw] as [LayerSpec, LayerSpec], source, warnings }
}

/** The program's own writer, of one thread, with `changes`. */
export function openWritten(
  format: string,
  image: StoreImage,
  changes: DiskChanges = {},
): OpenDisk & { readonly layer: LayerSpec } {
  collectShared()
  const { layers, source } = layersOf(format, image)
  const memory = createDiskMemory(layers[0], 1, image.store)
  const writing = { memory, thread: 0, changes }
  const views = new ViewSet(layers, CACHES, undefined, writing, source)
  const disk = views.disk as WritableDisk
  return { disk, read: bracketed(disk, views.viewOf(DISK)), layer: layers[0] }
}

/** What the image shows to one who opens it for reading only. Throws what opening throws. */
export function openRead(format: string, image: StoreImage<Store>) {
  const { layers, source, warnings } = layersOf(format, image)
  const views = new ViewSet(layers, SMALL_CACHES, undefined, undefined, source)
  const { internalSnapshots } = formatOf(layers[0])
  const snapshots = (internalSnapshots?.read(image.store, layers[0].spec) ?? []).map(snapshot =>
    views.viewOf({
      ...DISK,
      kind: 'snapshot',
      ...(internalSnapshots && { table: internalSnapshots.tableOf(snapshot) }),
    }),
  )
  return { view: views.viewOf(DISK), snapshots, warnings, layer: layers[0] }
}

/** Brackets a read of `view` as requests do. */
export function bracketed(disk: WritableDisk, view: View): OpenDisk['read'] {
  return (offset, length) => {
    const target = Buffer.alloc(length, 0xee)
    disk.beginRead(offset, length)
    try {
      readView(view, target, 0, length, offset)
    } finally {
      disk.endRead()
    }
    return target
  }
}

/**
 * What a disk's threads share is some MiB; the collector does not know what it costs, and a process with too much
 * of it cannot start others.
 */
export const collectShared = (() => {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  let opened = 0
  return () => {
    if (++opened % 128 === 0) collect()
  }
})()

const parents = new WeakMap<Buffer, MemoryStore>()

/** The parent as a store; nothing ever writes to it. */
export function parentStore(parent: Buffer): Store {
  const known = parents.get(parent) ?? new MemoryStore('parent.raw', parent)
  parents.set(parent, known)
  return known
}
