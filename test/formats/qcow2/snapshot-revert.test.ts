/** Reverting a qcow2 image whose disk had another size, or whose snapshot has a VM state. */
import t from 'tap'
import { checkQcow2 } from '../../../src/formats/qcow2/check.js'
import { readHeader } from '../../../src/formats/qcow2/header.js'
import { qcow2SnapshotWriter } from '../../../src/formats/qcow2/snapshot/snapshot-writer.js'
import { readSnapshots } from '../../../src/formats/qcow2/snapshots.js'
import { buildImage, type Cluster } from '../../fixtures/qcow2-builder.js'
import { noise } from '../../fixtures/model.js'
import { MemoryStore } from '../../support/stores.js'
import { openWritable, readImage } from '../../support/writable.js'
import { judge } from '../../soundness/judge.js'

const CLUSTER = 512
/** One L2 table maps 64 clusters: the larger disk needs a larger L1 table. */
const SMALL = 40 * CLUSTER
const LARGE = 9000 * CLUSTER
const { create, delete: remove, revert } = qcow2SnapshotWriter
const named = (tag: string) => ({ name: Buffer.from(tag), dateSeconds: 1, dateNanoseconds: 0 })
const data = (seed: number): Cluster => ({ kind: 'data', bytes: noise(CLUSTER, seed) })

t.test('the disk had another size', async t => {
  const clusters = new Map([[3, data(1)]])
  const bytes = buildImage({ clusterBits: 9, sizeBytes: SMALL, clusters }).bytes()
  const store = new MemoryStore('disk.qcow2', bytes)
  const { disk: small } = readImage({ store })
  create(store, named('small'))
  const opened = openWritable({ store })
  opened.disk.grow(LARGE)
  opened.disk.write(noise(5000, 2), 0, 5000, LARGE - 6000)
  opened.disk.close()
  const { disk: large } = readImage({ store })
  t.ok(revert(store, 0, named('large')).hasKept)
  t.equal(readHeader(store).sizeBytes, SMALL)
  const shown = readImage({ store })
  t.ok(shown.disk.equals(small))
  t.ok(shown.snapshots[1]?.equals(large), 'the larger disk is kept')
  revert(store, 1, undefined)
  t.ok(readImage({ store }).disk.equals(large))
  t.same(judge(store).corruptions, [])
  t.match(checkQcow2(store), { corruptions: 0, leaks: 0 })
  remove(store, [0, 1])
  t.ok(readImage({ store }).disk.equals(large))
  t.match(checkQcow2(store), { corruptions: 0, leaks: 0 })
})

t.test('a VM state stays with its snapshot', async t => {
  const snapshots = [
    {
      name: 'machine',
      clusters: new Map([[3, data(1)]]),
      vmState: new Map([
        [0, data(7)],
        [1, data(8)],
      ]),
      vmStateBytes: 2 * CLUSTER,
    },
  ]
  const clusters = new Map([[5, data(2)]])
  const spec = { clusterBits: 9, sizeBytes: SMALL, clusters, snapshots }
  const store = new MemoryStore('disk.qcow2', buildImage(spec).bytes())
  t.match(checkQcow2(store), { corruptions: 0, leaks: 0 })
  const stateIn = () => {
    const header = readHeader(store)
    return readSnapshots(store, header).snapshots[0]?.vmStateBytes
  }
  revert(store, 0, named('before'))
  t.equal(stateIn(), 2 * CLUSTER)
  const { disk, snapshots: shown } = readImage({ store })
  t.ok(disk.equals(shown[0] as Buffer))
  t.match(checkQcow2(store), { corruptions: 0, leaks: 0 })
  create(store, named('after'))
  t.match(checkQcow2(store), { corruptions: 0, leaks: 0 }, 'nothing of it is in the disk')
  const bytes = store.bytes()
  t.ok(bytes.includes(noise(CLUSTER, 8)), 'the state is there')
  remove(store, [0])
  t.notOk(store.bytes().includes(noise(CLUSTER, 8)), 'it is given back with its snapshot')
  t.match(checkQcow2(store), { corruptions: 0, leaks: 0 })
})
