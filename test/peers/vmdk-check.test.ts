/** Checking and repairing vmdk images, judged by `qemu-img check` and by what QEMU reads of them. */
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { ImageError } from '../../src/errors.js'
import { closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { type CheckedExtent, checkVmdk } from '../../src/formats/vmdk/check.js'
import type { VmdkSpec } from '../../src/formats/vmdk/open.js'
import { grainLayout } from '../../src/formats/vmdk/layout.js'
import { type RepairedExtent, repairVmdk } from '../../src/formats/vmdk/repair.js'
import { readSparseHeader } from '../../src/formats/vmdk/sparse-header.js'
import { WritableFileStore, type WritableStore } from '../../src/io/store.js'
import { openImage, readAt } from '../support/image.js'
import { holds } from '../support/property.js'
import { attempt, needs, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'
import { convertedBy, qemuImg, qemuIo, randomWrites } from './qemu.js'

const K = 1024
const M = K * K
const GRAIN = 64 * K
const SECTOR = 512
const tools = needs('qemu-img', 'qemu-io')

/** Runs `act` with the image's extents, opened for writing. */
function withExtents<T>(image: string, act: (extents: readonly RepairedExtent[]) => T): T {
  const chain = openChain(image, { describe: 'image', access: 'write' })
  try {
    const stores = new Map<number, WritableStore>()
    const vmdk = chain.layers[0].spec as VmdkSpec
    return act(
      vmdk.extents.map(({ file, layout, sizeBytes }): RepairedExtent => {
        const store =
          file &&
          (stores.get(file.fd) ??
            new WritableFileStore(file.path, file.fd, BigInt64Array.of(BigInt(file.sizeBytes))))
        if (file && store) stores.set(file.fd, store)
        return { sizeBytes, store, layout, obstacle: undefined }
      }),
    )
  } finally {
    closeChain(chain)
  }
}

const isSoundByQemu = async (image: string): Promise<boolean> =>
  (await attempt('qemu-img', ['check', '-f', 'vmdk', image])).code === 0

/** Grains that hold data, by what QEMU says of the image. */
async function mappedGrains(image: string, sizeBytes: number): Promise<number> {
  const map = JSON.parse(await qemuImg('map', '-f', 'vmdk', '--output=json', image)) as {
    start: number
    length: number
    data: boolean
    offset?: number
  }[]
  const bytes = map.filter(({ data, offset }) => data && offset !== undefined)
  return bytes.reduce((sum, { start, length }) => {
    const end = start + length === sizeBytes ? Math.ceil(sizeBytes / GRAIN) * GRAIN : start + length
    return sum + (end - start) / GRAIN
  }, 0)
}

const KINDS = [
  'monolithicSparse',
  'monolithicSparse,zeroed_grain=on',
  'monolithicSparse,compat6',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentSparse,zeroed_grain=on',
]

for (const [seed, kind] of KINDS.entries()) {
  t.test(`a sound ${kind}`, tools, async t => {
    const image = join(tempFolder(t), 'disk.vmdk')
    const size = 40 * M + 512
    await qemuImg('create', '-q', '-f', 'vmdk', '-o', `subformat=${kind}`, image, String(size))
    const kinds = ['write', 'partial', 'zero'] as const
    await qemuIo(image, randomWrites(seed, size, { cluster: GRAIN, kinds }), ['-f', 'vmdk'])
    const found = withExtents(image, extents => checkVmdk(extents))
    t.match(found, { corruptions: 0, checkErrors: 0 })
    // A grain that becomes zeros stays in the file.
    if (!kind.includes('zeroed')) t.match(found, { leaks: 0, findings: { length: 0 } })
    t.equal(found.totalClusters, 641)
    t.equal(found.allocatedClusters, await mappedGrains(image, size))
    t.ok(await isSoundByQemu(image))
  })
}

t.test('extents of 2 GiB each', tools, async t => {
  const image = join(tempFolder(t), 'disk.vmdk')
  await qemuImg('create', '-q', '-f', 'vmdk', '-o', 'subformat=twoGbMaxExtentSparse', image, '5G')
  await qemuIo(image, ['write 2047M 2M', 'write 4095M 2M'], ['-f', 'vmdk'])
  t.match(
    withExtents(image, extents => checkVmdk(extents)),
    { corruptions: 0, leaks: 0, totalClusters: 5 * 16 * K, allocatedClusters: 64 },
  )
})

for (const kind of ['streamOptimized', 'monolithicFlat', 'twoGbMaxExtentFlat']) {
  t.test(`a sound ${kind}`, tools, async t => {
    const folder = tempFolder(t)
    const raw = join(folder, 'raw')
    writeFileSync(raw, Buffer.alloc(3 * M, 'text '))
    const image = join(folder, 'disk.vmdk')
    await qemuImg('convert', '-O', 'vmdk', '-f', 'raw', '-o', `subformat=${kind}`, raw, image)
    const chain = openChain(image, { describe: 'image' })
    t.teardown(() => closeChain(chain))
    const extents = (chain.layers[0].spec as VmdkSpec).extents.map(
      ({ sizeBytes, file, layout }): CheckedExtent => ({
        sizeBytes,
        layout,
        store: file && new MemoryStore(file.path, readFileSync(file.path)),
      }),
    )
    t.match(checkVmdk(extents), { corruptions: 0, leaks: 0, findings: { length: 0 } })
    t.ok(await isSoundByQemu(image))
  })
}

/** What the disk reads as here, grain by grain; undefined where it cannot be read. */
function disk(image: string): (Buffer | undefined)[] {
  const { view, close } = openImage(image)
  try {
    const { sizeBytes } = view().driver
    return Array.from({ length: Math.ceil(sizeBytes / GRAIN) }, (_, i) => {
      try {
        return readAt(view(), i * GRAIN, Math.min(GRAIN, sizeBytes - i * GRAIN))
      } catch (error) {
        if (!(error instanceof ImageError)) throw error
        return undefined
      }
    })
  } finally {
    close()
  }
}

interface Places {
  readonly entries: readonly number[]
  /** Where grains begin, in sectors. */
  readonly grains: readonly number[]
  readonly endSector: number
}

/** The entries of both directories, and of the tables that they name. */
function placesOf(bytes: Buffer): Places {
  const layout = grainLayout({
    kind: 'sparse',
    header: readSparseHeader(new MemoryStore('x', bytes)),
  })
  if (!layout) throw new Error('it has no grains')
  const entries: number[] = []
  const grains: number[] = []
  for (const at of [layout.directoryAt, layout.redundantDirectoryAt as number]) {
    for (let i = 0; i < layout.directoryEntries; i++) {
      entries.push(at + i * 4)
      const table = bytes.readUInt32LE(at + i * 4) * SECTOR
      for (let k = 0; k < layout.tableEntries; k++) {
        const grain = bytes.readUInt32LE(table + k * 4)
        if (grain > 1) grains.push(grain)
        // Of those that name nothing, some.
        if (grain > 1 || k % 64 === 0) entries.push(table + k * 4)
      }
    }
  }
  return { entries, grains, endSector: bytes.length / SECTOR }
}

const samples = fc.record({
  damages: fc.array(
    fc.tuple(
      fc.nat(),
      fc.oneof(
        fc.constantFrom('zero' as const, 'behind' as const, 'behind' as const),
        fc.record({ grain: fc.nat() }),
        fc.nat({ max: 1000 }),
      ),
    ),
    { minLength: 1, maxLength: 2 },
  ),
  what: fc.constantFrom('leaks' as const, 'all' as const),
  cutSectors: fc.constantFrom(0, 0, 0, 0, 0, 0, 0, 100),
})

t.test('damaged images', tools, async t => {
  const folder = tempFolder(t)
  const image = join(folder, 'sound.vmdk')
  await qemuImg('create', '-q', '-f', 'vmdk', image, '40M')
  const kinds = ['write', 'partial'] as const
  await qemuIo(image, randomWrites(5, 40 * M, { cluster: GRAIN, kinds }), ['-f', 'vmdk'])
  const sound = readFileSync(image)
  const original = disk(image)
  const places = placesOf(sound)
  const damaged = join(folder, 'damaged.vmdk')
  const seen = { damaged: 0, more: 0, repaired: 0 }
  await holds(samples, 20, async ({ damages, what, cutSectors }) => {
    const bytes = Buffer.from(sound.subarray(0, sound.length - cutSectors * SECTOR))
    for (const [which, value] of damages) {
      const at = places.entries[which % places.entries.length] as number
      const sector =
        value === 'zero'
          ? 0
          : value === 'behind'
            ? places.endSector + which
            : typeof value === 'number'
              ? value
              : (places.grains[value.grain % places.grains.length] as number)
      bytes.writeUInt32LE(sector, at)
    }
    writeFileSync(damaged, bytes)
    let before: (Buffer | undefined)[]
    try {
      before = disk(damaged)
    } catch (error) {
      if (error instanceof ImageError) return
      throw error
    }
    let found: ReturnType<typeof checkVmdk>
    try {
      found = withExtents(damaged, extents => checkVmdk(extents))
    } catch (error) {
      // One of its directories cannot be used: it is not opened for writing.
      if (error instanceof ImageError && error.code === 'READ_ONLY') return
      throw error
    }
    const isSound = await isSoundByQemu(damaged)
    if (found.corruptions === 0 && !isSound) throw new Error('QEMU finds more')
    if (found.corruptions > 0) seen.damaged++
    if (found.corruptions > 0 && isSound) seen.more++
    let { after } = withExtents(damaged, extents => repairVmdk(extents, what))
    // Space is given back once nothing is damaged.
    if (after.corruptions === 0 && after.leaks > 0) {
      after = withExtents(damaged, extents => repairVmdk(extents, 'leaks')).after
    }
    disk(damaged).forEach((grain, i) => {
      const old = before[i]
      // The redundant directory may know better than the damaged one: then the grain is what it was at first.
      const isKept = !old || grain?.equals(old) || grain?.equals(original[i] as Buffer)
      if (!isKept) throw new Error(`grain ${i} reads otherwise`)
    })
    if (after.corruptions + after.leaks > 0) return
    if (found.corruptions > 0) seen.repaired++
    if (!(await isSoundByQemu(damaged))) throw new Error('QEMU finds it damaged')
    const now = await convertedBy(damaged, undefined, 'vmdk')
    before.forEach((old, i) => {
      const grain = now.subarray(i * GRAIN, (i + 1) * GRAIN)
      const isKept = !old || old.equals(grain) || grain.equals(original[i] as Buffer)
      if (!isKept) throw new Error(`QEMU reads grain ${i} otherwise`)
    })
  })
  t.ok(
    Object.values(seen).every(times => times > 0),
    JSON.stringify(seen),
  )
})

t.test('grains that QEMU leaves behind', tools, async t => {
  for (const kind of ['monolithicSparse', 'twoGbMaxExtentSparse']) {
    const image = join(tempFolder(t), 'disk.vmdk')
    const options = `subformat=${kind},zeroed_grain=on`
    await qemuImg('create', '-q', '-f', 'vmdk', '-o', options, image, '10M')
    const commands = ['write -P 5 1M 1M', 'write -z 1M 128k', 'write -z 1984k 64k']
    await qemuIo(image, commands, ['-f', 'vmdk'])
    const before = await convertedBy(image, undefined, 'vmdk')
    t.match(
      withExtents(image, extents => repairVmdk(extents, 'leaks')),
      { before: { corruptions: 0, leaks: 3 }, after: { corruptions: 0, leaks: 0 } },
      kind,
    )
    t.ok(await isSoundByQemu(image))
    t.ok(before.equals(await convertedBy(image, undefined, 'vmdk')))
    // Later writes go after the new end.
    await qemuIo(image, ['write -P 7 1M 2M', 'read -P 7 1M 2M'], ['-f', 'vmdk'])
    t.match(
      withExtents(image, extents => checkVmdk(extents)),
      { corruptions: 0, leaks: 0, allocatedClusters: 32 },
    )
  }
})

t.test('a grain that QEMU finds past the end', tools, async t => {
  for (const kind of KINDS) {
    const folder = tempFolder(t)
    const image = join(folder, 'disk.vmdk')
    await qemuImg('create', '-q', '-f', 'vmdk', '-o', `subformat=${kind}`, image, '10M')
    await qemuIo(image, ['write -P 5 1M 1M', 'write -P 6 8M 64k'], ['-f', 'vmdk'])
    const extent = kind.startsWith('two') ? join(folder, 'disk-s001.vmdk') : image
    const sound = readFileSync(extent)
    copyFileSync(image, join(folder, 'copy.vmdk'))
    const { entries } = placesOf(sound)
    const at = entries.find(at => at % 4 === 0 && sound.readUInt32LE(at) * SECTOR > GRAIN)
    if (at === undefined) throw new Error('no grain')
    const bytes = Buffer.from(sound)
    bytes.writeUInt32LE(bytes.length / SECTOR, at)
    writeFileSync(extent, bytes)
    t.notOk(await isSoundByQemu(image), kind)
    t.match(
      withExtents(image, extents => repairVmdk(extents, 'all')),
      { before: { corruptions: 2 }, after: { corruptions: 0, leaks: 0 } },
    )
    t.ok(await isSoundByQemu(image))
    t.ok(readFileSync(extent).equals(sound), 'it is as before')
  }
})
