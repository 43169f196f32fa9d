/** Disks opened for writing in this process, over stores: the one place that knows how. */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { ClusterCache } from '../../src/cache/cluster-cache.js'
import { COUNTS } from '../../src/cache/counts.js'
import { MetadataCache } from '../../src/cache/metadata-cache.js'
import { type PoolMemory, TablePool } from '../../src/cache/table-pool.js'
import type { FileSpec } from '../../src/io/file-spec.js'
import { createDiskMemory, type DiskMemory } from '../../src/image/disk-memory.js'
import type { View } from '../../src/formats/driver.js'
import { readView } from '../../src/image/engine.js'
import { Qcow2Driver, type Qcow2Parts } from '../../src/formats/qcow2/driver.js'
import { type Qcow2Header, readHeader } from '../../src/formats/qcow2/header.js'
import { recover } from '../../src/formats/qcow2/recovery.js'
import { readSnapshots } from '../../src/formats/qcow2/snapshots.js'
import type { Qcow2Memory } from '../../src/formats/qcow2/write-memory.js'
import { Qcow2Writer } from '../../src/formats/qcow2/writer.js'
import { RawDriver } from '../../src/formats/raw/driver.js'
import { SharedDisk } from '../../src/image/shared-disk.js'
import type { WritableDisk, WritableDriver } from '../../src/formats/writable.js'
import { CipherStore, type StoreCipher, WritableCipherStore } from '../../src/io/cipher-store.js'
import type { Store, WritableStore } from '../../src/io/store.js'
import { readAll } from './image.js'
import { MemoryStore } from './stores.js'

/** An image with its other files. */
export interface DiskFiles<S extends Store = WritableStore> {
  readonly store: S
  /** The external data file. */
  readonly dataStore?: S | undefined
  /** The disk of the backing file. */
  readonly parent?: Buffer | undefined
  /** The cipher of its clusters. */
  readonly cipher?: StoreCipher | undefined
}

/** The methods of a disk that scenarios use. */
export type TestedDisk = Pick<
  WritableDisk,
  'sizeBytes' | 'failure' | 'write' | 'zero' | 'flush' | 'grow' | 'close'
>

export interface OpenDisk {
  readonly disk: TestedDisk
  /** Reads as a request does. */
  read(offset: number, length: number): Buffer
}

export type Opener = (files: DiskFiles) => OpenDisk

/** The program's own writer, of one thread. */
export const openWritable: Opener = files => openWritableWith(files)

/** Changes to a disk, to test that other code notices them. */
export interface Changes {
  /** Replaces the store through which clusters are written. */
  readonly store?: (store: WritableStore) => WritableStore
  /** Replaces the driver that writes the disk. */
  readonly driver?: (writer: WritableDriver) => WritableDriver
  /** Makes the writer, but no reader, believe that the disk has no parent. */
  readonly forgetsParent?: boolean
}

/** Opens a disk with `changes`. */
export function openWritableWith(files: DiskFiles, changes: Changes = {}): OpenDisk {
  const { store, parent, cipher } = files
  collectShared()
  recover(store)
  const header = readHeader(store)
  const bare = files.dataStore ?? store
  const dataFile = bare === store ? {} : { dataFile: bare as unknown as FileSpec }
  const plain = cipher ? new WritableCipherStore(bare, cipher) : bare
  const dataStore = changes.store?.(plain) ?? plain
  const memory = createDiskMemory(
    { fd: 0, sizeBytes: store.sizeBytes, format: 'qcow2', spec: header, ...dataFile },
    1,
    store,
  )
  const pool = new TablePool(memory.pool as PoolMemory)
  const parts = partsOf(header, store, dataStore, pool)
  const active = { offset: header.l1Offset, entries: header.l1Entries }
  const writer = new Qcow2Writer({
    ...parts,
    store,
    dataStore,
    pool,
    driver: new Qcow2Driver(parts, active, header.sizeBytes),
    memory: memory.format as Qcow2Memory,
    hasParent: parent !== undefined,
    isEncrypted: cipher !== undefined,
  })
  return openDisk(writer, memory, files, changes)
}

/** Returns a disk that `writer` writes, over its parent. */
export function openDisk(
  writer: WritableDriver,
  memory: DiskMemory,
  { store, parent }: Pick<DiskFiles, 'store' | 'parent'>,
  { driver: change, forgetsParent }: Changes = {},
): OpenDisk {
  const view = { driver: change?.(writer) ?? writer, parent: parent && parentView(parent) }
  const written = forgetsParent ? { ...view, parent: undefined } : view
  const disk = new SharedDisk(written, memory, 0, store.path)
  return { disk, read: bracketed(disk, view) }
}

/**
 * The memory that a disk's threads share is much address space, little of it used. The garbage collector does not know its cost,
 * and a process with too much of it cannot start others.
 */
export const collectShared = (() => {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  let opened = 0
  return () => {
    if (++opened % 16 === 0) collect()
  }
})()

const CACHE_BYTES = 2 ** 20

function partsOf(
  header: Qcow2Header,
  store: Store,
  dataStore: Store,
  pool?: TablePool,
): Qcow2Parts {
  return {
    header,
    store,
    dataStore,
    storeId: 0,
    metadata: new MetadataCache(CACHE_BYTES, new Float64Array(COUNTS), pool),
    clusters: new ClusterCache(CACHE_BYTES, new Float64Array(COUNTS)),
  }
}

export const readDisk = ({ disk, read }: OpenDisk): Buffer => read(0, disk.sizeBytes)

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

/** Returns what the files show if they are opened for reading. Throws what opening or reading throws. */
export function readImage(files: DiskFiles<Store>): { disk: Buffer; snapshots: Buffer[] } {
  const { store, cipher } = files
  const header = readHeader(store)
  const bare = files.dataStore ?? store
  const parts = partsOf(header, store, cipher ? new CipherStore(bare, cipher) : bare)
  const parent = files.parent && parentView(files.parent)
  const active = { offset: header.l1Offset, entries: header.l1Entries }
  const driver = new Qcow2Driver(parts, active, header.sizeBytes)
  const snapshots = readSnapshots(store, header).snapshots.map(
    ({ l1Offset, l1Entries, sizeBytes }) =>
      readAll({
        driver: new Qcow2Driver(parts, { offset: l1Offset, entries: l1Entries }, sizeBytes),
        parent,
      }),
  )
  return { disk: readAll({ driver, parent }), snapshots }
}

export const parentView = (parent: Buffer): View => ({
  driver: new RawDriver(parentStore(parent)),
  parent: undefined,
})

const parents = new WeakMap<Buffer, MemoryStore>()

/** Returns the parent as a store, which is never written. */
export function parentStore(parent: Buffer): Store {
  const known = parents.get(parent) ?? new MemoryStore('parent.raw', parent)
  parents.set(parent, known)
  return known
}
