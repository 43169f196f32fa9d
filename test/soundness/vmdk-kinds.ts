/** Kinds of VMDK images that scenarios start from: one for each way in which extents differ. */
import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { buildCowd } from '../fixtures/cowd-builder.js'
import { noise } from '../fixtures/model.js'
import {
  buildExtent,
  type BuiltExtent,
  type ExtentSpec,
  type Grain,
  HEADER_AT,
} from '../fixtures/vmdk-builder.js'
import { qemuImg, qemuIo } from '../peers/qemu.js'
import { MemoryStore } from '../support/stores.js'
import type { Geometry } from './steps.js'
import { readVmdk } from './vmdk-disk.js'
import { judgeVmdk, type VmdkVerdict } from './vmdk-judge.js'

export interface VmdkKind extends Geometry {
  readonly title: string
  /** The image, and the files of its extents, named by their paths. */
  readonly files: readonly MemoryStore[]
  /** The disk of the parent. */
  readonly parent: Buffer | undefined
  /** What it shows at first. */
  readonly disk: Buffer
  /** What it is like at first. */
  readonly verdict: VmdkVerdict
  readonly isHeavy: boolean
  /** Where QEMU finds what the image names; undefined where it does not read such an image. */
  readonly folder: string | undefined
}

export interface VmdkRecipe {
  readonly title: string
  /** Of most extents, in sectors. */
  readonly grainSectors: number
  readonly isHeavy?: boolean
  /** The ZERO extent, in sectors of the disk: it reads as zeros and takes no other write. */
  readonly zeroSectors?: { readonly from: number; readonly count: number }
  readonly isUnknownToQemu?: boolean
  /** Makes the files, the image first, in `folder` or in memory. */
  readonly make: (folder: string) => Made | Promise<Made>
}

interface Made {
  readonly files: readonly MemoryStore[]
  readonly parent?: Buffer
}

const SECTOR = 512
const K = 1024
const IMAGE = 'image.vmdk'
/** What it is in descriptors that are made here; a parent there is none of that QEMU could look for. */
const CID = '1234abcd'

export async function makeVmdkKind(recipe: VmdkRecipe, folder: string): Promise<VmdkKind> {
  const { title, grainSectors, isHeavy = false, zeroSectors, isUnknownToQemu } = recipe
  const { files, parent } = await recipe.make(folder)
  const { disk } = readVmdk({ stores: files, parent })
  const verdict = judgeVmdk(files)
  if (verdict.corruptions.length > 0) throw new Error(`${title}: ${verdict.corruptions.join('; ')}`)
  return {
    ...{ title, files, parent, disk, verdict, isHeavy },
    sizeBytes: disk.length,
    cluster: grainSectors * SECTOR,
    unwritable: zeroSectors && {
      offset: zeroSectors.from * SECTOR,
      length: zeroSectors.count * SECTOR,
    },
    folder: isUnknownToQemu ? undefined : folder,
  }
}

interface QemuRecipe {
  readonly bytes: number
  readonly options?: string
  readonly hasParent?: boolean
  readonly commands?: readonly string[]
}

/** An image as QEMU makes it: grains of 64 KiB, one table for 32 MiB. */
const byQemu =
  ({ bytes, options = '', hasParent = false, commands = [] }: QemuRecipe) =>
  async (folder: string): Promise<Made> => {
    const path = join(folder, IMAGE)
    const parent = hasParent ? noise(bytes, 4711) : undefined
    if (parent) {
      await writeFile(join(folder, 'parent.raw'), parent)
      const base = join(folder, 'parent.vmdk')
      await qemuImg('convert', '-f', 'raw', '-O', 'vmdk', join(folder, 'parent.raw'), base)
    }
    const backing = parent ? ['-b', join(folder, 'parent.vmdk'), '-F', 'vmdk'] : []
    const given = options === '' ? [] : ['-o', options]
    await qemuImg('create', '-q', '-f', 'vmdk', ...given, ...backing, path, String(bytes))
    if (commands.length > 0) await qemuIo(path, commands, ['-f', 'vmdk'])
    const files = [new MemoryStore(IMAGE, readFileSync(path))]
    return parent ? { files, parent } : { files }
  }

const WRITTEN = [
  'write -P 1 0 200k',
  'write -P 2 1300k 70k',
  'write -P 3 2M 1k',
  'write -P 4 1M 1k',
]

interface DescriptorSpec {
  readonly lines: readonly string[]
  readonly cid?: string
  readonly isChild?: boolean
  readonly createType?: string
  readonly longContentId?: string
  readonly eol?: string
  /** What stands in front of the CID, so that sectors end within its digits. */
  readonly comment?: string
}

/** A descriptor. A child's parent is what the scenario gives, whatever its name. */
function descriptor(spec: DescriptorSpec): Buffer {
  const { lines, cid = CID, isChild = false, createType = 'custom', longContentId } = spec
  const text = [
    '# Disk DescriptorFile',
    'version=1',
    'encoding="UTF-8"',
    ...(spec.comment === undefined ? [] : [`# ${spec.comment}`]),
    `CID=${cid}`,
    `parentCID=${isChild ? '0badcafe' : 'ffffffff'}`,
    `createType="${createType}"`,
    ...(isChild ? ['parentFileNameHint="parent.vmdk"'] : []),
    '',
    '# Extent description',
    ...lines,
    '',
    '# The Disk Data Base',
    '#DDB',
    '',
    'ddb.adapterType = "lsilogic"',
    ...(longContentId === undefined ? [] : [`ddb.longContentID = "${longContentId}"`]),
    'ddb.virtualHWVersion = "4"',
    '',
  ]
  return Buffer.from(text.join(spec.eol ?? '\n'))
}

/** `count` grains from each of `from` on, of noise. */
function grainsAt(grainSectors: number, ...runs: readonly [number, number][]): Map<number, Grain> {
  const grains = new Map<number, Grain>()
  for (const [from, count] of runs) {
    for (let i = from; i < from + count; i++) {
      grains.set(i, { kind: 'data', bytes: noise(grainSectors * SECTOR, i + 1) })
    }
  }
  return grains
}

interface MonolithicSpec extends Omit<ExtentSpec, 'descriptor'> {
  readonly grainSectors: number
  readonly hasParent?: boolean
  readonly about?: Partial<DescriptorSpec>
  readonly patch?: (bytes: Buffer, built: BuiltExtent) => Buffer
}

/** One hosted extent with its descriptor in it. */
function monolithic({ hasParent = false, about, patch, ...spec }: MonolithicSpec): Made {
  const text = descriptor({
    lines: [`RW ${spec.capacitySectors} SPARSE "${IMAGE}"`],
    isChild: hasParent,
    createType: 'monolithicSparse',
    ...about,
  })
  const built = buildExtent({ ...spec, descriptor: text })
  const bytes = patch ? patch(built.bytes, built) : built.bytes
  const files = [new MemoryStore(IMAGE, bytes)]
  return hasParent ? { files, parent: noise(spec.capacitySectors * SECTOR, 815) } : { files }
}

/** An image of one hosted extent. */
export const hostedRecipe = (spec: MonolithicSpec): VmdkRecipe => ({
  title: 'hosted',
  grainSectors: spec.grainSectors,
  make: () => monolithic(spec),
})

/** Cuts the two directories apart as a power cut does: each lacks a grain that the other one has. */
function disagreeing(bytes: Buffer, built: BuiltExtent): Buffer {
  bytes.writeUInt32LE(0, built.entryAt(3))
  bytes.writeUInt32LE(0, built.redundantEntryAt(5))
  return bytes
}

/** As QEMU leaves them when it is killed: it says of no image that it is open. */
function lagging(bytes: Buffer, built: BuiltExtent): Buffer {
  bytes.writeUInt32LE(0, built.redundantEntryAt(5))
  bytes.writeUInt32LE(0, built.redundantEntryAt(125))
  return bytes
}

/** Two new tables, with a grain each, that a power cut left in one of the directories alone. */
function halfNamed(bytes: Buffer, built: BuiltExtent): Buffer {
  const end = Math.ceil(bytes.length / (8 * SECTOR)) * 8
  const tables = Buffer.alloc(8 * SECTOR)
  const grains = [0, 1].map(i => {
    const sector = end + 8 * (i + 1)
    tables.writeUInt32LE(sector, i * SECTOR + 7 * 4)
    return noise(8 * SECTOR, 70 + i)
  })
  bytes.writeUInt32LE(end, built.directoryAt)
  bytes.writeUInt32LE(end + 1, built.redundantDirectoryAt + 2 * 4)
  const padding = Buffer.alloc(end * SECTOR - bytes.length)
  return Buffer.concat([bytes, padding, tables, ...grains])
}

/** Space that a writer took but did not come to name, the last of it in part. */
const withRemains = (bytes: Buffer): Buffer => Buffer.concat([bytes, noise(9 * K + 700, 99)])

const SMALL = { capacitySectors: 2403, grainSectors: 8, tableEntries: 128 }
const SMALLEST = { capacitySectors: 421, grainSectors: 1, tableEntries: 128 }

const smallGrains = grainsAt(8, [0, 9], [120, 20], [300, 1])
const smallestGrains = grainsAt(1, [0, 9], [120, 20], [420, 1])

/** A split disk: descriptor, extents that end within a grain, one that is flat, and one of zeros. */
function split(): Made {
  const extents = [
    { name: 'image-s001.vmdk', sectors: 300, grains: grainsAt(8, [0, 3], [30, 7]) },
    { name: 'image-s002.vmdk', sectors: 203, grains: grainsAt(8, [0, 1], [25, 1]) },
    { name: 'image-s004.vmdk', sectors: 120, grains: undefined },
  ].map(({ name, sectors, grains }) => {
    // It holds whole grains, or what its header gives.
    const capacitySectors = name.includes('2') ? sectors : Math.ceil(sectors / 8) * 8
    const spec = { capacitySectors, grainSectors: 8, tableEntries: 128, ...(grains && { grains }) }
    const file = new MemoryStore(name, buildExtent(spec).bytes)
    return { file, line: `RW ${sectors} SPARSE "${name}"` }
  })
  const flat = new MemoryStore('image-f003.vmdk', noise(150 * SECTOR, 3))
  const lines = extents.map(({ line }) => line)
  lines.splice(2, 0, 'RW 96 FLAT "image-f003.vmdk" 17', 'RW 64 ZERO')
  const text = descriptor({ lines, createType: 'twoGbMaxExtentSparse' })
  return { files: [new MemoryStore(IMAGE, text), ...extents.map(({ file }) => file), flat] }
}

/** Flat extents; of one file two parts, in another order. */
function flat(): Made {
  const lines = [
    'RW 100 FLAT "image-f001.vmdk" 130',
    'RW 57 VMFS "image-f002.vmdk"',
    'RW 100 FLAT "image-f001.vmdk" 3',
  ]
  const about = { lines, createType: 'twoGbMaxExtentFlat', eol: '\r\n' }
  const shift = SECTOR - 4 - descriptor({ ...about, comment: '' }).indexOf(CID)
  const text = descriptor({ ...about, comment: 'x'.repeat(shift) })
  return {
    files: [
      new MemoryStore(IMAGE, text),
      new MemoryStore('image-f001.vmdk', noise(240 * SECTOR, 1)),
      new MemoryStore('image-f002.vmdk', noise(57 * SECTOR, 2)),
    ],
  }
}

interface CowdMade {
  readonly sectors: number
  readonly grainSectors: number
  readonly grains: readonly number[]
  readonly hasParent?: boolean
  readonly isUnclean?: boolean
  readonly gapSectors?: number
  /** How far the header's next free sector lies past the space in use. */
  readonly freeSectorsAhead?: number
  readonly hasDescriptor?: boolean
}

/** A COWD extent, as ESX keeps its snapshots. */
function cowd(made: CowdMade): Made {
  const { sectors, grainSectors, grains, hasParent = false, gapSectors = 0 } = made
  const name = 'image-delta.vmdk'
  const bytes = (grain: number) => noise(grainSectors * SECTOR, grain + 1)
  const { bytes: extent } = buildCowd({
    sectors,
    grainSectors,
    gapSectors,
    grains: new Map(grains.map(grain => [grain, bytes(grain)])),
    unclean: made.isUnclean ? 1 : 0,
  })
  extent.writeUInt32LE(extent.readUInt32LE(28) + (made.freeSectorsAhead ?? 0), 28)
  if (made.hasDescriptor === false) return { files: [new MemoryStore(IMAGE, extent)] }
  const text = descriptor({
    lines: [`RW ${sectors} VMFSSPARSE "${name}"`],
    isChild: hasParent,
    createType: 'vmfsSparse',
  })
  const files = [new MemoryStore(IMAGE, text), new MemoryStore(name, extent)]
  return hasParent ? { files, parent: noise(sectors * SECTOR, 815) } : { files }
}

export const VMDK_RECIPES: readonly VmdkRecipe[] = [
  {
    title: 'by QEMU',
    grainSectors: 128,
    make: byQemu({ bytes: 3000 * K + 512, commands: WRITTEN }),
  },
  {
    title: 'by QEMU, zeroed grains',
    grainSectors: 128,
    make: byQemu({
      bytes: 3000 * K + 512,
      options: 'zeroed_grain=on',
      commands: [...WRITTEN, 'write -z 64k 128k', 'write -z 2500k 128k'],
    }),
  },
  {
    title: 'by QEMU, over a parent',
    grainSectors: 128,
    make: byQemu({ bytes: 3000 * K + 512, hasParent: true, commands: WRITTEN }),
  },
  {
    title: 'by QEMU, over a parent, zeroed grains',
    grainSectors: 128,
    make: byQemu({
      bytes: 3000 * K + 512,
      options: 'zeroed_grain=on',
      hasParent: true,
      commands: [...WRITTEN, 'write -z 64k 128k'],
    }),
  },
  {
    title: 'grains of 8 sectors',
    grainSectors: 8,
    make: () => monolithic({ ...SMALL, grains: smallGrains }),
  },
  {
    title: 'grains of 8 sectors, over a parent',
    grainSectors: 8,
    isUnknownToQemu: true,
    make: () => monolithic({ ...SMALL, grains: smallGrains, hasParent: true }),
  },
  {
    title: 'grains of a sector',
    grainSectors: 1,
    make: () => monolithic({ ...SMALLEST, grains: smallestGrains }),
  },
  {
    title: 'grains of a sector, zeroed ones, over a parent',
    grainSectors: 1,
    isUnknownToQemu: true,
    make: () => {
      const grains = new Map(smallestGrains).set(50, { kind: 'zero' }).set(2, { kind: 'zero' })
      return monolithic({ ...SMALLEST, grains, hasZeroGrains: true, hasParent: true })
    },
  },
  {
    title: 'one directory',
    grainSectors: 8,
    make: () => monolithic({ ...SMALL, grains: smallGrains, hasRedundant: false }),
  },
  {
    title: 'tables that are not there yet',
    grainSectors: 8,
    make: () => monolithic({ ...SMALL, grains: grainsAt(8, [130, 3]), leavesOutTables: true }),
  },
  {
    title: 'no table and one directory, over a parent',
    grainSectors: 1,
    isUnknownToQemu: true,
    make: () =>
      monolithic({ ...SMALLEST, leavesOutTables: true, hasRedundant: false, hasParent: true }),
  },
  {
    title: 'tables that are not there yet, zeroed grains, over a parent',
    grainSectors: 16,
    isUnknownToQemu: true,
    make: () => {
      const shape = { capacitySectors: 4807, grainSectors: 16, tableEntries: 128 }
      const more = { leavesOutTables: true, hasZeroGrains: true, hasParent: true }
      return monolithic({ ...shape, ...more, grains: grainsAt(16, [0, 2]) })
    },
  },
  {
    title: 'split',
    grainSectors: 8,
    zeroSectors: { from: 300 + 203 + 96, count: 64 },
    isUnknownToQemu: true,
    make: split,
  },
  { title: 'flat', grainSectors: 8, make: flat },
  {
    title: 'flat, by QEMU',
    grainSectors: 8,
    make: async folder => {
      const path = join(folder, IMAGE)
      const options = ['-o', 'subformat=monolithicFlat']
      await qemuImg('create', '-q', '-f', 'vmdk', ...options, path, String(301 * K))
      await qemuIo(path, ['write -P 1 0 100k'], ['-f', 'vmdk'])
      const names = [IMAGE, 'image-flat.vmdk']
      return {
        files: names.map(name => new MemoryStore(name, readFileSync(join(folder, name)))),
      }
    },
  },
  {
    title: 'COWD, grains of a sector',
    grainSectors: 1,
    make: () => cowd({ sectors: 4301, grainSectors: 1, grains: [0, 1, 2, 900, 4100, 4300] }),
  },
  {
    title: 'COWD, grains of a sector, over a parent',
    grainSectors: 1,
    isUnknownToQemu: true,
    make: () => cowd({ sectors: 4301, grainSectors: 1, grains: [4100, 4101, 9], hasParent: true }),
  },
  {
    title: 'COWD, empty, over a parent',
    grainSectors: 16,
    isUnknownToQemu: true,
    make: () => cowd({ sectors: 1003, grainSectors: 16, grains: [], hasParent: true }),
  },
  {
    title: 'COWD, grains of 16 sectors, unclean',
    grainSectors: 16,
    make: () => {
      const grains = [0, 1, 2, 40, 62]
      return cowd({ sectors: 1003, grainSectors: 16, grains, isUnclean: true, gapSectors: 5 })
    },
  },
  {
    title: 'version 2, without zeroed grains',
    grainSectors: 8,
    make: () => monolithic({ ...SMALL, grains: smallGrains, version: 2 }),
  },
  {
    title: 'version 3, a long content ID',
    grainSectors: 8,
    make: () =>
      monolithic({
        ...SMALL,
        version: 3,
        grains: smallGrains,
        about: { longContentId: `00112233445566778899aabb${CID}` },
      }),
  },
  {
    title: 'a short CID, a long content ID, CRLF',
    grainSectors: 8,
    make: () =>
      monolithic({
        ...SMALL,
        grains: smallGrains,
        about: {
          cid: 'a1b2c3',
          longContentId: '00112233445566778899aabb00a1b2c3',
          eol: '\r\n',
        },
      }),
  },
  {
    title: 'found unclean, with directories that disagree',
    grainSectors: 8,
    make: () => monolithic({ ...SMALL, grains: smallGrains, isUnclean: true, patch: disagreeing }),
  },
  {
    title: 'found unclean, with remains after its last grain',
    grainSectors: 8,
    make: () =>
      monolithic({
        ...SMALL,
        grains: smallGrains,
        isUnclean: true,
        patch: withRemains,
      }),
  },
  {
    title: 'an overhead that ends within a grain',
    grainSectors: 32,
    make: () => {
      const shape = { capacitySectors: 2403, grainSectors: 32, tableEntries: 128 }
      const shorten = (bytes: Buffer) => {
        bytes.writeBigUInt64LE(BigInt(bytes.length / SECTOR), HEADER_AT.overhead)
        return bytes
      }
      return monolithic({ ...shape, patch: shorten })
    },
  },
  {
    title: 'grains of 128 KiB, zeroed ones, over a parent',
    grainSectors: 256,
    isUnknownToQemu: true,
    make: () => {
      const shape = { capacitySectors: 2403, grainSectors: 256, tableEntries: 128 }
      const grains = grainsAt(256, [0, 2], [7, 1])
      return monolithic({ ...shape, grains, hasZeroGrains: true, hasParent: true })
    },
  },
  {
    title: 'grains of 4 MiB, over a parent',
    grainSectors: 8192,
    isHeavy: true,
    isUnknownToQemu: true,
    make: () => {
      const shape = { capacitySectors: 20_003, grainSectors: 8192, tableEntries: 128 }
      return monolithic({ ...shape, grains: grainsAt(8192, [1, 1]), hasParent: true })
    },
  },
  {
    title: 'closed, with a directory that lags',
    grainSectors: 8,
    make: () => monolithic({ ...SMALL, grains: smallGrains, patch: lagging }),
  },
  {
    title: 'found unclean, with tables that one directory has',
    grainSectors: 8,
    make: () => {
      const grains = grainsAt(8, [130, 3])
      const more = { leavesOutTables: true, isUnclean: true, patch: halfNamed }
      return monolithic({ ...SMALL, ...more, grains })
    },
  },
  {
    title: 'COWD, unclean, its free sector ahead',
    grainSectors: 1,
    isUnknownToQemu: true,
    make: () => {
      const made = { sectors: 4301, grainSectors: 1, isUnclean: true, freeSectorsAhead: 40 }
      return cowd({ ...made, grains: [0, 1, 2, 900, 4100, 4300], hasParent: true })
    },
  },
  {
    title: 'COWD without a descriptor',
    grainSectors: 4,
    isUnknownToQemu: true,
    make: () =>
      cowd({ sectors: 1003, grainSectors: 4, grains: [0, 1, 2, 40], hasDescriptor: false }),
  },
  {
    title: 'an extent of a split disk, alone',
    grainSectors: 8,
    isUnknownToQemu: true,
    make: () => {
      const { bytes } = buildExtent({ ...SMALL, grains: smallGrains })
      return { files: [new MemoryStore(IMAGE, bytes)] }
    },
  },
  {
    title: 'tables of 512 entries, absent at first',
    grainSectors: 1,
    make: () => {
      const shape = { capacitySectors: 2403, grainSectors: 1, tableEntries: 512 }
      return monolithic({ ...shape, grains: grainsAt(1, [0, 9], [508, 9]), leavesOutTables: true })
    },
  },
]
