/** Copying disks to flat files by several threads: the bytes, the holes, and which of several errors is reported. */
import {
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { deflateRawSync } from 'node:zlib'
import t, { type Test } from 'tap'
import { SystemError } from '../../../src/errors.js'
import { copyDirectly, type DirectOptions } from '../../../src/image/convert/direct-copy.js'
import type { CopyJob } from '../../../src/image/convert/copy-job.js'
import { createJobMemory, JobQueue } from '../../../src/image/convert/job-queue.js'
import { openSource } from '../../../src/image/reading/source.js'
import { WritableFileStore } from '../../../src/io/store.js'
import { noise } from '../../fixtures/model.js'
import { buildImage, type Cluster } from '../../fixtures/qcow2-builder.js'
import { needsRoot, run, tempFolder } from '../../support/run.js'

const CLUSTER = 65_536
const CLUSTERS = 700
const SIZE = CLUSTERS * CLUSTER - 512

/** The content of a cluster: text, noise, zeros, or zeros with noise in them; undefined if it is not allocated. */
function contentOf(i: number): Buffer | undefined {
  if (i % 7 === 3) return undefined
  if (i % 7 === 4) return Buffer.alloc(CLUSTER)
  const bytes = Buffer.alloc(CLUSTER, `cluster ${i}, and again `)
  if (i % 7 === 5) bytes.fill(0, 4096, 61_440)
  if (i % 7 === 6) noise(CLUSTER, i).copy(bytes)
  return bytes
}

const DISK = Buffer.concat(
  Array.from({ length: CLUSTERS }, (_, i) => contentOf(i) ?? Buffer.alloc(CLUSTER)),
).subarray(0, SIZE)

/** Makes an image whose clusters are compressed in part. `damaged` lists compressed clusters whose stream is broken. */
function makeImage(folder: string, damaged: readonly number[] = []): string {
  const clusters = new Map<number, Cluster>()
  for (let i = 0; i < CLUSTERS; i++) {
    const content = contentOf(i)
    if (!content) continue
    if (i % 7 > 2 && i % 7 < 6) clusters.set(i, { kind: 'data', bytes: content })
    else {
      const packed = damaged.includes(i) ? Buffer.alloc(300, 0xff) : deflateRawSync(content)
      clusters.set(i, { kind: 'packed', packed, content })
    }
  }
  const file = join(folder, 'source.qcow2')
  writeFileSync(file, buildImage({ clusterBits: 16, sizeBytes: SIZE, clusters }).bytes())
  return file
}

async function copied(
  t: Test,
  image: string,
  file: string,
  options: Partial<DirectOptions> = {},
  wrap = (store: WritableFileStore): Pick<WritableFileStore, 'write'> => store,
): Promise<void> {
  const source = await openSource(image)
  const fd = openSync(file, 'w+')
  t.teardown(() => closeSync(fd))
  const size = new SharedArrayBuffer(8)
  const store = wrap(new WritableFileStore(file, fd, new BigInt64Array(size)))
  try {
    await copyDirectly(
      source,
      { fd, path: file, store, size },
      { sizeBytes: SIZE, sparseBytes: 4096, ...options },
    )
    truncateSync(file, SIZE)
  } finally {
    source.close()
  }
}

for (const helpers of [0, 1, 3]) {
  t.test(`the disk is whole, and its zeros are holes: ${helpers} helpers`, async t => {
    const folder = tempFolder(t)
    const file = join(folder, 'disk.raw')
    const image = makeImage(folder)
    const seen: number[] = []
    await copied(t, image, file, { helpers, onProgress: offset => seen.push(offset) })
    t.ok(readFileSync(file).equals(DISK))
    t.ok(statSync(file).blocks * 512 < 0.65 * SIZE)
    t.equal(seen.at(-1), SIZE)
  })
}

t.test('of several errors the first on the disk is reported', async t => {
  const folder = tempFolder(t)
  const image = makeImage(folder, [35 * 7, 40 * 7 + 1, 41 * 7, 90 * 7])
  for (const helpers of [0, 3]) {
    for (let round = 0; round < 2; round++) {
      await t.rejects(copied(t, image, join(folder, 'disk.raw'), { helpers }), {
        code: 'CORRUPT',
        message: 'a compressed cluster is damaged or cut off',
        context: { path: image, offset: 35 * 7 * CLUSTER },
      })
    }
  }
})

t.test('damage before a table that cannot be read comes first', async t => {
  const folder = tempFolder(t)
  const image = makeImage(folder, [35 * 7])
  const bytes = readFileSync(image)
  // An L2 entry that names no cluster's start.
  const l2 = Number(
    bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(40))) & 0x00ff_ffff_ffff_fe00n,
  )
  bytes.writeBigUInt64BE(0x8000_0000_0001_0200n, l2 + 250 * 8)
  writeFileSync(image, bytes)
  for (const helpers of [0, 3]) {
    await t.rejects(copied(t, image, join(folder, 'disk.raw'), { helpers }), {
      code: 'CORRUPT',
      context: { offset: 35 * 7 * CLUSTER },
    })
  }
})

t.test('the signal ends it with its reason', async t => {
  const folder = tempFolder(t)
  const image = makeImage(folder)
  const ending = new AbortController()
  const slow = (store: WritableFileStore) => ({
    write: (...args: Parameters<WritableFileStore['write']>) => {
      const end = performance.now() + 5
      while (performance.now() < end);
      store.write(...args)
    },
  })
  const options = {
    helpers: 0,
    signal: ending.signal,
    onProgress: () => ending.abort(new Error('enough')),
  }
  await t.rejects(copied(t, image, join(folder, 'disk.raw'), options, slow), { message: 'enough' })
})

t.test('a target that fails once is written again, and one that is full is an error', async t => {
  const folder = tempFolder(t)
  const image = makeImage(folder)
  const file = join(folder, 'disk.raw')
  let writes = 0
  const failing = (store: WritableFileStore) => ({
    write: (...args: Parameters<WritableFileStore['write']>) => {
      if (writes++ === 20) throw new Error('for a moment')
      store.write(...args)
    },
  })
  await copied(t, image, file, { helpers: 0 }, failing)
  t.ok(readFileSync(file).equals(DISK))
})

t.test('a full target', needsRoot(), async t => {
  const folder = tempFolder(t)
  const small = join(folder, 'small')
  mkdirSync(small)
  await run('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'small', small])
  t.teardown(() => run('umount', ['-l', small]))
  const image = makeImage(folder)
  for (const helpers of [0, 3]) {
    await t.rejects(copied(t, image, join(small, 'disk.raw'), { helpers }), { code: 'ENOSPC' })
  }
})

t.test('a source whose storage fails', async t => {
  const folder = tempFolder(t)
  const image = join(folder, 'source.raw')
  writeFileSync(image, noise(CLUSTER * 40, 1))
  const source = await openSource(image, { format: 'raw' })
  t.teardown(() => source.close())
  // Nothing can be read by this descriptor: the engine has the last word.
  const blind = openSync(join(folder, 'blind'), 'w')
  t.teardown(() => closeSync(blind))
  const failing = Object.assign(Object.create(source), {
    placeOf: (extent: Parameters<typeof source.placeOf>[0]) => {
      const place = source.placeOf(extent)
      return place && { ...place, file: { ...place.file, fd: blind } }
    },
    read: (target: Buffer, start: number, length: number, offset: number) => {
      if (offset >= CLUSTER * 20) throw new SystemError('read', constants.errno.EIO, image)
      source.read(target, start, length, offset)
    },
  })
  const file = join(folder, 'disk.raw')
  const fd = openSync(file, 'w+')
  t.teardown(() => closeSync(fd))
  const size = new SharedArrayBuffer(8)
  const store = new WritableFileStore(file, fd, new BigInt64Array(size))
  for (const helpers of [0, 2]) {
    const copied = copyDirectly(
      failing,
      { fd, path: file, store, size },
      { sizeBytes: source.sizeBytes, sparseBytes: 4096, helpers },
    )
    await t.rejects(copied, {
      code: 'CORRUPT',
      message: 'its storage cannot be read',
      context: { path: image, offset: CLUSTER * 20 },
    })
  }
})

const job = (offset: number): CopyJob => ({
  ...{ offset, length: 1, fd: 0, at: 0, format: -1, numbers: [0, 0, 0, 0] },
})

t.test('the queue gives back in order what was not done', t => {
  const queue = new JobQueue(createJobMemory(0))
  const odd = { run: ({ offset }: CopyJob) => offset % 2 === 1 }
  let next = 0
  for (let round = 0; round < 3; round++) {
    while (!queue.isFull) queue.add(job(next++))
    while (queue.runOne(odd));
    for (let at = next - 256; at < next; at++) {
      t.strictSame(queue.drop(), at % 2 === 1 ? true : job(at))
    }
    t.ok(queue.isEmpty)
  }
  queue.end()
  t.end()
})

t.test('the queue takes back the jobs of helpers that have ended', t => {
  const memory = createJobMemory(1)
  const queue = new JobQueue(memory)
  queue.add(job(0))
  queue.add(job(1))
  const words = new Int32Array(memory.words)
  // Both are counted as taken. A helper has marked the second one; no thread can have its number.
  words[1] = 2
  words[4] = 2 ** 30
  new Int32Array(memory.states)[1] = 5
  for (const offset of [0, 1]) {
    t.equal(queue.drop(), false)
    t.equal(queue.runOne({ run: () => true }), false)
    queue.wait()
    t.strictSame(queue.drop(), job(offset))
  }
  t.ok(queue.isEmpty)
  queue.end()
  t.end()
})
