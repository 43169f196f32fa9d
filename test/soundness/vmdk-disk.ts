/** VMDK disks over stores, opened for reading or by the program's own writer. */
import type { VmdkSpec } from '../../src/formats/vmdk/open.js'
import type { VmdkWriter } from '../../src/formats/vmdk/writer.js'
import type { WritableDriver } from '../../src/formats/writable.js'
import type { Store, WritableStore } from '../../src/io/store.js'
import { ReusedBuffers } from '../support/image.js'
import { type OpenDisk, openRead, openWritten, type StoreImage } from '../support/store-image.js'

/** The image first, and the files of its extents, which their paths name. */
export interface VmdkFiles<S extends Store = WritableStore> {
  readonly stores: readonly S[]
  /** The disk of the parent. */
  readonly parent?: Buffer | undefined
}

export type VmdkOpener = (files: VmdkFiles) => OpenDisk

/** The program's own writer, of one thread. */
export const openVmdkWritable: VmdkOpener = files => openVmdkWith(files, writer => writer)

/** The same, with a writer that `change` makes of it. */
export function openVmdkWith(
  files: VmdkFiles,
  change: (writer: VmdkWriter, spec: VmdkSpec) => WritableDriver,
): OpenDisk {
  const image = imageOf(files)
  const { spec } = openRead('vmdk', image).layer
  return openWritten('vmdk', image, {
    view: ({ driver, parent }) => ({
      driver: change(driver as VmdkWriter, spec as VmdkSpec),
      parent,
    }),
  })
}

export interface VmdkRead {
  readonly disk: Buffer
  readonly warnings: readonly string[]
}

/**
 * What the files show to one who opens them for reading only. Throws what opening or reading throws.
 * @param reused holds the disk until the next call with it; by default the disk is the caller's to keep
 */
export function readVmdk(files: VmdkFiles<Store>, reused = new ReusedBuffers()): VmdkRead {
  const { view, warnings } = openRead('vmdk', imageOf(files))
  return { disk: reused.readAll(view, 0), warnings }
}

/** The warnings of opening the files for reading. */
export const vmdkWarnings = (files: VmdkFiles<Store>): readonly string[] =>
  openRead('vmdk', imageOf(files)).warnings

const imageOf = <S extends Store>({ stores, parent }: VmdkFiles<S>): StoreImage<S> => ({
  store: stores[0] as S,
  extents: stores.slice(1),
  parent,
})
