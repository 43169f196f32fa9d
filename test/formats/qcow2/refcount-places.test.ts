/** Repairs of images that cannot grow: on a block device, or a full disk. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import t from 'tap'
import { SystemError } from '../../../src/errors.js'
import { checkQcow2 } from '../../../src/formats/qcow2/check.js'
import { INCOMPATIBLE, readHeader } from '../../../src/formats/qcow2/header.js'
import { recover } from '../../../src/formats/qcow2/recovery.js'
import { repairQcow2 } from '../../../src/formats/qcow2/repair.js'
import { readSnapshots } from '../../../src/formats/qcow2/snapshots.js'
import { noise } from '../../fixtures/model.js'
import { buildImage, type Cluster, type ImageSpec } from '../../fixtures/qcow2-builder.js'
import { MemoryStore } from '../../support/stores.js'

const ENOSPC = 28
const EINVAL = 22
const data = (seed: number): Cluster => ({ kind: 'data', bytes: noise(512, seed) })
const SPEC: ImageSpec = {
  clusterBits: 9,
  sizeBytes: 512 * 1024,
  clusters: new Map(Array.from({ length: 600 }, (_, i) => [i, data(i)] as const)),
}

/** A store of a fixed size. */
class Device extends MemoryStore {
  /** What of the file was written, to the byte. */
  readonly written: [at: number, length: number][] = []

  override write(source: Buffer, start: number, length: number, at: number): void {
    if (at + length > this.sizeBytes) throw new SystemError('write', ENOSPC, this.path)
    this.written.push([at, length])
    super.write(source, start, length, at)
  }

  override truncate(): void {
    throw new SystemError('ftruncate', EINVAL, this.path)
  }
}

/** A full disk: the file's holes stay holes, and it does not grow. */
class FullDisk extends MemoryStore {
  override write(source: Buffer, start: number, length: number, at: number): void {
    if (this.missingBytes(at, length) > 0) throw new SystemError('write', ENOSPC, this.path)
    super.write(source, start, length, at)
  }
}

const qemuCheck = (store: MemoryStore): number | null => {
  const folder = mkdtempSync(path.join(tmpdir(), 'vimgfs-room-'))
  try {
    const file = path.join(folder, 'a.qcow2')
    writeFileSync(file, store.bytes())
    const { status, error } = spawnSync('qemu-img', ['check', '-q', '-f', 'qcow2', file])
    return error ? 0 : status
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** An image with its refcount table lost, and `free` clusters after its end. */
function lostTable(free: number, spec: ImageSpec = SPEC) {
  const image = buildImage(spec)
  const bytes = image.bytes()
  bytes.fill(0, image.refcountTableAt, image.refcountTableAt + 512)
  return { image, bytes: Buffer.concat([bytes, Buffer.alloc(free * 512)]) }
}

t.test('a lost refcount table is made anew inside a device', async t => {
  for (const refcountOrder of [0, 3, 4, 6]) {
    const { image, bytes } = lostTable(400, { ...SPEC, refcountOrder })
    const store = new Device('', bytes)
    t.match(repairQcow2(store, 'all').after, { leaks: 0, corruptions: 0, checkErrors: 0 })
    t.equal(store.sizeBytes, bytes.length)
    t.equal(qemuCheck(store), 0)
    const after = store.bytes()
    for (const cluster of SPEC.clusters?.values() ?? []) {
      const at = image.placeOf(cluster) as number
      if (!after.subarray(at, at + 512).equals(bytes.subarray(at, at + 512)))
        t.fail(`data at ${at}`)
    }
  }
})

t.test('the old blocks and leaks are room, too', async t => {
  const { bytes } = lostTable(0)
  const store = new Device('', bytes)
  t.match(repairQcow2(store, 'all').after, { leaks: 0, corruptions: 0, checkErrors: 0 })
  t.equal(qemuCheck(store), 0)
})

t.test('a table that shares its cluster moves inside', async t => {
  const { image, bytes } = lostTable(20)
  const [first] = SPEC.clusters?.values() ?? []
  // The first cluster of the disk is said to lie where the table is: QEMU could not tell which is right.
  bytes.writeBigUInt64BE((1n << 63n) | BigInt(image.refcountTableAt), image.l2EntryAt(0))
  t.ok(first)
  const store = new Device('', bytes)
  t.match(repairQcow2(store, 'all').after, { leaks: 0, corruptions: 0, checkErrors: 0 })
  t.not(readHeader(store).refcountTableOffset, image.refcountTableAt)
  t.equal(qemuCheck(store), 0)
})

t.test('without room nothing changes', async t => {
  const spec = { ...SPEC, refcountOrder: 6 }
  const { image, bytes } = lostTable(0, spec)
  // What the old blocks were in is named as data of the disk, so it is not free.
  let next = 600
  const blocks = buildImage(spec).bytes()
  for (let i = 0; i < 64; i++) {
    const at = blocks.readBigUInt64BE(image.refcountTableAt + i * 8)
    if (at !== 0n) bytes.writeBigUInt64BE((1n << 63n) | at, image.l2EntryAt(next++))
  }
  const store = new Device('', bytes)
  t.throws(() => repairQcow2(store, 'all'), { name: 'ImageError', message: /there is no room/ })
  t.same(store.bytes(), bytes)
})

t.test('clusters that a lost table may own are not taken', async t => {
  const { image, bytes } = lostTable(400)
  bytes.writeBigUInt64BE((1n << 63n) | (1n << 40n), image.l1At + 8)
  const store = new Device('', bytes)
  t.throws(() => repairQcow2(store, 'all'), { name: 'ImageError' })
  t.same(store.bytes(), bytes)
})

t.test('a full disk: clusters that are no holes', async t => {
  const { bytes } = lostTable(0)
  const store = new FullDisk('', bytes)
  t.match(repairQcow2(store, 'all').after, { leaks: 0, corruptions: 0, checkErrors: 0 })
  t.equal(store.sizeBytes, bytes.length)
  t.equal(qemuCheck(store), 0)
})

t.test('a snapshot table with sizes lies inside', async t => {
  const snapshots = [{ name: 'old', extraBytes: 0, clusters: new Map([[3, data(3)]]) }]
  const image = buildImage({ ...SPEC, snapshots })
  const store = new Device('', Buffer.concat([image.bytes(), Buffer.alloc(20 * 512)]))
  const before = readSnapshots(store, readHeader(store))
  t.match(repairQcow2(store, 'all').after, { leaks: 0, corruptions: 0, checkErrors: 0 })
  t.same(readSnapshots(store, readHeader(store)), before)
  t.equal(qemuCheck(store), 0)
})

t.test('a dirty image on a device is recovered inside it', async t => {
  const { bytes } = lostTable(20)
  bytes.writeBigUInt64BE(INCOMPATIBLE.dirty, 72)
  const store = new Device('', bytes)
  t.match(recover(store), /rebuilt/)
  const { corruptions, leaks, checkErrors } = checkQcow2(store)
  t.same([corruptions, leaks, checkErrors], [0, 0, 0])
})

t.test('where recovery cannot write, it is an error of the image', async t => {
  const { bytes } = lostTable(0)
  bytes.writeBigUInt64BE(INCOMPATIBLE.dirty, 72)
  class Broken extends MemoryStore {
    override write(): void {
      throw new SystemError('write', ENOSPC, this.path)
    }
  }
  const store = new Broken('', bytes)
  t.throws(() => recover(store), { name: 'ImageError', message: /not closed cleanly/ })
  t.same(store.bytes(), bytes)
})
