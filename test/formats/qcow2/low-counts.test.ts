/**
 * Images whose reference counts are lower than their references. A writer that believed the counts would
 * hand out what is in use, so none of them is written, and repairing makes each of them writable.
 */
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { getCount, setCount } from '../../../src/formats/qcow2/refcount-bits.js'
import { clusterBytes, readHeader } from '../../../src/formats/qcow2/header.js'
import { repairQcow2 } from '../../../src/formats/qcow2/repair.js'
import { noise, prose } from '../../fixtures/model.js'
import { deflated } from '../../fixtures/packers.js'
import { buildImage, type Cluster, type ImageSpec } from '../../fixtures/qcow2-builder.js'
import { needs, tempFolder } from '../../support/run.js'
import { MemoryStore } from '../../support/stores.js'
import { openWritable } from '../../support/writable.js'

const data = (bytes: number, seed: number): Cluster => ({ kind: 'data', bytes: noise(bytes, seed) })

/** All that can be referred to: data, shared or not, compressed, zeros with a cluster, snapshots. */
function specOf(clusterBits: number, more: Partial<ImageSpec> = {}): ImageSpec {
  const cluster = 2 ** clusterBits
  const zeros: Cluster = { kind: 'zero-allocated', bytes: noise(cluster, 6) }
  const shared = data(cluster, 9)
  const packed = deflated(prose(cluster, 2))
  return {
    clusterBits,
    sizeBytes: 300 * cluster,
    clusters: new Map<number, Cluster>([
      [0, data(cluster, 1)],
      [1, shared],
      [2, packed],
      [3, deflated(prose(cluster, 3), { gap: 3 })],
      [6, more.version === 2 ? data(cluster, 6) : zeros],
      [299, data(cluster, 5)],
    ]),
    snapshots: [
      {
        clusters: new Map<number, Cluster>([
          [1, shared],
          [2, packed],
        ]),
      },
      { clusters: new Map([[200, data(cluster, 8)]]) },
    ],
    ...more,
  }
}

const IMAGES: Record<string, Buffer> = {
  'clusters of 4 KiB': buildImage(specOf(12)).bytes(),
  'clusters of 512 bytes, counts of 64 bits': buildImage(specOf(9, { refcountOrder: 6 })).bytes(),
  'counts of 2 bits': buildImage(specOf(10, { refcountOrder: 1 })).bytes(),
  'version 2': buildImage(specOf(12, { version: 2 })).bytes(),
  'extended L2 entries': buildImage(specOf(14, { isExtended: true })).bytes(),
}

/** Where the counts of an image are, and how to change them. */
function countsOf(bytes: Buffer) {
  const header = readHeader(new MemoryStore('image', bytes))
  const cluster = clusterBytes(header)
  const perBlock = (cluster * 8) / 2 ** header.refcountOrder
  const entryAt = (block: number) => header.refcountTableOffset + block * 8
  const blockAt = (block: number) => Number(bytes.readBigUInt64BE(entryAt(block)))
  const placeOf = (index: number): [Buffer, number, number] => {
    const at = blockAt(Math.floor(index / perBlock))
    return [bytes.subarray(at, at + cluster), index % perBlock, header.refcountOrder]
  }
  return {
    clusters: Math.ceil(bytes.length / cluster),
    cluster,
    perBlock,
    entryAt,
    blockAt,
    get: (index: number) => getCount(...placeOf(index)),
    set: (index: number, count: number) => setCount(...placeOf(index), count),
  }
}

/** Where the tests write: a cluster that the images have not allocated. */
const FREE_CLUSTER = 120

/** Writing must be refused, say why and what helps, and leave every byte as it is. */
function checkRefused(t: Test, bytes: Buffer, what: string): void {
  const { cluster } = countsOf(bytes)
  const store = new MemoryStore('image', bytes)
  const { disk, read } = openWritable({ store })
  const before = read(0, disk.sizeBytes)
  const write = () => disk.write(noise(cluster, 7), 0, cluster, FREE_CLUSTER * cluster)
  const why =
    /(lower than the number of its references|claims it for the disk alone).*vimgfs check --repair all/
  t.throws(write, { code: 'CORRUPT', message: why }, `${what}: a write is refused`)
  t.match(disk.failure, why, `${what}: the status says so`)
  t.ok(read(0, disk.sizeBytes).equals(before), `${what}: it is still read`)
  disk.close()
  t.ok(store.bytes().equals(bytes), `${what}: not a byte has changed`)
}

/** After a repair it is written, and all else is as it was. */
function checkRepaired(t: Test, bytes: Buffer, what: string): void {
  const { cluster } = countsOf(bytes)
  const store = new MemoryStore('image', bytes)
  const expected = openWritable({ store }).read(0, FREE_CLUSTER * cluster)
  t.match(repairQcow2(store, 'all').after, { corruptions: 0 }, `${what}: it can be repaired`)
  const { disk, read } = openWritable({ store })
  disk.write(noise(cluster, 7), 0, cluster, FREE_CLUSTER * cluster)
  disk.close()
  t.ok(read(0, FREE_CLUSTER * cluster).equals(expected), `${what}: then it is written`)
}

/** Checks that no count of an image may be lower by one, and that each may be higher. */
function checkEachCount(t: Test, bytes: Buffer): void {
  const { clusters, get, set, cluster } = countsOf(bytes)
  const most = Math.max(...Array.from({ length: clusters }, (_, i) => get(i)))
  t.ok(most >= 2, 'some clusters are shared')
  for (let index = 0; index < clusters; index++) {
    const count = get(index)
    if (count === 0) continue
    set(index, count - 1)
    checkRefused(t, Buffer.from(bytes), `cluster ${index}, counted ${count - 1} times`)
    checkRepaired(t, Buffer.from(bytes), `cluster ${index}, counted ${count - 1} times`)
    // Two bits hold 3 at most.
    set(index, Math.max(count, Math.min(count + 1, 3)))
    const store = new MemoryStore('image', bytes)
    const { disk } = openWritable({ store })
    disk.write(noise(cluster, 7), 0, cluster, FREE_CLUSTER * cluster)
    disk.close()
    t.equal(disk.failure, '', `cluster ${index}, counted too often, is space lost`)
    set(index, count)
  }
}

for (const [title, bytes] of Object.entries(IMAGES)) {
  t.test(title, async t => checkEachCount(t, Buffer.from(bytes)))
}

t.test('bitmaps', needs('qemu-img', 'qemu-io'), async t => {
  const file = join(tempFolder(t), 'image')
  const run = (...args: string[]) => execFileSync(args[0] as string, args.slice(1))
  run('qemu-img', 'create', '-qfqcow2', '-ocluster_size=4k', file, '2M')
  run('qemu-img', 'bitmap', '--add', '-g', '4096', file, 'one')
  run('qemu-io', '-c', 'write -P 1 0 12k', file)
  run('qemu-img', 'snapshot', '-c', 'snapshot', file)
  run('qemu-io', '-c', 'write -P 2 4k 4k', file)
  checkEachCount(t, readFileSync(file))
})

t.test('a lost refcount block', async t => {
  for (const [title, image] of Object.entries(IMAGES)) {
    const { clusters, perBlock, cluster, blockAt, entryAt } = countsOf(image)
    for (let block = 0; block * perBlock < clusters; block++) {
      const zeroed = Buffer.from(image).fill(0, blockAt(block), blockAt(block) + cluster)
      checkRefused(t, zeroed, `${title}, block ${block} of zeros`)
      checkRepaired(t, zeroed, `${title}, block ${block} of zeros`)
      const unnamed = Buffer.from(image)
      unnamed.writeBigUInt64BE(0n, entryAt(block))
      checkRefused(t, unnamed, `${title}, without the entry of block ${block}`)
      checkRepaired(t, unnamed, `${title}, without the entry of block ${block}`)
    }
  }
})

t.test('an entry that claims a shared cluster for the disk alone', async t => {
  const image = buildImage(specOf(12))
  const bytes = image.bytes()
  bytes[image.l2EntryAt(1)]! |= 0x80
  checkRefused(t, bytes, 'a cluster')
  checkRepaired(t, bytes, 'a cluster')
})

t.test('an L1 entry that claims a shared table for the disk alone', async t => {
  const image = buildImage(specOf(12))
  const bytes = image.bytes()
  const counts = countsOf(bytes)
  // The snapshot gets the disk's own table.
  bytes.copy(bytes, image.snapshotL1At[0] as number, image.l1At, image.l1At + 8)
  checkRefused(t, bytes, 'counts as they were')
  const table = (Number(bytes.readBigUInt64BE(image.l1At)) % 2 ** 48) / counts.cluster
  for (const index of [table, ...[0, 6, 299].map(guest => hostOf(bytes, image.l2EntryAt(guest)))]) {
    counts.set(index, 2)
  }
  checkRefused(t, bytes, 'counts of all references')
})

/** The host cluster of an entry in an image with clusters of 4 KiB. */
const hostOf = (bytes: Buffer, entryAt: number): number =>
  Number(bytes.readBigUInt64BE(entryAt) & 0xff_ffff_ffff_fe00n) / 4096

t.test('an external data file: only tables are counted', async t => {
  const image = buildImage({
    clusterBits: 12,
    sizeBytes: 300 * 4096,
    dataFile: 'data',
    clusters: new Map([[0, data(4096, 1)]]),
  })
  const bytes = image.bytes()
  const counts = countsOf(bytes)
  const open = (content: Buffer) =>
    openWritable({ store: new MemoryStore('image', content), dataStore: new MemoryStore('data') })
  const write = (content: Buffer) => () =>
    open(content).disk.write(noise(4096, 7), 0, 4096, FREE_CLUSTER * 4096)
  t.doesNotThrow(write(bytes))
  for (let index = 0; index < counts.clusters; index++) {
    counts.set(index, 0)
    t.throws(write(bytes), /lower than the number of its references/, `cluster ${index}`)
    counts.set(index, 1)
  }
})
