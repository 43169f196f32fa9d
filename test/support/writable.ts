/** qcow2 disks over stores, opened for writing or for reading in this process. */
import type { View } from '../../src/formats/driver.js'
import { recover } from '../../src/formats/qcow2/recovery.js'
import { RawDriver } from '../../src/formats/raw/driver.js'
import type { WritableDriver } from '../../src/formats/writable.js'
import type { DiskChanges } from '../../src/image/reading/view-set.js'
import type { Store, WritableStore } from '../../src/io/store.js'
import { ReusedBuffers } from './image.js'
import {
  type OpenDisk,
  openRead,
  openWritten,
  parentStore,
  type StoreImage,
} from './store-image.js'

export {
  bracketed,
  collectShared,
  type OpenDisk,
  parentStore,
  type TestedDisk,
} from './store-image.js'

export type DiskFiles<S extends Store = WritableStore> = Omit<StoreImage<S>, 'extents'>

export type Opener = (files: DiskFiles) => OpenDisk

/** What tests change of a disk, to see that others notice. */
export interface Changes {
  /** Of what clusters are written through. */
  readonly store?: (store: WritableStore) => WritableStore
  /** Of what the disk is written by. */
  readonly driver?: (writer: WritableDriver) => WritableDriver
  /** The writer, but no reader, takes the disk to stand alone. */
  readonly forgetsParent?: boolean
}

export const changesOf = ({ store, driver, forgetsParent }: Changes): DiskChanges => ({
  ...(store && { dataStore: store }),
  view: view => ({
    driver: driver?.(view.driver) ?? view.driver,
    parent: forgetsParent ? undefined : view.parent,
  }),
})

/** The program's own writer, of one thread. */
export const openWritable: Opener = files => openWritableWith(files)

/** The same, with `changes`. */
export function openWritableWith(files: DiskFiles, changes: Changes = {}): OpenDisk {
  recover(files.store)
  return openWritten('qcow2', files, changesOf(changes))
}

export const readDisk = ({ disk, read }: OpenDisk): Buffer => read(0, disk.sizeBytes)

/**
 * What the files show to one who opens them for reading only. Throws what opening or reading throws.
 * @param reused holds the result until the next call with it; by default the result is the caller's to keep
 */
export function readImage(
  files: DiskFiles<Store>,
  reused = new ReusedBuffers(),
): { disk: Buffer; snapshots: Buffer[] } {
  const { view, snapshots } = openRead('qcow2', files)
  return {
    disk: reused.readAll(view, 0),
    snapshots: snapshots.map((snapshot, i) => reused.readAll(snapshot, 1 + i)),
  }
}

export const parentView = (parent: Buffer): View => ({
  driver: new RawDriver(parentStore(parent)),
  parent: undefined,
})
