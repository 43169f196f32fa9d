/** What the tests of sparse extents with grain tables have in common. */
import { strict as assert } from 'node:assert'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ClusterCache } from '../../../src/cache/cluster-cache.js'
import { ImageError, SystemError } from '../../../src/errors.js'
import type { FormatDriver, View } from '../../../src/formats/driver.js'
import { RawDriver } from '../../../src/formats/raw/driver.js'
import type { ExtentParts } from '../../../src/formats/vmdk/parts.js'
import type { Store } from '../../../src/io/store.js'
import { readAt } from '../../support/image.js'
import { run } from '../../support/run.js'
import { MemoryStore } from '../../support/stores.js'

/** Parts whose tables are each overwritten by the next one that is read, as the cache may do it. */
export function harshParts(store: Store): ExtentParts & { reads: number } {
  const slice = Buffer.alloc(4096)
  const parts = {
    store,
    storeId: 3,
    grains: new ClusterCache(0x1000, new Float64Array(64)),
    reads: 0,
    readTable(at: number, length: number): Buffer {
      assert(at % 512 === 0 && length % 512 === 0 && length > 0 && length <= slice.length)
      assert(Number.isSafeInteger(at) && at >= 0)
      parts.reads++
      slice.fill(0xdb)
      if (store.read(slice, 0, length, at) < length) {
        throw new ImageError('CORRUPT', `a table at ${at} lies beyond the end of the file`)
      }
      return slice.subarray(0, length)
    },
  }
  return parts
}

export const overRaw = (driver: FormatDriver, parent?: Buffer): View => ({
  driver,
  parent: parent && {
    driver: new RawDriver(new MemoryStore('parent.raw', parent)),
    parent: undefined,
  },
})

/** What reads around the borders of `step` bytes differ in from `disk`. */
export function wrongReads(view: View, disk: Buffer, step: number): string[] {
  const wrong: string[] = []
  if (!readAt(view, 0, disk.length).equals(disk)) wrong.push('all of it')
  for (let border = 0; border <= disk.length; border += step) {
    for (const offset of [border - 1, border, border + 1]) {
      for (const length of [1, 2, 511, 513, 4095, step - 1, step, step + 1, 3 * step]) {
        if (offset < 0 || offset >= disk.length) continue
        const expected = Buffer.alloc(length)
        disk.copy(expected, 0, offset, offset + length)
        if (!readAt(view, offset, length).equals(expected)) wrong.push(`${length} at ${offset}`)
      }
    }
  }
  return wrong
}

/** The extents of `[offset, offset + length)`, in short. */
export function extentsOf(driver: FormatDriver, offset: number, length: number): string[] {
  const found: string[] = []
  for (let done = 0; done < length; ) {
    const extent = driver.lookup(offset + done, length - done)
    found.push(`${extent.kind} ${extent.length}${extent.kind === 'data' ? ` at ${extent.at}` : ''}`)
    done += extent.length
  }
  return found
}

/** The image's error that `act` must throw. */
export function thrownBy(act: () => unknown): ImageError {
  try {
    act()
  } catch (error) {
    if (error instanceof ImageError) return error
    throw error
  }
  throw new Error('nothing was thrown')
}

/** How many lookups a damaged extent is given: its disk may be said to have terabytes. */
const MAX_LOOKUPS = 400

/** Reads a damaged extent. It may throw only errors that name the fault of the file. */
export function exercise(store: Store, open: (store: Store) => FormatDriver): boolean {
  const target = Buffer.alloc(8192)
  let driver: FormatDriver
  try {
    driver = open(store)
  } catch (error) {
    expected(error)
    return false
  }
  const { sizeBytes } = driver
  assert(Number.isSafeInteger(sizeBytes) && sizeBytes >= 0)
  for (const from of [0, Math.floor(sizeBytes / 2 / 512) * 512, Math.max(0, sizeBytes - 2 ** 20)]) {
    let offset = from
    for (let i = 0; i < MAX_LOOKUPS && offset < sizeBytes; i++) {
      const wanted = Math.min(sizeBytes - offset, 2 ** (9 + (i % 20)))
      try {
        const extent = driver.lookup(offset, wanted)
        assert(extent.length > 0 && extent.length <= wanted)
        if (extent.kind === 'data') {
          assert(extent.at > 0 && extent.at + extent.length <= store.sizeBytes)
          const length = Math.min(extent.length, target.length)
          assert.equal(store.read(target, 0, length, extent.at), length)
        }
        offset += extent.length
      } catch (error) {
        expected(error)
        offset += 512
      }
    }
  }
  return true
}

function expected(error: unknown): void {
  if (!(error instanceof ImageError) && !(error instanceof SystemError)) throw error
}

export interface Link {
  readonly type: 'VMFSSPARSE' | 'SESPARSE' | 'VMFS'
  readonly bytes: Buffer
}

/** What qemu-img makes of an extent, over a flat parent if there is one. */
export async function rawByQemu(folder: string, link: Link, sectors: number, parent?: Buffer) {
  const createType = { VMFSSPARSE: 'vmfsSparse', SESPARSE: 'seSparse', VMFS: 'vmfs' }
  const describe = (name: string, { type, bytes }: Link, size: number, more: string[]) => {
    writeFileSync(join(folder, `${name}-extent.vmdk`), bytes)
    const lines = [
      '# Disk DescriptorFile',
      'version=1',
      ...more,
      `createType="${createType[type]}"`,
      `RW ${size} ${type} "${name}-extent.vmdk"`,
      'ddb.adapterType = "lsilogic"',
    ]
    writeFileSync(join(folder, `${name}.vmdk`), `${lines.join('\n')}\n`)
  }
  if (parent) {
    const flat: Link = { type: 'VMFS', bytes: parent }
    const size = parent.length / 512
    describe('base', flat, size, ['CID=12345678', 'parentCID=ffffffff'])
    const child = ['CID=23456789', 'parentCID=12345678', 'parentFileNameHint="base.vmdk"']
    describe('child', link, sectors, child)
  } else describe('child', link, sectors, ['CID=23456789', 'parentCID=ffffffff'])
  return convert(folder, 'child.vmdk')
}

export async function convert(folder: string, name: string): Promise<Buffer> {
  const args = ['convert', '-f', 'vmdk', '-O', 'raw', name, 'out.raw']
  await run('qemu-img', args, { cwd: folder })
  return readFileSync(join(folder, 'out.raw'))
}

/** Writes numbers over an extent: [at, bytes, value] each. */
export function poked(bytes: Buffer, pokes: readonly Poke[]): Buffer {
  const copy = Buffer.from(bytes)
  for (const [at, width, value] of pokes) {
    if (width === 4) copy.writeUInt32LE(Number(value), at)
    else if (width === 8) copy.writeBigUInt64LE(BigInt(value), at)
    else copy.writeUInt8(Number(value), at)
  }
  return copy
}
export type Poke = readonly [at: number, width: 1 | 4 | 8, value: number | bigint]
