/** Scratch copies in one thread: what they read, and what their bound counts, against a model. */
import { mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { Extent, View } from '../../../src/formats/driver.js'
import { readView, walkView } from '../../../src/image/reading/engine.js'
import { openScratchFolder } from '../../../src/image/scratch/scratch-folder.js'
import {
  makeScratchLayer,
  openScratchDisk,
  shareScratchLayer,
} from '../../../src/image/scratch/scratch-layer.js'
import { ScratchSpace } from '../../../src/image/scratch/space.js'
import { closeFile, memoryFile } from '../../../src/io/libc.js'
import { openUnnamed } from '../../../src/io/unnamed-file.js'
import { Random } from '../../soundness/steps.js'
import { tempFolder } from '../../support/run.js'

const MIB = 2 ** 20
/** It ends within a cluster, a subcluster and a sector. */
const SIZE = 3 * MIB + 9 * 1024 + 100
const CACHES = { metadataBytes: 2 ** 16, clusterBytes: 2 ** 16 }
const THREAD = { thread: 0, onStall: () => {} }

/** A disk whose bytes tell their places. */
function base(): { view: View; bytes: Buffer } {
  const bytes = Buffer.alloc(SIZE, '0123456789 base ')
  bytes.fill(0, MIB, MIB + 300_000)
  const store = {
    path: 'base',
    sizeBytes: SIZE,
    read: (target: Buffer, start: number, length: number, at: number) =>
      bytes.copy(target, start, at, at + length),
    nextData: (at: number) => at,
    nextHole: () => SIZE,
  }
  const lookup = (offset: number, length: number): Extent => ({
    kind: 'data',
    length,
    store,
    at: offset,
  })
  return { view: { driver: { sizeBytes: SIZE, unitBytes: 1, lookup }, parent: undefined }, bytes }
}

function scratchOf(t: Test, view: View, limitBytes: number, isEncrypted = false) {
  const fd = memoryFile('vimgfs-test')
  t.teardown(() => closeFile(fd))
  const space = new ScratchSpace(limitBytes)
  const layer = makeScratchLayer({ path: 'scratch', fd }, SIZE, isEncrypted)
  const opened = openScratchDisk(
    shareScratchLayer(layer, 1, space),
    { view, watch: undefined, path: 'image' },
    CACHES,
    THREAD,
  )
  const used = () => Number(new BigInt64Array(space.shared)[0])
  return { ...opened, used, fd }
}

/** How much of the disk the scratch layer itself has, in bytes. */
function ownBytes({ driver }: View): number {
  let bytes = 0
  walkView({ driver, parent: undefined }, 0, SIZE, ({ kind, length }) => {
    if (kind === 'data') bytes += length
    return true
  })
  return bytes
}

for (const isEncrypted of [false, true]) {
  t.test(`random writes and zeros, ${isEncrypted ? 'encrypted' : 'plain'}`, async t => {
    const { view: below, bytes } = base()
    const unchanged = Buffer.from(bytes)
    const expected = Buffer.from(bytes)
    const { disk, view, used } = scratchOf(t, below, SIZE, isEncrypted)
    const random = new Random(5)
    for (let step = 0; step < 400; step++) {
      const offset = random.below(SIZE)
      const length = Math.min(SIZE - offset, 1 + random.below(random.pick([600, 9000, 400_000])))
      if (random.chance(0.4)) {
        disk.zero(offset, length)
        expected.fill(0, offset, offset + length)
      } else {
        const source = Buffer.alloc(length, random.chance(0.1) ? 0 : 1 + random.below(255))
        disk.write(source, 0, length, offset)
        source.copy(expected, offset)
      }
      if (step % 10 !== 0) continue
      while (disk.isDirty) disk.flush()
      if (used() !== ownBytes(view)) t.equal(used(), ownBytes(view), `step ${step}`)
      const found = Buffer.alloc(SIZE)
      readView(view, found, 0, SIZE, 0)
      if (!found.equals(expected)) t.fail(`step ${step} reads wrong`)
    }
    disk.zero(0, SIZE)
    disk.flush()
    t.equal(used(), 0, 'what is zeroed counts no more')
    t.ok(bytes.equals(unchanged), 'the disk below is as before')
  })
}

t.test('a write past the bound fails, and changes nothing', async t => {
  const { view: below, bytes } = base()
  const { disk, view, used } = scratchOf(t, below, 64 * 1024)
  const source = Buffer.alloc(MIB, 'w')
  disk.write(source, 0, 60 * 1024, 4096)
  t.throws(() => disk.write(source, 0, 8192, 2 * MIB), { code: 'ENOSPC' })
  disk.write(source, 0, 4096, 2 * MIB)
  t.throws(() => disk.write(source, 0, 1, 2 * MIB + 4096), { code: 'ENOSPC' })
  disk.write(source, 0, 4096, 4096)
  t.equal(used(), 64 * 1024)
  const found = Buffer.alloc(4096)
  readView(view, found, 0, 4096, 2 * MIB + 4096)
  t.ok(found.equals(bytes.subarray(2 * MIB + 4096, 2 * MIB + 8192)))
  disk.zero(4096, 4096)
  disk.write(source, 0, 4096, 2 * MIB + 4096)
})

t.test('nothing of the data is in the file of an encrypted copy', async t => {
  const { view } = base()
  const { disk, fd } = scratchOf(t, view, SIZE, true)
  disk.write(Buffer.alloc(MIB, 'a secret '), 0, MIB, 1000)
  disk.flush()
  const bytes = readFileSync(`/proc/self/fd/${fd}`)
  t.ok(bytes.length > MIB)
  t.notOk(bytes.includes('secret'))
  t.notOk(bytes.includes('base'))
})

t.test('files without names, and where there are none', async t => {
  const folder = tempFolder(t)
  for (const open of [undefined, lacking]) {
    const fd = openUnnamed(folder, open)
    t.same(readdirSync(folder), [])
    t.equal(statSync(`/proc/self/fd/${fd}`).mode & 0o777, 0o600)
    closeFile(fd)
  }
  t.throws(() => openUnnamed(join(folder, 'missing')), { code: 'ENOENT' })
})

function lacking(): never {
  throw Object.assign(new Error('no'), { code: 'EOPNOTSUPP' })
}

t.test('the folder', async t => {
  const folder = tempFolder(t)
  const image = { path: join(folder, 'disk.qcow2'), fd: memoryFile('image') }
  t.teardown(() => closeFile(image.fd))
  const named = join(folder, 'named')
  mkdirSync(named)
  const found = openScratchFolder(image, named)
  t.equal(found.path, named)
  closeFile(found.newFile())
  found.close()
  t.same(readdirSync(named), [])
  t.throws(() => openScratchFolder(image, join(folder, 'missing')), {
    code: 'REFUSED',
    context: { path: join(folder, 'missing'), hint: /-o scratch-dir=DIR/ },
  })
})
