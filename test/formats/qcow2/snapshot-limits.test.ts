/** How many snapshots a qcow2 image can have, and what its counts can hold. */
import t from 'tap'
import { checkQcow2 } from '../../../src/formats/qcow2/check.js'
import { readHeader } from '../../../src/formats/qcow2/header.js'
import { Change } from '../../../src/formats/qcow2/snapshot/change.js'
import { type Entry, newEntry } from '../../../src/formats/qcow2/snapshot/entries.js'
import { qcow2SnapshotWriter } from '../../../src/formats/qcow2/snapshot/snapshot-writer.js'
import { buildImage, type Cluster } from '../../fixtures/qcow2-builder.js'
import { noise } from '../../fixtures/model.js'
import { MemoryStore } from '../../support/stores.js'

const CLUSTER = 4096
const snapshot = (name: string) => ({
  name: Buffer.from(name),
  dateSeconds: 1,
  dateNanoseconds: 0,
})
const { create, delete: remove, revert } = qcow2SnapshotWriter

function imageStore(refcountOrder = 4): MemoryStore {
  const clusters = new Map<number, Cluster>([[3, { kind: 'data', bytes: noise(CLUSTER, 1) }]])
  const spec = { clusterBits: 12, sizeBytes: 64 * CLUSTER, refcountOrder, clusters }
  return new MemoryStore('disk.qcow2', buildImage(spec).bytes())
}

t.test('65536 snapshots', async t => {
  const store = imageStore()
  // They have no L1 tables, so only their number counts.
  const one = newEntry(snapshot('x'), [], { at: 0, entries: 0 }, 0)
  const many: Entry[] = Array.from({ length: 65536 }, () => one)
  Change.run(store, change => {
    const { sizeBytes, l1Entries, l1Offset } = change.header
    change.commit(many, { sizeBytes, l1Entries, l1Offset })
  })
  t.equal(readHeader(store).snapshotCount, 65536)
  const before = store.bytes()
  const refused = { message: /has 65536 snapshots, and there is no room for more/ }
  t.throws(() => create(store, snapshot('one more')), refused)
  t.throws(() => revert(store, 7, snapshot('kept')), refused)
  t.ok(store.bytes().equals(before), 'it is as it was')
})

t.test('counts that are full', async t => {
  const store = imageStore(2)
  for (const name of ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n']) {
    create(store, snapshot(name))
  }
  const before = store.bytes()
  const refused = { message: /more than 15 references, the most .* of 4 bits/ }
  t.throws(() => create(store, snapshot('o')), refused)
  t.ok(store.bytes().equals(before), 'it is as it was')
  t.doesNotThrow(() => revert(store, 3, undefined), 'the count of what both share does not rise')
  remove(store, [0])
  create(store, snapshot('o'))
  t.match(checkQcow2(store), { corruptions: 0, leaks: 0 })
})
