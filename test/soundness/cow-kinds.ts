/** Kinds of cow images that scenarios start from: one for each layout, and each way in which they differ. */
import { checkCow } from '../../src/formats/cow/check.js'
import { repairCow } from '../../src/formats/cow/repair.js'
import { noise } from '../fixtures/model.js'
import { MemoryStore } from '../support/stores.js'
import { cowPlaces, FIELDS, judgeCow, type Layout } from './cow-judge.js'
import { openCow, readCow } from './image-disk.js'
import { foundImage, type ImageKind, NOTHING_TOLERATED } from './image-scenario.js'

export interface CowRecipe {
  readonly title: string
  readonly layout: Layout
  /** By the header. */
  readonly sizeBytes: number
  /** Of UML 3, in bytes. */
  readonly alignment?: number
  readonly parentBytes?: number
  /** First sectors, and how many, that are in the file. */
  readonly marked?: readonly (readonly [number, number])[]
  /** Bytes at the disk's end that the file has no place for. */
  readonly missingBytes?: number
  readonly isHeavy?: boolean
}

const SECTOR = 512
const K = 1024
/** Whoever opens an image by its name finds it beside the image. */
export const PARENT = 'parent.raw'
/** What steps are cut to: what a file system makes holes of. */
const UNIT = 4 * K

const MARKED = [
  [0, 20],
  [37, 3],
  [64, 8],
  [150, 70],
] as const

export const COW_RECIPES: readonly CowRecipe[] = [
  { title: 'QEMU, x86-64, empty', layout: 'QEMU, x86-64', sizeBytes: 200 * K },
  {
    title: 'QEMU, x86-64, over a shorter parent',
    layout: 'QEMU, x86-64',
    sizeBytes: 200 * K,
    parentBytes: 133 * K + 100,
    marked: MARKED,
  },
  {
    title: 'QEMU, i386, over a longer parent, a ragged size',
    layout: 'QEMU, i386',
    sizeBytes: 201 * K + 700,
    parentBytes: 300 * K,
    marked: [...MARKED, [402, 1]],
  },
  {
    title: 'QEMU, i386, alone',
    layout: 'QEMU, i386',
    sizeBytes: 200 * K,
    marked: MARKED,
    missingBytes: 90 * K,
  },
  {
    title: 'UML 2, over a parent, a ragged size',
    layout: 'UML 2',
    sizeBytes: 201 * K + 100,
    parentBytes: 201 * K + 100,
    marked: [...MARKED, [401, 2]],
  },
  { title: 'UML 2, alone', layout: 'UML 2', sizeBytes: 200 * K, marked: MARKED },
  {
    title: 'UML 3, the bitmap a hole, over a parent',
    layout: 'UML 3',
    sizeBytes: 256 * K,
    alignment: 4096,
    parentBytes: 256 * K,
    missingBytes: 256 * K,
  },
  {
    title: 'UML 3, aligned to sectors, a ragged size',
    layout: 'UML 3',
    sizeBytes: 199 * K + 300,
    alignment: 512,
    marked: [...MARKED, [398, 1]],
  },
  {
    title: 'UML 3, broken, over a parent',
    layout: 'UML 3, broken',
    sizeBytes: 200 * K + 1,
    alignment: 4096,
    parentBytes: 150 * K,
    marked: MARKED,
  },
]

export function makeCowKind(recipe: CowRecipe): ImageKind {
  const { title, layout, parentBytes, isHeavy = false } = recipe
  const parent = parentBytes === undefined ? undefined : noise(parentBytes, 815)
  const format = {
    name: 'cow' as const,
    open: openCow,
    read: readCow,
    judge: (store: Parameters<typeof judgeCow>[0]) => judgeCow(store, layout, parent),
    check: checkCow,
    repair: repairCow,
  }
  const file = new MemoryStore('image.cow', buildCow(recipe))
  const rest = { title, cluster: UNIT, parent, encryption: undefined, tolerated: NOTHING_TOLERATED }
  return { ...foundImage(format, file, rest), isHeavy, folder: undefined }
}

/** The file, as its program lays it out. */
export function buildCow(recipe: CowRecipe): Buffer {
  const { layout, sizeBytes: size, alignment = SECTOR, marked = [], parentBytes } = recipe
  const { version, sizeAt, sectorSizeAt, nameAt, headerBytes, alignmentAt } = FIELDS[layout]
  const { sizeBytes, bitmapAt, bitmapBytes, dataAt } = cowPlaces(layout, size, alignment)
  const missing = recipe.missingBytes ?? 0
  const end = Math.max(bitmapAt + bitmapBytes, dataAt + sizeBytes - missing)
  const file = Buffer.alloc(Math.max(end, headerBytes))
  file.write('OOOM', 'latin1')
  file.writeUInt32BE(version, 4)
  if (parentBytes !== undefined || version === 3) file.write(PARENT, nameAt)
  file.writeBigUInt64BE(BigInt(size), sizeAt)
  file.writeUInt32BE(SECTOR, sectorSizeAt)
  if (alignmentAt !== undefined) file.writeUInt32BE(alignment, alignmentAt)
  for (const [first, count] of marked) {
    for (let sector = first; sector < first + count; sector++) {
      file[bitmapAt + (sector >> 3)] =
        (file[bitmapAt + (sector >> 3)] as number) | (1 << (sector & 7))
      const at = sector * SECTOR
      noise(Math.min(SECTOR, sizeBytes - at), sector).copy(file, dataAt + at)
    }
  }
  return file
}
