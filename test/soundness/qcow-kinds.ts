/** Kinds of qcow images that scenarios start from: one for each way in which they differ. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { checkQcow } from '../../src/formats/qcow/check.js'
import { repairQcow } from '../../src/formats/qcow/repair.js'
import { noise, prose } from '../fixtures/model.js'
import { deflate } from '../fixtures/packers.js'
import { qemuImg, qemuIo } from '../peers/qemu.js'
import { MemoryStore } from '../support/stores.js'
import { openQcow, readQcow } from './image-disk.js'
import {
  foundImage,
  type ImageFormat,
  type ImageKind,
  NOTHING_TOLERATED,
} from './image-scenario.js'
import type { KindEncryption } from './kinds.js'
import { judgeQcow } from './qcow-judge.js'
import { type Encryption, encrypted, LEGACY_AES } from './reference-cipher.js'

const SECTOR = 512
const K = 1024
const HEADER_BYTES = 48
const PARENT = 'parent.raw'
const COMPRESSED = 1n << 63n

export interface QcowRecipe {
  readonly title: string
  /** Bytes of a cluster, and entries of an L2 table, as powers of two. */
  readonly clusterBits: number
  readonly l2Bits: number
  readonly sizeBytes: number
  readonly parentBytes?: number
  readonly encryption?: KindEncryption
  /** First clusters, and how many, of data and of compressed data. */
  readonly data?: readonly (readonly [number, number])[]
  readonly packed?: readonly (readonly [number, number])[]
  /** Clusters lie one sector after a multiple of their size. */
  readonly isShifted?: boolean
  /** The L1 table is the last thing in the file. */
  readonly isL1Last?: boolean
  /** An L1 entry names the file's end, where a table was to be written. */
  readonly namesEnd?: boolean
  /** Bytes of the last cluster that the file lacks. */
  readonly missingBytes?: number
  /** Commands of qemu-io, on an image that QEMU makes. */
  readonly byQemu?: readonly string[]
  readonly isHeavy?: boolean
}

const AES: KindEncryption = { ...LEGACY_AES, qemuOptions: 'encrypt.key-secret=key' }

/** Clusters of each size have their places by number. */
const DATA = [
  [0, 5],
  [17, 3],
  [33, 1],
] as const
const PACKED = [
  [6, 8],
  [21, 2],
] as const

export const QCOW_RECIPES: readonly QcowRecipe[] = [
  {
    title: 'by QEMU',
    clusterBits: 12,
    l2Bits: 9,
    sizeBytes: 512 * K,
    byQemu: [
      'write -c -P 7 64k 4k',
      'write -c -P 8 80k 4k',
      'write -P 1 0 20k',
      'write -P 2 300k 7k',
      'write -P 3 70k 1k',
    ],
  },
  {
    title: 'by QEMU, over a parent',
    clusterBits: 9,
    l2Bits: 12,
    sizeBytes: 200 * K,
    parentBytes: 150 * K,
    byQemu: ['write -P 1 0 20k', 'write -P 2 150k 7k'],
  },
  {
    title: 'clusters of 512, smallest tables',
    clusterBits: 9,
    l2Bits: 6,
    sizeBytes: 130 * K,
    data: [...DATA, [100, 70]],
  },
  {
    title: 'clusters of 512, largest tables, over a shorter parent',
    clusterBits: 9,
    l2Bits: 13,
    sizeBytes: 100 * K,
    parentBytes: 61 * K + 100,
    data: DATA,
    packed: PACKED,
  },
  { title: 'clusters of 4 KiB, empty', clusterBits: 12, l2Bits: 9, sizeBytes: 300 * K },
  {
    title: 'clusters of 4 KiB, smallest tables, over a longer parent',
    clusterBits: 12,
    l2Bits: 6,
    sizeBytes: 512 * K,
    parentBytes: 700 * K,
    data: [...DATA, [70, 3]],
    packed: PACKED,
  },
  {
    title: 'clusters of 64 KiB, smallest tables, over a shorter parent',
    clusterBits: 16,
    l2Bits: 6,
    sizeBytes: 5 * K * K,
    parentBytes: 3 * K * K,
    data: [
      [0, 3],
      [70, 1],
    ],
    packed: [[4, 3]],
    isHeavy: true,
  },
  {
    title: 'clusters of 64 KiB, largest tables',
    clusterBits: 16,
    l2Bits: 13,
    sizeBytes: 1500 * K,
    data: [[1, 3]],
    packed: [[4, 6]],
  },
  {
    title: 'a ragged size, over a parent',
    clusterBits: 12,
    l2Bits: 7,
    sizeBytes: 150 * K + 700,
    parentBytes: 200 * K,
    data: [...DATA, [37, 1]],
    packed: PACKED,
  },
  {
    title: 'clusters at odd sectors',
    clusterBits: 12,
    l2Bits: 6,
    sizeBytes: 300 * K,
    data: DATA,
    packed: PACKED,
    isShifted: true,
  },
  {
    title: 'clusters at odd sectors, over a parent, which the file ends within',
    clusterBits: 12,
    l2Bits: 9,
    sizeBytes: 300 * K,
    parentBytes: 300 * K,
    data: DATA,
    isShifted: true,
    missingBytes: 1500,
  },
  {
    title: 'the L1 table after the clusters',
    clusterBits: 9,
    l2Bits: 6,
    sizeBytes: 300 * K,
    parentBytes: 200 * K,
    data: [[0, 12]],
    isL1Last: true,
  },
  {
    title: 'a table that was never written',
    clusterBits: 12,
    l2Bits: 6,
    sizeBytes: 600 * K,
    parentBytes: 600 * K,
    data: DATA,
    namesEnd: true,
  },
  {
    title: 'AES',
    clusterBits: 12,
    l2Bits: 9,
    sizeBytes: 256 * K,
    encryption: AES,
    data: DATA,
    packed: PACKED,
  },
  {
    title: 'AES, clusters of 512, over a longer parent, a ragged size',
    clusterBits: 9,
    l2Bits: 6,
    sizeBytes: 90 * K + 200,
    parentBytes: 100 * K,
    encryption: AES,
    data: DATA,
    packed: PACKED,
  },
  {
    title: 'AES, clusters of 64 KiB, over a parent',
    clusterBits: 16,
    l2Bits: 6,
    sizeBytes: 1000 * K,
    parentBytes: 700 * K,
    encryption: AES,
    data: [[1, 3]],
    packed: [[5, 2]],
  },
  {
    title: 'AES, clusters at odd sectors',
    clusterBits: 12,
    l2Bits: 6,
    sizeBytes: 256 * K,
    encryption: AES,
    data: DATA,
    isShifted: true,
  },
  {
    title: 'AES, the file ends within a sector of its last cluster',
    clusterBits: 12,
    l2Bits: 6,
    sizeBytes: 256 * K,
    encryption: AES,
    data: DATA,
    missingBytes: 1500,
  },
]

const QCOW: ImageFormat = {
  name: 'qcow',
  open: openQcow,
  read: readQcow,
  judge: judgeQcow,
  check: checkQcow,
  repair: repairQcow,
}

export async function makeQcowKind(recipe: QcowRecipe, folder: string): Promise<ImageKind> {
  const { title, clusterBits, parentBytes, encryption, isHeavy = false } = recipe
  const parent = parentBytes === undefined ? undefined : noise(parentBytes, 4711)
  if (parent) writeFileSync(join(folder, PARENT), parent)
  const bytes = recipe.byQemu ? await madeByQemu(recipe, folder) : buildQcow(recipe)
  const file = new MemoryStore('image.qcow', bytes)
  const tolerated = recipe.namesEnd ? /is named and not there/ : NOTHING_TOLERATED
  const rest = { title, cluster: 2 ** clusterBits, parent, encryption, tolerated }
  return { ...foundImage(QCOW, file, rest), isHeavy, folder }
}

async function madeByQemu(recipe: QcowRecipe, folder: string): Promise<Buffer> {
  const { sizeBytes, parentBytes, byQemu = [] } = recipe
  const path = join(folder, 'image.qcow')
  const backing = parentBytes === undefined ? [] : ['-F', 'raw', '-b', join(folder, PARENT)]
  await qemuImg('create', '-q', '-f', 'qcow', ...backing, path, String(sizeBytes))
  await qemuIo(path, byQemu, ['-f', 'qcow'])
  return readFileSync(path)
}

/** The file: header, backing file's name, L1 table, L2 tables, compressed clusters, clusters. */
export function buildQcow(recipe: QcowRecipe): Buffer {
  const { clusterBits, l2Bits, sizeBytes, encryption, parentBytes } = recipe
  const [cluster, l2Entries] = [2 ** clusterBits, 2 ** l2Bits]
  const name = parentBytes === undefined ? '' : PARENT
  const l1Entries = Math.ceil(sizeBytes / (cluster * l2Entries))
  const up = (bytes: number, unit: number) => Math.ceil(bytes / unit) * unit
  const pieces: { readonly at: number; readonly bytes: Buffer }[] = []
  let end = HEADER_BYTES + name.length
  const append = (bytes: Buffer, unit: number, shift = 0): number => {
    const at = up(end, unit) + shift
    pieces.push({ at, bytes })
    end = at + bytes.length
    return at
  }
  const l1 = Buffer.alloc(l1Entries * 8)
  let l1At = recipe.isL1Last ? 0 : append(l1, 8)
  const tables = new Map<number, Buffer>()
  const enter = (number: number, entry: bigint) => {
    const index = Math.floor(number / l2Entries)
    let table = tables.get(index)
    if (!table) {
      table = Buffer.alloc(l2Entries * 8)
      tables.set(index, table)
      l1.writeBigUInt64BE(BigInt(append(table, SECTOR)), index * 8)
    }
    table.writeBigUInt64BE(entry, (number % l2Entries) * 8)
  }
  for (const number of numbersOf(recipe.packed)) {
    enter(number, 0n)
    const packed = deflate(prose(cluster, number))
    const at = append(packed, 1)
    const size = BigInt(packed.length) << BigInt(63 - clusterBits)
    enter(number, COMPRESSED | size | BigInt(at))
  }
  for (const number of numbersOf(recipe.data)) {
    enter(number, 0n)
    const plain = noise(cluster, number + 1)
    const bytes = encryption ? lockedUp(encryption, plain, number) : plain
    const unit = recipe.isShifted ? SECTOR : cluster
    const isOdd = recipe.isShifted && up(end, SECTOR) % cluster === 0
    enter(number, BigInt(append(bytes, unit, isOdd ? SECTOR : 0)))
  }
  if (recipe.isL1Last) l1At = append(l1, 8)
  const fileBytes = end - (recipe.missingBytes ?? 0)
  if (recipe.namesEnd) l1.writeBigUInt64BE(BigInt(up(fileBytes, cluster)), (l1Entries - 1) * 8)
  const file = Buffer.alloc(fileBytes)
  for (const { at, bytes } of pieces) bytes.copy(file, at)
  writeHeader(file, recipe, name, l1At)
  return file
}

function writeHeader(file: Buffer, recipe: QcowRecipe, name: string, l1At: number): void {
  file.write('QFI\xfb', 'latin1')
  file.writeUInt32BE(1, 4)
  if (name !== '') {
    file.writeBigUInt64BE(BigInt(HEADER_BYTES), 8)
    file.writeUInt32BE(name.length, 16)
    file.write(name, HEADER_BYTES)
  }
  file.writeBigUInt64BE(BigInt(recipe.sizeBytes), 24)
  file.writeUInt8(recipe.clusterBits, 32)
  file.writeUInt8(recipe.l2Bits, 33)
  file.writeUInt32BE(recipe.encryption ? 1 : 0, 36)
  file.writeBigUInt64BE(BigInt(l1At), 40)
}

/** Sectors of old images are numbered as the disk has them. */
const lockedUp = (how: Encryption, plain: Buffer, number: number): Buffer =>
  encrypted(how, plain, (number * plain.length) / SECTOR)

const numbersOf = (runs: readonly (readonly [number, number])[] = []): number[] =>
  runs.flatMap(([first, count]) => Array.from({ length: count }, (_, i) => first + i))
