/** Kinds of images that scenarios start from: one for each feature that a writer has to keep right. */
import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { qemuImg, qemuIo } from '../peers/qemu.js'
import { noise } from '../fixtures/model.js'
import { run } from '../support/run.js'
import type { Store } from '../../src/io/store.js'
import { MemoryStore } from '../support/stores.js'
import { type DiskFiles, readImage } from '../support/writable.js'
import { encryptedFiles } from './encrypted-image.js'
import { type Bitmap, judge } from './judge.js'
import { type Encryption, storeCipher } from './reference-cipher.js'
import type { Geometry } from './steps.js'

export interface Kind extends Geometry {
  readonly title: string
  readonly image: MemoryStore
  /** The external data file. */
  readonly data: MemoryStore | undefined
  /** The data file alone is the disk. */
  readonly isRawData: boolean
  /** The disk of the backing file. */
  readonly parent: Buffer | undefined
  /** What it shows at first. */
  readonly disk: Buffer
  readonly snapshots: readonly Buffer[]
  readonly bitmaps: readonly Bitmap[]
  /** Clusters that leak before anybody has written. */
  readonly leaks: number
  readonly isLazy: boolean
  readonly isHeavy: boolean
  /** Where `qemu-img check` finds what the image names. */
  readonly folder: string
  /** How its clusters are encrypted. */
  readonly encryption?: KindEncryption | undefined
  /** What the keys are in; nothing where there is none. */
  readonly luksHeader: Buffer
}

export interface KindEncryption extends Encryption {
  /** What QEMU is to be told, in the form of --image-opts; undefined where it cannot know the key. */
  readonly qemuOptions?: string
}

export interface Recipe {
  readonly title: string
  /** In KiB. */
  readonly sizeK: number
  /** In bytes. */
  readonly cluster: number
  /** Options of `qemu-img create -o`. */
  readonly options?: string
  /** In KiB. */
  readonly parentK?: number
  readonly dataFile?: 'raw' | 'mapped'
  /** Commands of qemu-io, of qemu-img with the image's name after them, or changes to the bytes. */
  readonly steps?: readonly (Io | Img | Patch)[] | undefined
  readonly growsToK?: number
  /** Megabytes to compare for each cut: fewer of them. */
  readonly isHeavy?: boolean
  /** Its clusters are encrypted once it is made. */
  readonly encryption?: KindEncryption
  /** Bytes of the last cluster that the file lacks: that of the data, where they have one of their own. */
  readonly missingBytes?: number
}

type Io = { readonly io: readonly string[] }
type Img = { readonly img: (image: string) => readonly string[] }
type Patch = { readonly patch: (image: Buffer) => void }

const K = 1024

const io = (...commands: string[]): Io => ({ io: commands })
const snapshot = (name: string): Img => ({ img: image => ['snapshot', '-c', name, image] })
const bitmap = (name: string, granularity: number, ...more: string[]): Img => ({
  img: image => ['bitmap', '--add', '-g', String(granularity), ...more, image, name],
})
const refcounts = (bits: number): string => `refcount_bits=${bits}`

/** Some of everything, in a disk of 64 clusters or more. */
const written = (cluster: number): Io => {
  const at = (first: number, count: number) => `${first * cluster} ${count * cluster}`
  return io(`write -P 1 ${at(0, 8)}`, `write -P 2 ${at(20, 5)}`, `write -P 3 ${at(40, 1)}`)
}

const zeroed = (cluster: number): Io => {
  const at = (first: number, count: number) => `${first * cluster} ${count * cluster}`
  return io(`write -z ${at(2, 3)}`, `write -z ${at(30, 4)}`, `write -z -u ${at(21, 1)}`)
}

/** Streams that share host clusters; every other guest cluster. */
const compressed = (cluster: number, first = 8): Io =>
  io(
    ...Array.from(
      { length: 10 },
      (_, i) => `write -c -P ${100 + i} ${(first + i + (i >> 2)) * cluster} ${cluster}`,
    ),
  )

export const RECIPES: readonly Recipe[] = [
  { title: 'v3, 64 KiB', sizeK: 4096, cluster: 64 * K, steps: [written(64 * K)] },
  {
    title: 'v2, 4 KiB',
    sizeK: 512,
    cluster: 4 * K,
    options: 'compat=0.10',
    steps: [written(4 * K)],
  },
  { title: 'v3, 512, empty', sizeK: 128, cluster: 512 },
  {
    title: '2 MiB clusters',
    sizeK: 16 * K,
    cluster: 2048 * K,
    steps: [io('write -P 1 0 3M')],
    isHeavy: true,
  },
  ...[1, 2, 4, 8, 16, 32, 64].map(
    (bits): Recipe => ({
      title: `refcounts of ${bits} bits`,
      sizeK: 128,
      cluster: 512,
      options: refcounts(bits),
      steps: [written(512), zeroed(512)],
    }),
  ),
  {
    title: 'the refcount table grows',
    sizeK: 2304,
    cluster: 512,
    options: refcounts(64),
    // One cluster of the table counts 2 MiB of the file.
    steps: [io('write -P 7 0 1936k')],
    isHeavy: true,
  },
  {
    title: 'refcount blocks grow',
    sizeK: 256,
    cluster: 512,
    options: refcounts(64),
    steps: [io('write -P 7 0 20k')],
  },
  {
    title: 'snapshots',
    sizeK: 512,
    cluster: 4 * K,
    steps: [
      written(4 * K),
      snapshot('one'),
      io('write -P 9 0 12k', 'write -z 84k 8k'),
      snapshot('two'),
      io('write -P 10 4k 5k'),
    ],
  },
  {
    title: 'snapshots, 512',
    sizeK: 128,
    cluster: 512,
    options: refcounts(8),
    steps: [
      io('write -P 1 0 40k', 'write -P 2 90k 20k'),
      snapshot('one'),
      io('write -P 9 0 12k', 'write -z 33k 2k'),
      snapshot('two'),
      io('write -P 10 3k 5k'),
      snapshot('three'),
    ],
  },
  {
    title: 'snapshots, counts of 2 bits',
    sizeK: 128,
    cluster: 512,
    options: refcounts(2),
    steps: [io('write -P 1 0 40k'), snapshot('one'), io('write -P 9 0 12k'), snapshot('two')],
  },
  {
    title: 'snapshots over compressed clusters',
    sizeK: 512,
    cluster: 4 * K,
    steps: [compressed(4 * K), snapshot('one'), io('write -P 9 40k 4k')],
  },
  {
    title: 'snapshots, v2',
    sizeK: 512,
    cluster: 4 * K,
    options: 'compat=0.10',
    steps: [written(4 * K), snapshot('one'), compressed(4 * K)],
  },
  {
    title: 'compressed, 64 KiB',
    sizeK: 4096,
    cluster: 64 * K,
    steps: [compressed(64 * K), io('write -P 3 2M 100k')],
  },
  { title: 'compressed, 512', sizeK: 64, cluster: 512, steps: [compressed(512)] },
  {
    title: 'compressed by zstd',
    sizeK: 512,
    cluster: 4 * K,
    options: 'compression_type=zstd',
    steps: [compressed(4 * K), written(4 * K)],
  },
  {
    title: 'zero clusters',
    sizeK: 512,
    cluster: 4 * K,
    steps: [written(4 * K), zeroed(4 * K)],
  },
  {
    title: 'subclusters',
    sizeK: 2048,
    cluster: 16 * K,
    options: 'extended_l2=on',
    steps: [
      io('write -P 1 0 100k', 'write -P 2 200k 3k', 'write -P 3 333k 512', 'write -z 40k 30k'),
      io('write -z 400k 5k', 'write -z -u 64k 2k', 'discard 80k 4k'),
    ],
  },
  {
    title: 'subclusters and snapshots',
    sizeK: 2048,
    cluster: 16 * K,
    options: 'extended_l2=on',
    steps: [
      io('write -P 1 0 100k', 'write -P 2 200k 3k', 'write -z 40k 30k'),
      snapshot('one'),
      io('write -P 5 1k 2k', 'write -P 6 300k 1k', 'write -z 16k 1k'),
      compressed(16 * K, 32),
    ],
  },
  {
    title: 'subclusters over a parent',
    sizeK: 1024,
    cluster: 16 * K,
    options: 'extended_l2=on',
    parentK: 700,
    steps: [io('write -P 1 0 20k', 'write -P 2 200k 3k', 'write -z 40k 30k', 'discard 100k 30k')],
  },
  {
    title: 'raw data file',
    sizeK: 512,
    cluster: 4 * K,
    dataFile: 'raw',
    steps: [written(4 * K), zeroed(4 * K)],
  },
  {
    title: 'data file',
    sizeK: 512,
    cluster: 4 * K,
    dataFile: 'mapped',
    steps: [written(4 * K), zeroed(4 * K)],
  },
  {
    title: 'data file, subclusters',
    sizeK: 1024,
    cluster: 16 * K,
    options: 'extended_l2=on',
    dataFile: 'mapped',
    steps: [io('write -P 1 0 20k', 'write -P 2 200k 3k', 'write -z 40k 30k')],
  },
  { title: 'a shorter parent', sizeK: 512, cluster: 4 * K, parentK: 301, steps: [written(4 * K)] },
  {
    title: 'a longer parent',
    sizeK: 256,
    cluster: 4 * K,
    parentK: 700,
    steps: [written(4 * K), zeroed(4 * K)],
    growsToK: 600,
  },
  {
    title: 'a parent, v2',
    sizeK: 512,
    cluster: 4 * K,
    options: 'compat=0.10',
    parentK: 400,
    steps: [written(4 * K)],
  },
  {
    title: 'a parent, snapshots, 512',
    sizeK: 128,
    cluster: 512,
    parentK: 100,
    steps: [io('write -P 1 0 20k', 'write -P 2 90k 20k'), snapshot('one'), zeroed(512)],
  },
  { title: 'preallocated tables', sizeK: 512, cluster: 4 * K, options: 'preallocation=metadata' },
  { title: 'preallocated space', sizeK: 512, cluster: 4 * K, options: 'preallocation=falloc' },
  {
    title: 'lazy refcounts',
    sizeK: 128,
    cluster: 512,
    options: 'lazy_refcounts=on',
    steps: [written(512)],
  },
  {
    title: 'lazy refcounts, found dirty',
    sizeK: 512,
    cluster: 4 * K,
    options: 'lazy_refcounts=on',
    steps: [written(4 * K), { patch: makeDirty }],
  },
  {
    title: 'unknown autoclear bits',
    sizeK: 512,
    cluster: 4 * K,
    steps: [written(4 * K), { patch: image => void image.writeUInt8(0xf0, 94) }],
  },
  {
    title: 'bitmaps',
    sizeK: 512,
    cluster: 4 * K,
    steps: [
      written(4 * K),
      bitmap('all', 4096),
      bitmap('fine', 512),
      bitmap('stopped', 65536, '--disable'),
      io('write -P 77 100k 30k'),
    ],
  },
  {
    title: 'bitmaps and snapshots, 512',
    sizeK: 128,
    cluster: 512,
    steps: [written(512), bitmap('fine', 512), snapshot('one'), io('write -P 77 30k 30k')],
  },
  {
    title: 'it grows',
    sizeK: 128,
    cluster: 512,
    steps: [written(512)],
    growsToK: 1024,
  },
  {
    title: 'it grows beyond its L1 table',
    // 64 entries of 32 KiB each fill the table's cluster.
    sizeK: 2000,
    cluster: 512,
    steps: [written(512)],
    growsToK: 2300,
  },
  {
    title: 'it grows under snapshots',
    sizeK: 128,
    cluster: 512,
    steps: [written(512), snapshot('one'), io('write -P 4 0 7k')],
    growsToK: 512,
  },
  {
    title: 'a size of half a cluster more',
    sizeK: 130,
    cluster: 4 * K,
    steps: [io('write -P 1 0 20k', 'write -P 2 126k 4k')],
    growsToK: 140,
  },
]

/** Dirty, and the counts of the last clusters never written. */
function makeDirty(image: Buffer): void {
  image.writeUInt8((image[79] as number) | 1, 79)
  const table = Number(image.readBigUInt64BE(48))
  const block = Number(image.readBigUInt64BE(table))
  for (let cluster = 8; cluster < 14; cluster++) image.writeUInt16BE(0, block + cluster * 2)
}

export async function makeKind(recipe: Recipe, folder: string): Promise<Kind> {
  const { title, sizeK, cluster, parentK, dataFile } = recipe
  const path = join(folder, 'image.qcow2')
  const options = [
    `cluster_size=${cluster}`,
    recipe.options,
    dataFile && `data_file=data.raw,data_file_raw=${dataFile === 'raw' ? 'on' : 'off'}`,
  ]
  const given = ['-o', options.filter(option => option !== undefined).join(',')]
  const parent = parentK === undefined ? undefined : noise(parentK * K, 4711)
  if (parent) await writeFile(join(folder, 'parent.raw'), parent)
  const backing = parent ? ['-b', 'parent.raw', '-F', 'raw'] : []
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', ...given, ...backing, path, `${sizeK}k`], {
    cwd: folder,
  })
  for (const act of recipe.steps ?? []) {
    if ('io' in act) await qemuIo(path, act.io)
    else if ('img' in act) await qemuImg(...act.img(path))
    else {
      const image = readFileSync(path)
      act.patch(image)
      await writeFile(path, image)
    }
  }
  const plain = [new MemoryStore('image.qcow2', readFileSync(path))]
  if (dataFile) plain.push(new MemoryStore('data.raw', readFileSync(join(folder, 'data.raw'))))
  const { encryption } = recipe
  const files = encryption ? encryptedFiles(encryption, plain) : plain
  const [image, data] = files as [MemoryStore, MemoryStore | undefined]
  const last = data ?? image
  last.truncate(last.sizeBytes - (recipe.missingBytes ?? 0))
  return {
    ...settled(title, { image, data, parent, encryption, cluster }),
    growsTo: recipe.growsToK && recipe.growsToK * K,
    isRawData: dataFile === 'raw',
    isLazy: recipe.options?.includes('lazy') ?? false,
    isHeavy: recipe.isHeavy ?? false,
    folder,
  }
}

type Settled = Pick<Kind, 'image' | 'data' | 'parent' | 'encryption' | 'cluster'>

/** What an image shows before anybody writes to it. */
export function settled(
  title: string,
  files: Settled,
): Omit<Kind, 'folder' | 'isRawData' | 'isLazy' | 'isHeavy'> {
  const { image } = files
  const { disk, snapshots } = readImage(
    diskFiles(files, [image, ...(files.data ? [files.data] : [])]),
  )
  const { bitmaps, leaks, corruptions, isDirty, luksHeader } = judge(image)
  if (corruptions.length > 0 && !isDirty) throw new Error(`${title}: ${corruptions.join('; ')}`)
  const sizeBytes = disk.length
  return { ...files, title, disk, snapshots, bitmaps, leaks, luksHeader, sizeBytes }
}

/** What of a kind and its files makes a disk: the image first, then its data file. */
export function diskFiles<S extends Store>(
  { parent, encryption, cluster }: Pick<Kind, 'parent' | 'encryption' | 'cluster'>,
  files: readonly S[],
): DiskFiles<S> {
  const [store, dataStore] = files as readonly [S, S | undefined]
  return { store, dataStore, parent, cipher: encryption && storeCipher(encryption, cluster) }
}
