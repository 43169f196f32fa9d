/** Bitmaps that QEMU made and we kept: it must see the bits that were to be set, and go on with them. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, existsSync, fstatSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { SystemError } from '../../src/errors.js'
import { loadBitmaps } from '../../src/formats/qcow2/bitmap-memory.js'
import {
  type ClusterSpace,
  holdBitmaps,
  storeBitmaps,
} from '../../src/formats/qcow2/bitmap-store.js'
import { BitmapTracker } from '../../src/formats/qcow2/bitmap-tracker.js'
import { readHeader } from '../../src/formats/qcow2/header.js'
import { WritableFileStore, type WritableStore } from '../../src/io/store.js'
import { run as convert } from '../../src/cli/convert.js'
import { resizeImage } from '../../src/image/changing/resize.js'
import { runHere } from '../support/command.js'
import { needs, run, tempFolder } from '../support/run.js'
import { until } from '../support/until.js'
import { qemuImg, qemuIo } from './qemu.js'

const K = 1024
const M = K * K
const G = K * M
const ENOSPC = 28
const DISK_SIZE_AT = 24

interface Range {
  readonly offset: number
  readonly length: number
}

/** Clusters past the end of the file, counted in 16 bits: enough of an allocator for a test. */
class SpaceAtEnd implements ClusterSpace {
  private readonly cluster: number
  private readonly table: number

  constructor(private readonly store: WritableStore) {
    const header = readHeader(store)
    this.cluster = 2 ** header.clusterBits
    this.table = header.refcountTableOffset
  }

  allocate(clusters: number): number {
    // The block that counts a cluster may be new, and then takes one before it.
    const end = this.end()
    for (let i = 0; i <= clusters; i++) this.blockFor(end + i * this.cluster)
    const at = this.end()
    for (let i = 0; i < clusters; i++) this.set(at + i * this.cluster, 1)
    this.store.truncate(at + clusters * this.cluster)
    this.store.sync()
    return at
  }

  free(at: number, clusters: number): void {
    for (let i = 0; i < clusters; i++) this.set(at + i * this.cluster, 0)
  }

  isSole(at: number): boolean {
    const [block, inBlock] = this.place(at)
    return block !== 0 && this.read(block + inBlock, 2).readUInt16BE() === 1
  }

  private end(): number {
    return Math.ceil(this.store.sizeBytes / this.cluster) * this.cluster
  }

  private place(at: number): [block: number, inBlock: number] {
    const perBlock = this.cluster / 2
    const index = at / this.cluster
    const block = this.read(this.table + Math.floor(index / perBlock) * 8, 8).readBigUInt64BE()
    return [Number(block), (index % perBlock) * 2]
  }

  private blockFor(at: number): void {
    if (this.place(at)[0] !== 0) return
    const block = this.end()
    this.store.write(Buffer.alloc(this.cluster), 0, this.cluster, block)
    const entry = Buffer.alloc(8)
    entry.writeBigUInt64BE(BigInt(block))
    const index = Math.floor(at / this.cluster / (this.cluster / 2))
    this.store.write(entry, 0, 8, this.table + index * 8)
    this.set(block, 1)
  }

  private set(at: number, count: number): void {
    const [block, inBlock] = this.place(at)
    const entry = Buffer.alloc(2)
    entry.writeUInt16BE(count)
    this.store.write(entry, 0, 2, block + inBlock)
  }

  private read(at: number, length: number): Buffer {
    const b = Buffer.alloc(length)
    this.store.read(b, 0, length, at)
    return b
  }
}

interface Session {
  mark(ranges: readonly Range[]): void
  grow(sizeBytes: number): void
  close(space?: ClusterSpace): string[]
}

/** What a mount does with the bitmaps of `image`. */
function open(t: Test, image: string): Session {
  const fd = openSync(image, 'r+')
  t.teardown(() => closeSync(fd))
  const store = new WritableFileStore(image, fd, new BigInt64Array([BigInt(fstatSync(fd).size)]))
  const header = readHeader(store)
  const end = new SpaceAtEnd(store)
  const memory = loadBitmaps(store, header, at => end.isSole(at))
  t.same(memory.warnings, [])
  const tracker = new BitmapTracker(memory)
  const clearFeature = () => t.fail('the bitmaps were given up')
  let { sizeBytes } = header
  return {
    mark: ranges => {
      holdBitmaps(store, memory, 'write', clearFeature)
      for (const { offset, length } of ranges) tracker.mark(offset, length)
    },
    grow: newBytes => {
      holdBitmaps(store, memory, 'resize', clearFeature)
      const size = Buffer.alloc(8)
      size.writeBigUInt64BE(BigInt(newBytes))
      store.write(size, 0, 8, DISK_SIZE_AT)
      store.sync()
      sizeBytes = newBytes
    },
    close: (space = end) => storeBitmaps(store, memory, sizeBytes, space),
  }
}

/** name → flags, as `qemu-img info` has them. */
async function flagsOf(image: string): Promise<Record<string, string[]>> {
  const info = JSON.parse(await qemuImg('info', '-U', '--output=json', image))
  const bitmaps: { name: string; flags: string[] }[] = info['format-specific'].data.bitmaps ?? []
  return Object.fromEntries(bitmaps.map(({ name, flags }) => [name, flags]))
}

/** The image by QEMU's server with one of its bitmaps, while `use` runs. */
async function served<T>(
  t: Test,
  image: string,
  bitmap: string,
  use: (socket: string) => Promise<T>,
): Promise<T> {
  const socket = join(tempFolder(t), 'nbd')
  const args = ['--read-only', '--persistent', '--format=qcow2', `--bitmap=${bitmap}`]
  const server = spawn('qemu-nbd', [...args, `--socket=${socket}`, image], { stdio: 'inherit' })
  const ended = once(server, 'close')
  const stop = async () => {
    server.kill('SIGKILL')
    await ended
  }
  t.teardown(stop)
  await until(() => existsSync(socket) || server.exitCode !== null)
  if (!existsSync(socket)) throw new Error('qemu-nbd: no socket')
  const result = await use(socket)
  await stop()
  return result
}

/** What QEMU takes for dirty, as its client shows it: what `data` says is the bit's opposite. */
function dirtyRanges(t: Test, image: string, bitmap: string): Promise<Range[]> {
  return served(t, image, bitmap, async socket => {
    const options = `driver=nbd,server.type=unix,server.path=${socket}`
    const context = `x-dirty-bitmap=qemu:dirty-bitmap:${bitmap}`
    const map = await qemuImg('map', '--output=json', '--image-opts', `${options},${context}`)
    const extents: { start: number; length: number; data: boolean }[] = JSON.parse(map)
    return merged(
      extents.filter(({ data }) => !data).map(e => ({ offset: e.start, length: e.length })),
    )
  })
}

function merged(ranges: readonly Range[]): Range[] {
  const all: Range[] = []
  for (const { offset, length } of ranges) {
    const last = all.at(-1)
    if (last && last.offset + last.length === offset) {
      all.splice(-1, 1, { offset: last.offset, length: last.length + length })
    } else all.push({ offset, length })
  }
  return all
}

/** What a bitmap of that granularity has of these writes. */
function expected(ranges: readonly Range[], granularity: number, sizeBytes: number): Range[] {
  const bits = new Set<number>()
  for (const { offset, length } of ranges) {
    const last = Math.floor((offset + length - 1) / granularity)
    for (let bit = Math.floor(offset / granularity); bit <= last; bit++) bits.add(bit)
  }
  return merged(
    [...bits]
      .sort((a, b) => a - b)
      .map(bit => {
        const offset = bit * granularity
        return { offset, length: Math.min(granularity, sizeBytes - offset) }
      }),
  )
}

/** QEMU writes it. */
const theirWrites = (image: string, ranges: readonly Range[]): Promise<void> =>
  qemuIo(
    image,
    ranges.map(({ offset, length }) => `write -P 7 ${offset} ${length}`),
  )

interface Case {
  readonly title: string
  readonly cluster: number
  readonly granularity: number
  readonly sizeBytes: number
  readonly theirs?: readonly Range[]
  readonly ours: readonly Range[]
}

const cases: Case[] = [
  {
    title: 'clusters of 64 KiB',
    cluster: 64 * K,
    granularity: 64 * K,
    sizeBytes: 100 * M,
    theirs: [{ offset: 3 * M, length: 300 * K }],
    ours: [
      { offset: 3 * M - 1, length: 2 },
      { offset: 50 * M, length: 4 * M },
    ],
  },
  {
    title: 'chunks that had no cluster',
    cluster: 4 * K,
    granularity: 512,
    sizeBytes: 100 * M,
    theirs: [{ offset: 3 * M, length: 300 * K }],
    ours: [
      { offset: 40 * M - 512, length: 1024 },
      { offset: 0, length: 1 },
      { offset: 100 * M - 1, length: 1 },
    ],
  },
  {
    title: 'clusters of 512 bytes and a table of several',
    cluster: 512,
    granularity: 512,
    sizeBytes: 200 * M,
    ours: Array.from({ length: 100 }, (_, i) => ({ offset: 2 * M * i + 12345, length: 700 })),
  },
  {
    title: 'all of the disk',
    cluster: 4 * K,
    granularity: 512,
    sizeBytes: 40 * M + 512,
    ours: [{ offset: 0, length: 40 * M + 512 }],
  },
  {
    title: 'a terabyte',
    cluster: 64 * K,
    granularity: 4 * K,
    sizeBytes: 1024 * G,
    theirs: [{ offset: 7 * G, length: M }],
    ours: [
      { offset: 512 * G - 5, length: 10 },
      { offset: 1024 * G - 4096, length: 4096 },
    ],
  },
  {
    title: 'a disk that ends inside a piece',
    cluster: 64 * K,
    granularity: 2 * M,
    sizeBytes: 5 * M + 1536,
    ours: [{ offset: 5 * M, length: 1536 }],
  },
]

async function emptyImage(t: Test, cluster: number, sizeBytes: number): Promise<string> {
  const image = join(tempFolder(t), 'disk.qcow2')
  const options = ['-o', `cluster_size=${cluster}`]
  await qemuImg('create', '-q', '-f', 'qcow2', ...options, image, `${sizeBytes}`)
  return image
}

/** An image with three bitmaps, the first of which has recorded `theirs`. */
async function createdImage(
  t: Test,
  { cluster, granularity, sizeBytes, theirs = [] }: Omit<Case, 'title' | 'ours'>,
): Promise<string> {
  const image = await emptyImage(t, cluster, sizeBytes)
  const add = (...args: string[]) => qemuImg('bitmap', '--add', '-g', `${granularity}`, ...args)
  await add(image, 'backup')
  if (theirs.length > 0) await theirWrites(image, theirs)
  await add(image, 'later')
  await add('--disable', image, 'disabled')
  return image
}

for (const { title, ...rest } of cases) {
  t.test(title, needs('qemu-img', 'qemu-io', 'qemu-nbd'), async t => {
    const { granularity, sizeBytes, ours, theirs = [] } = rest
    const image = await createdImage(t, rest)
    const session = open(t, image)
    t.same(await flagsOf(image), { backup: ['auto'], later: ['auto'], disabled: [] })
    session.mark(ours)
    const during = { backup: ['in-use', 'auto'], later: ['in-use', 'auto'], disabled: [] }
    t.same(await flagsOf(image), during)
    t.same(session.close(), [])
    t.same(await flagsOf(image), { backup: ['auto'], later: ['auto'], disabled: [] })
    await qemuImg('check', '-q', image)
    const agrees = async (bitmap: string, ranges: readonly Range[]) =>
      t.same(await dirtyRanges(t, image, bitmap), expected(ranges, granularity, sizeBytes), bitmap)
    await agrees('backup', [...theirs, ...ours])
    await agrees('later', ours)
    await agrees('disabled', [])

    // It goes on: QEMU's writes come to ours, then ours to QEMU's, in clusters that it placed.
    const more = [{ offset: M, length: 4096 }]
    await theirWrites(image, more)
    const last = [{ offset: 2 * M, length: 1 }]
    const again = open(t, image)
    again.mark(last)
    t.same(again.close(), [])
    await agrees('later', [...ours, ...more, ...last])
    await qemuImg('check', '-q', image)
  })
}

t.test('a disk that has grown', needs('qemu-img', 'qemu-io', 'qemu-nbd'), async t => {
  const theirs = [{ offset: 99 * M, length: M }]
  const growths = [
    { title: 'within a table', cluster: 4 * K, from: 100 * M + 512, to: 300 * M },
    { title: 'so that a table moves', cluster: 512, from: 100 * M + 512, to: 250 * M },
    { title: 'within a chunk', cluster: 64 * K, from: 100 * M + 512, to: 120 * M },
  ]
  for (const { title, cluster, from, to } of growths) {
    t.test(title, async t => {
      // An L1 table for all of it, as whoever grows the disk would have made.
      const image = await emptyImage(t, cluster, to)
      patchSize(image, from)
      await qemuImg('bitmap', '--add', '-g', '512', image, 'backup')
      await theirWrites(image, theirs)
      await qemuImg('bitmap', '--disable', image, 'backup')
      await qemuImg('bitmap', '--add', '-g', '512', image, 'later')
      const session = open(t, image)
      session.grow(to)
      t.same(await flagsOf(image), { backup: ['in-use'], later: ['in-use', 'auto'] })
      await qemuImg('check', '-q', image)
      const ours = [
        { offset: to - 1, length: 1 },
        { offset: from - 1, length: 2 },
      ]
      session.mark(ours)
      t.same(session.close(), [])
      t.same(await flagsOf(image), { backup: [], later: ['auto'] })
      await qemuImg('check', '-q', image)
      t.same(await dirtyRanges(t, image, 'backup'), theirs)
      t.same(await dirtyRanges(t, image, 'later'), expected(ours, 512, to))
    })
  }
})

function patchSize(image: string, sizeBytes: number): void {
  const bytes = readFileSync(image)
  bytes.writeBigUInt64BE(BigInt(sizeBytes), DISK_SIZE_AT)
  writeFileSync(image, bytes)
}

t.test(
  'a bitmap that could not be stored is for QEMU to remove',
  needs('qemu-img', 'qemu-nbd'),
  async t => {
    const image = await createdImage(t, {
      cluster: 64 * K,
      granularity: 64 * K,
      sizeBytes: 100 * M,
    })
    const session = open(t, image)
    session.mark([{ offset: 5, length: 5 }])
    const full: ClusterSpace = {
      allocate: () => {
        throw new SystemError('write', ENOSPC, image)
      },
      free: () => t.fail('nothing was allocated'),
    }
    t.match(session.close(full), [/"backup".*no space/, /"later".*no space/])
    await qemuImg('check', '-q', image)
    const inUse = ['in-use', 'auto']
    t.same(await flagsOf(image), { backup: inUse, later: inUse, disabled: [] })
    for (const name of ['backup', 'later']) await qemuImg('bitmap', '--remove', image, name)
    t.same(await flagsOf(image), { disabled: [] })
    t.same(await dirtyRanges(t, image, 'disabled'), [])
  },
)

t.test(
  'bitmaps as another NBD client sees them',
  needs('qemu-img', 'qemu-nbd', 'nbdinfo'),
  async t => {
    const image = await createdImage(t, {
      cluster: 64 * K,
      granularity: 64 * K,
      sizeBytes: 100 * M,
    })
    const session = open(t, image)
    session.mark([{ offset: 5 * M, length: 5 }])
    t.same(session.close(), [])
    const extents = await served(t, image, 'later', async socket => {
      const map = '--map=qemu:dirty-bitmap:later'
      return JSON.parse(await run('nbdinfo', ['--json', map, `nbd+unix:///?socket=${socket}`]))
    })
    t.match(extents, [
      { offset: 0, length: 5 * M, type: 0 },
      { offset: 5 * M, length: 64 * K, type: 1 },
      { offset: 5 * M + 64 * K, type: 0 },
    ])
  },
)

t.test('a disk that shrinks', needs('qemu-img', 'qemu-io', 'qemu-nbd'), async t => {
  const folder = tempFolder(t)
  // A chunk of 512 bytes of bits stands for 2 MiB, so a table of 64 entries fills a cluster.
  const written = [
    { offset: 0, length: 3 * M },
    { offset: 5 * M + 100, length: 1000 },
    { offset: 150 * M, length: 5 * M },
  ]
  for (const afterBytes of [149 * M, 5 * M + 512]) {
    const image = join(folder, `${afterBytes}.qcow2`)
    await qemuImg('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', image, `${160 * M}`)
    for (const name of ['on', 'off', 'void']) {
      await qemuImg('bitmap', '--add', '-g', '512', image, name)
    }
    await qemuImg('bitmap', '--disable', image, 'void')
    await theirWrites(image, written)
    await qemuImg('bitmap', '--disable', image, 'off')
    const theirs = join(folder, 'theirs.qcow2')
    writeFileSync(theirs, readFileSync(image))
    const { warnings } = await resizeImage(image, {
      ...{ format: 'qcow2', shrinks: true, force: true, sizeOf: () => afterBytes },
      ask: async () => [],
    })
    t.strictSame(warnings, [])
    await qemuImg('resize', '-q', '--shrink', theirs, `${afterBytes}`)
    await qemuImg('check', '-q', image)
    t.strictSame(await flagsOf(image), await flagsOf(theirs))
    for (const name of ['on', 'off', 'void']) {
      const found = await dirtyRanges(t, image, name)
      t.strictSame(found, await dirtyRanges(t, theirs, name), `${name}, ${afterBytes}`)
    }
    // QEMU goes on with them.
    await theirWrites(image, [{ offset: 1000, length: 512 }])
    await qemuImg('resize', '-q', image, `${170 * M}`)
    await qemuImg('check', '-q', image)
    t.strictSame(await flagsOf(image), { on: ['auto'], off: [], void: [] })
  }
})

t.test('a converted image has them, too', needs('qemu-img', 'qemu-io', 'qemu-nbd'), async t => {
  const folder = tempFolder(t)
  const at = (name: string) => join(folder, name)
  await qemuImg('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', at('disk'), `${90 * M}`)
  for (const name of ['on', 'off', 'bitmap with a long name']) {
    await qemuImg('bitmap', '--add', '-g', '4096', at('disk'), name)
  }
  await theirWrites(at('disk'), [
    { offset: 5000, length: 3 * M },
    { offset: 90 * M - 512, length: 512 },
  ])
  await qemuImg('bitmap', '--disable', at('disk'), 'off')
  const here = (...args: string[]) => runHere(convert, ['--bitmaps', ...args], folder)
  const names = Object.keys(await flagsOf(at('disk')))
  for (const options of [
    'cluster_size=512',
    'refcount_bits=1',
    'extended_l2=on,preallocation=metadata',
  ]) {
    t.strictSame(await here('--force', '--verify', '-O', 'qcow2', '-o', options, 'disk', 'ours'), {
      ...{ code: 0, stdout: '', stderr: '' },
    })
    t.match(await qemuImg('check', '-f', 'qcow2', at('ours')), /No errors/)
    t.strictSame(await flagsOf(at('ours')), await flagsOf(at('disk')))
    for (const name of names) {
      const found = await dirtyRanges(t, at('ours'), name)
      t.strictSame(found, await dirtyRanges(t, at('disk'), name), `${options}, ${name}`)
    }
  }
  await theirWrites(at('ours'), [{ offset: 50 * M, length: 512 }])
  t.match(await qemuImg('check', '-f', 'qcow2', at('ours')), /No errors/)

  // One that was not closed.
  const bytes = readFileSync(at('disk'))
  const entry = bytes.lastIndexOf('bitmap with a long name') - 24
  bytes.writeUInt32BE(bytes.readUInt32BE(entry + 12) | 1, entry + 12)
  writeFileSync(at('disk'), bytes)
  const says = /bitmap "bitmap with a long name" was not closed; .*--skip-broken-bitmaps/
  t.match(await here('-O', 'qcow2', 'disk', 'broken'), { code: 1, stderr: says })
  t.notOk(existsSync(at('broken')))
  const args = ['--skip-broken-bitmaps', '-O', 'qcow2', 'disk', 'broken']
  t.match(await here(...args), { code: 0, stderr: /"bitmap with a long name" is left out/ })
  t.strictSame(Object.keys(await flagsOf(at('broken'))).sort(), ['off', 'on'])

  const v2 = ['-O', 'qcow2', '-o', 'compat=0.10', 'disk', 'x']
  t.match(await here('--skip-broken-bitmaps', ...v2), { code: 2, stderr: /cannot have bitmaps/ })
  t.match(await here('-f', 'raw', '-O', 'qcow2', 'disk', 'x'), {
    code: 1,
    stderr: /has no bitmaps/,
  })
})
