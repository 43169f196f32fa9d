/** Data beyond the end of the file stay an error, whatever is written elsewhere. */
import t from 'tap'
import { CountLedger } from '../../../src/formats/qcow2/count-ledger.js'
import { lostCluster } from '../../../src/formats/qcow2/lost-clusters.js'
import { readHeader } from '../../../src/formats/qcow2/header.js'
import { noise } from '../../fixtures/model.js'
import { buildImage, type Cluster, type ImageSpec } from '../../fixtures/qcow2-builder.js'
import { MemoryStore } from '../../support/stores.js'
import { openWritable } from '../../support/writable.js'

const CLUSTER = 4096
const data = (seed: number): Cluster => ({ kind: 'data', bytes: noise(CLUSTER, seed) })
const BASE = { clusterBits: 12, sizeBytes: 2 ** 20 }
const SPEC: ImageSpec = {
  ...BASE,
  clusters: new Map<number, Cluster>([
    [0, data(1)],
    [9, data(2)],
  ]),
}

/** Without the last `bytes` of the file. */
function cut(spec: ImageSpec, bytes: number): MemoryStore {
  const whole = buildImage(spec).bytes()
  return new MemoryStore('image', whole.subarray(0, whole.length - bytes))
}

const lost = (store: MemoryStore) => {
  const header = readHeader(store)
  return lostCluster(store, header, new CountLedger(store, header))
}

for (const refcountOrder of [0, 4, 6]) {
  t.test(`a disk, counts of ${2 ** refcountOrder} bits`, async t => {
    const spec = { ...SPEC, refcountOrder }
    t.equal(lost(cut(spec, 0)), undefined)
    t.equal(lost(cut(spec, CLUSTER - 1)), undefined, 'a file may end within its last cluster')
    t.equal(lost(cut(spec, CLUSTER)), buildImage(spec).bytes().length - CLUSTER)
  })
}

t.test('lost clusters do not read as zeros, before and after', async t => {
  const store = cut(SPEC, CLUSTER)
  const before = store.bytes()
  const { disk, read } = openWritable({ store })
  t.throws(() => read(9 * CLUSTER, CLUSTER), /beyond the end of the file/)
  const bytes = noise(CLUSTER, 3)
  t.throws(() => disk.write(bytes, 0, CLUSTER, 16 * CLUSTER), /would make zeros of them/)
  t.match(disk.failure, /would make zeros of them/)
  t.throws(() => read(9 * CLUSTER, CLUSTER), /beyond the end of the file/)
  t.ok(read(0, CLUSTER).equals(noise(CLUSTER, 1)))
  t.ok(store.bytes().equals(before), 'nothing was written')
})

t.test('an entry that names an uncounted cluster', async t => {
  const image = buildImage(SPEC)
  const bytes = image.bytes()
  bytes.writeBigUInt64BE((1n << 63n) | 0x100000n, image.l2EntryAt(9))
  const store = new MemoryStore('image', bytes)
  t.equal(lost(store), 0x100000)
  const { disk } = openWritable({ store })
  t.throws(() => disk.write(noise(CLUSTER, 3), 0, CLUSTER, 16 * CLUSTER), /make zeros of them/)
})

t.test('clusters that are counted and nothing names are no loss', async t => {
  const image = buildImage(SPEC)
  const bytes = image.bytes()
  bytes.writeBigUInt64BE(0n, image.l2EntryAt(9))
  const store = new MemoryStore('image', bytes.subarray(0, bytes.length - CLUSTER))
  t.equal(lost(store), undefined)
  const { disk, read } = openWritable({ store })
  disk.write(noise(CLUSTER, 3), 0, CLUSTER, 16 * CLUSTER)
  disk.close()
  t.ok(read(16 * CLUSTER, CLUSTER).equals(noise(CLUSTER, 3)))
})

t.test("snapshots' tables are not gone over without end", async t => {
  const image = buildImage({ ...SPEC, snapshots: [{ id: '1', name: 'one' }] })
  const bytes = image.bytes()
  // Its L1 table would take 34 GB.
  bytes.writeUInt32BE(0xffffffff, image.snapshotsAt + 8)
  const store = new MemoryStore('image', bytes)
  let readBytes = 0
  const counted = Object.create(store, {
    sizeBytes: { get: () => 2 ** 40 },
    read: {
      value: (target: Buffer, start: number, length: number, at: number) => {
        readBytes += length
        return store.read(target, start, length, at)
      },
    },
  }) as MemoryStore
  lost(counted)
  t.ok(readBytes < 2 ** 24, `${readBytes} bytes are read`)
})
