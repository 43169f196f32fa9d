/** What the tests of cow images have in common: disks over stores, read or written in this process. */
import type { View } from '../../../src/formats/driver.js'
import type { CowDriver } from '../../../src/formats/cow/driver.js'
import type { Store, WritableStore } from '../../../src/io/store.js'
import { type BuiltCow, buildCow, type CowSpec } from '../../fixtures/cow-builder.js'
import { noise } from '../../fixtures/model.js'
import { readAll } from '../../support/image.js'
import { type OpenDisk, openRead, openWritten } from '../../support/store-image.js'
import { MemoryStore } from '../../support/stores.js'

export const SECTOR = 512

/** An image to be read. */
export const viewOf = (store: Store, parent?: Buffer): View & { readonly driver: CowDriver } =>
  openRead('cow', { store, parent }).view as View & { readonly driver: CowDriver }

export const readCow = (store: Store, parent?: Buffer): Buffer => readAll(viewOf(store, parent))

/** The program's own writer, of one thread. */
export const openCow = (store: WritableStore, parent?: Buffer): OpenDisk =>
  openWritten('cow', { store, parent })

/** Runs of sectors, [first, count] each, with bytes that tell them apart. */
export function sectorsOf(runs: readonly (readonly [number, number])[]): Map<number, Buffer> {
  const sectors = new Map<number, Buffer>()
  for (const [first, count] of runs) {
    for (let i = first; i < first + count; i++) sectors.set(i, noise(SECTOR, i + 1))
  }
  return sectors
}

/** What the disk of a built image reads as, over `parent`. */
export function modelOf(
  { sizeBytes, sectors }: Pick<CowSpec, 'sizeBytes' | 'sectors'>,
  parent?: Buffer,
): Buffer {
  const disk = Buffer.alloc(sizeBytes)
  parent?.copy(disk)
  for (const [sector, bytes] of sectors ?? []) bytes.copy(disk, sector * SECTOR)
  return disk
}

export function storeOf(spec: CowSpec): { built: BuiltCow; store: MemoryStore } {
  const built = buildCow(spec)
  return { built, store: new MemoryStore('disk.cow', built.bytes) }
}
