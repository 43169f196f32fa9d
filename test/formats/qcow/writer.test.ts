/** Writing against a model, in every shape; refusals, bytes that no write touches, and the state after a power cut. */
import fc from 'fast-check'
import t from 'tap'
import { ImageError, SystemError } from '../../../src/errors.js'
import { checkQcow } from '../../../src/formats/qcow/check.js'
import { noise, prose } from '../../fixtures/model.js'
import {
  buildQcow,
  type Cluster,
  diskOfQcow,
  HEADER_AT,
  type QcowSpec,
} from '../../fixtures/qcow-builder.js'
import { firstDifference, readAll } from '../../support/image.js'
import { holds } from '../../support/property.js'
import { FullDiskStore, type Journal, MemoryStore, RecordingStore } from '../../support/stores.js'
import { readDisk } from '../../support/writable.js'
import { openQcow, viewQcow } from './disks.js'

const K = 1024
const CLUSTER = 4 * K

const data = (seed: number, bytes = CLUSTER): Cluster => ({
  kind: 'data',
  bytes: noise(bytes, seed),
})
const packed = (seed: number, bytes = CLUSTER): Cluster => ({
  kind: 'packed',
  content: prose(bytes, seed),
})
const storeOf = (spec: QcowSpec) => new MemoryStore('disk.qcow', buildQcow(spec).bytes)

function same(actual: Buffer, expected: Buffer, what: string): void {
  const at = firstDifference(actual, expected)
  if (at >= 0) throw new Error(`${what}: byte ${at} is ${actual[at]}, not ${expected[at]}`)
}

function sound(store: MemoryStore, what: string): void {
  const { corruptions, findings } = checkQcow(store)
  if (corruptions > 0) throw new Error(`${what}: ${findings[0]?.message}`)
}

const shape = fc.record({
  clusterBits: fc.constantFrom(9, 10, 12, 13, 16),
  l2Bits: fc.constantFrom(6, 7, 9, 13),
  /** Of the disk, in clusters and bytes. */
  clusters: fc.integer({ min: 1, max: 150 }),
  rest: fc.constantFrom(0, 1, 511, 512, 513, 4095),
  /** What clusters are at first: 0 absent, 1 data, 2 compressed. */
  kinds: fc.array(fc.constantFrom(0, 0, 1, 2), { maxLength: 150 }),
  alignment: fc.constantFrom(512, undefined),
  parent: fc.constantFrom(undefined, 0.3, 1, 1.4),
  isEncrypted: fc.constantFrom(false, false, true),
})
const part = fc.nat(10_000)
const step = fc.oneof(
  fc.record({ kind: fc.constantFrom('write', 'zero', 'write zeros'), from: part, size: part }),
  fc.record({ kind: fc.constantFrom('cluster', 'discard'), from: part, size: part }),
  fc.record({ kind: fc.constantFrom('flush', 'reopen'), from: part, size: part }),
)

t.test('any steps, against a model', async t => {
  const runs = await holds(
    fc.tuple(shape, fc.array(step, { minLength: 1, maxLength: 25 })),
    250,
    ([shape, steps]) => {
      const { clusterBits, l2Bits, kinds, alignment, isEncrypted } = shape
      const cluster = 2 ** clusterBits
      const sizeBytes = Math.max(2, shape.clusters * cluster + shape.rest)
      const initial = new Map<number, Cluster>()
      kinds.forEach((kind, i) => {
        if (i * cluster >= sizeBytes) return
        // Data would have to be encrypted.
        if (kind === 1 && !isEncrypted) initial.set(i, data(i, cluster))
        else if (kind > 0) initial.set(i, packed(i, cluster))
      })
      const spec: QcowSpec = {
        sizeBytes,
        clusterBits,
        l2Bits,
        clusters: initial,
        cryptMethod: isEncrypted ? 1 : 0,
        ...(alignment && { alignment }),
      }
      const parent = shape.parent && noise(Math.floor(sizeBytes * shape.parent), 99)
      const below = parent || undefined
      const store = storeOf(spec)
      const model = diskOfQcow(spec, below)
      let open = openQcow(store, below)
      for (const [i, { kind, from, size }] of steps.entries()) {
        const unit = kind === 'cluster' || kind === 'discard' ? cluster : 1
        const offset = Math.floor(((from / 10_001) * sizeBytes) / unit) * unit
        const most = Math.min(sizeBytes - offset, 40 * cluster)
        const length = Math.min(
          most,
          Math.max(1, Math.ceil(((size / 10_000) * most) / unit) * unit),
        )
        if (kind === 'flush') open.disk.flush()
        else if (kind === 'reopen') {
          open.disk.close()
          sound(store, 'closed')
          open = openQcow(store, below)
        } else if (kind === 'zero' || kind === 'discard') {
          open.disk.zero(offset, length)
          model.fill(0, offset, offset + length)
        } else {
          const bytes = kind === 'write zeros' ? Buffer.alloc(length) : noise(length, i + 1)
          open.disk.write(bytes, 0, length, offset)
          bytes.copy(model, offset)
        }
      }
      same(readDisk(open), model, 'before it is closed')
      open.disk.close()
      sound(store, 'at the end')
      same(readAll(viewQcow(store, below)), model, 'once it is closed')
    },
  )
  t.ok(runs >= 50, `${runs} runs`)
})

t.test('compressed clusters are never written over', async t => {
  const spec: QcowSpec = {
    sizeBytes: 16 * CLUSTER,
    clusters: new Map([0, 1, 2, 3].map(i => [i, packed(i)])),
  }
  const { bytes, placeOf } = buildQcow(spec)
  const store = new MemoryStore('disk.qcow', bytes)
  const { disk } = openQcow(store)
  disk.write(noise(100, 1), 0, 100, 50)
  disk.write(noise(CLUSTER, 2), 0, CLUSTER, CLUSTER)
  disk.zero(2 * CLUSTER, CLUSTER)
  disk.close()
  const end = bytes.length
  t.ok(
    store
      .bytes()
      .subarray(placeOf(0), end)
      .equals(bytes.subarray(placeOf(0))),
  )
  t.equal(checkQcow(store).compressedClusters, 1, 'a zeroed one is not there any more')
})

t.test('zeros take no space', async t => {
  const sizeBytes = 64 * CLUSTER
  const zeros = Buffer.alloc(sizeBytes)
  t.test('where nothing is', async t => {
    const store = storeOf({ sizeBytes })
    const before = store.bytes()
    const { disk } = openQcow(store)
    disk.write(zeros, 0, sizeBytes, 0)
    disk.zero(0, sizeBytes)
    disk.close()
    t.ok(store.bytes().equals(before), 'nothing changes')
  })
  t.test('where data are', async t => {
    const store = storeOf({ sizeBytes })
    const { disk } = openQcow(store)
    disk.write(noise(sizeBytes, 1), 0, sizeBytes, 0)
    disk.flush()
    const { allocatedBytes } = store
    disk.zero(0, sizeBytes)
    disk.close()
    t.equal(allocatedBytes - store.allocatedBytes, sizeBytes)
    t.ok(readAll(viewQcow(store)).equals(zeros))
  })
  t.test('over a parent', async t => {
    const parent = noise(sizeBytes, 5)
    const store = storeOf({ sizeBytes, backingName: 'base' })
    const before = store.allocatedBytes
    const { disk } = openQcow(store, parent)
    disk.write(zeros, 0, sizeBytes, 0)
    disk.close()
    t.equal(store.allocatedBytes - before, 4 * K, 'but for a table')
    t.ok(readAll(viewQcow(store, parent)).equals(zeros))
  })
  t.test('but of an encrypted disk they do', async t => {
    const store = storeOf({ sizeBytes, cryptMethod: 1 })
    const { disk } = openQcow(store)
    disk.write(noise(sizeBytes, 1), 0, sizeBytes, 0)
    disk.zero(0, sizeBytes)
    disk.close()
    t.ok(store.allocatedBytes > sizeBytes)
    t.ok(readAll(viewQcow(store)).equals(zeros))
  })
})

t.test('new clusters lie where QEMU would put them', async t => {
  const store = storeOf({ sizeBytes: 16 * CLUSTER, clusters: new Map([[9, packed(1)]]) })
  const { disk } = openQcow(store)
  disk.write(noise(100, 1), 0, 100, 0)
  disk.close()
  t.equal(store.sizeBytes, 4 * CLUSTER, 'a whole cluster after the compressed one')
})

t.test('more tables change than the pool has room for', async t => {
  const sizeBytes = 40 * 2 ** 20
  for (const l2Bits of [6, 13]) {
    const store = storeOf({ sizeBytes, clusterBits: 9, l2Bits })
    const { disk } = openQcow(store)
    // One write, from the middle of a table on.
    const offset = 3 * 2 ** 20 + 511
    const bytes = noise(sizeBytes - offset, 3)
    disk.write(bytes, 0, bytes.length, offset)
    disk.close()
    t.ok(readAll(viewQcow(store)).subarray(offset).equals(bytes), `tables of 2^${l2Bits} entries`)
    sound(store, 'closed')
  }
})

t.test('it cannot grow', async t => {
  const { disk } = openQcow(storeOf({ sizeBytes: 64 * K }))
  t.throws(() => disk.grow(65 * K), { code: 'REFUSED', message: 'qcow images cannot grow' })
})

/** Tables of the file that are holes: writing to them needs room. */
const FULL: { title: string; spec: QcowSpec }[] = [
  { title: 'tables to be made', spec: { sizeBytes: 2 ** 21, clusterBits: 9, l2Bits: 6 } },
  {
    title: 'tables that are holes',
    spec: {
      sizeBytes: 2 ** 21,
      clusterBits: 9,
      l2Bits: 6,
      clusters: new Map(
        Array.from({ length: 64 }, (_, i) => [i * 64, { kind: 'entry', entry: 0n }]),
      ),
    },
  },
  {
    title: 'an L1 table that is a hole',
    spec: { sizeBytes: 2 ** 25, clusterBits: 9, l2Bits: 6 },
  },
]
for (const { title, spec } of FULL) {
  t.test(`nothing that was flushed is lost on a full disk: ${title}`, async () => {
    for (let room = 0; room < 60; room = Math.ceil(room * 1.2) + 1) {
      const inner = storeOf(spec)
      const store = new FullDiskStore(inner)
      const model = Buffer.alloc(spec.sizeBytes)
      const open = openQcow(store)
      store.limitBytes = store.usedBytes + room * 4 * K
      for (let i = 0; i < 40; i++) {
        const offset = ((i * 7919) % 4000) * (spec.sizeBytes / 4096)
        const bytes = noise(700, i)
        try {
          open.disk.write(bytes, 0, bytes.length, offset)
          bytes.copy(model, offset)
        } catch (error) {
          if (!(error instanceof SystemError) || error.code !== 'ENOSPC') throw error
          // Some of what failed may be there.
          open.read(offset, bytes.length).copy(model, offset)
        }
      }
      open.disk.flush()
      same(readDisk(open), model, `with room for ${room} blocks`)
      sound(inner, `with room for ${room} blocks`)
      store.limitBytes = Number.POSITIVE_INFINITY
      open.disk.write(noise(5000, 3), 0, 5000, 99)
      noise(5000, 3).copy(model, 99)
      open.disk.close()
      same(readAll(viewQcow(inner)), model, 'once there is room again')
    }
  })
}

/** What a step is about to change, or, where it is absent, what a flush has brought to the disk. */
interface Mark {
  readonly range?: { readonly from: number; readonly to: number }
  readonly disk: Buffer
}

t.test('a power cut at any write', async t => {
  for (const isEncrypted of [false, true]) {
    const spec: QcowSpec = {
      sizeBytes: 300 * K,
      clusterBits: 10,
      l2Bits: 6,
      cryptMethod: isEncrypted ? 1 : 0,
      clusters: new Map([[3, packed(3, K)]]),
    }
    const base = storeOf(spec)
    const model = diskOfQcow(spec)
    const journal = journalOf(base, model)
    const durable = base.clone()
    let flushed = diskOfQcow(spec)
    let touched: { from: number; to: number }[] = []
    let pending: Journal<Mark> = []
    let cuts = 0
    const judge = (kept: Journal<Mark>) => {
      const store = durable.clone()
      for (const entry of kept) apply(store, entry)
      cuts++
      sound(store, `cut ${cuts}`)
      const found = readAll(viewQcow(store))
      for (let at = 0; at < found.length; at += 512) {
        if (found.subarray(at, at + 512).equals(flushed.subarray(at, at + 512))) continue
        if (touched.some(({ from, to }) => at < to && at + 512 > from)) continue
        throw new Error(`cut ${cuts}: what was flushed at ${at} is lost`)
      }
    }
    for (const entry of journal) {
      if (entry.kind === 'mark') {
        const { range, disk } = entry.mark
        touched = range ? [...touched, range] : []
        if (!range) flushed = disk
      } else if (entry.kind === 'sync') {
        for (const done of pending) apply(durable, done)
        pending = []
      } else {
        pending.push(entry)
        judge(pending)
        judge([entry])
        judge(pending.filter((_, i) => i % 2 === 0))
      }
    }
    t.ok(cuts > 100, `${cuts} cuts`)
  }
})

/** Writes and zeroes here and there, and flushes now and then. */
function journalOf(base: MemoryStore, model: Buffer): Journal<Mark> {
  const journal: Journal<Mark> = []
  const { disk } = openQcow(new RecordingStore(base.clone(), journal, 0))
  const begin = (from: number, length: number) =>
    journal.push({ kind: 'mark', mark: { range: { from, to: from + length }, disk: model } })
  for (let i = 0; i < 12; i++) {
    const offset = (i * 37_777) % (model.length - 5000)
    const bytes = noise(300 + i * 350, i)
    begin(offset, bytes.length)
    disk.write(bytes, 0, bytes.length, offset)
    bytes.copy(model, offset)
    if (i % 3 !== 2) continue
    begin(offset, 2000)
    disk.zero(offset, 2000)
    model.fill(0, offset, offset + 2000)
    disk.flush()
    journal.push({ kind: 'mark', mark: { disk: Buffer.from(model) } })
  }
  return journal
}

function apply(store: MemoryStore, entry: Journal<Mark>[number]): void {
  if (entry.kind === 'write') store.write(entry.bytes, 0, entry.bytes.length, entry.at)
  else if (entry.kind === 'punch') store.punch(entry.at, entry.length)
  else if (entry.kind === 'truncate' && entry.sizeBytes > store.sizeBytes)
    store.truncate(entry.sizeBytes)
}

const HONEST: QcowSpec = {
  sizeBytes: 8 * 64 * CLUSTER,
  l2Bits: 6,
  backingName: 'bas',
  clusters: new Map([
    [0, data(1)],
    [1, data(2)],
    [64, data(3)],
    [66, packed(4)],
  ]),
}
const built = buildQcow(HONEST)
const end = BigInt(built.bytes.length)

const damages: { title: string; at: number; value: bigint; words: RegExp }[] = [
  {
    title: 'a cluster over a table',
    at: built.entryAt(1),
    value: BigInt(built.tableAt(1)),
    words:
      /the entry of the cluster at 4096 of the disk names \d+, where another one, or a table, is/,
  },
  {
    title: 'a cluster over another one, in part',
    at: built.entryAt(1),
    value: BigInt(built.placeOf(0) + 512),
    words: /where another one, or a table, is/,
  },
  {
    title: 'a cluster over a compressed one',
    at: built.entryAt(66),
    value: (1n << 63n) | (600n << 51n) | BigInt(built.placeOf(64) + 100),
    words:
      /the entry of the cluster at 270336 of the disk names \d+, where another one, or a table, is/,
  },
  {
    title: 'a compressed cluster over the L1 table',
    at: built.entryAt(66),
    value: (1n << 63n) | (60n << 51n) | 50n,
    words: /where the backing file's name is/,
  },
  {
    title: 'a compressed cluster past the end of the file',
    at: built.entryAt(66),
    value: (1n << 63n) | (60n << 51n) | (end - 59n),
    words: /beyond the end of the file/,
  },
  {
    title: 'two tables in one place',
    at: built.l1EntryAt(3),
    value: BigInt(built.tableAt(0)),
    words: /the L1 entry 3 names an L2 table at \d+, where another one, or a table, is/,
  },
  {
    title: 'a cluster between sectors',
    at: built.entryAt(1),
    value: 1n,
    words: /which is no sector/,
  },
  {
    title: 'a table past the end of the file',
    at: built.l1EntryAt(3),
    value: ((end + 4095n) & ~4095n) + 4096n,
    words: /beyond the end of the file/,
  },
  {
    title: 'the backing file’s name over the header',
    at: HEADER_AT.backingOffset,
    value: 1n,
    words: /the backing file's name lies over the header/,
  },
]

for (const { title, at, value, words } of damages) {
  t.test(`not written: ${title}`, async t => {
    const bytes = Buffer.from(built.bytes)
    bytes.writeBigUInt64BE(value, at)
    const store = new MemoryStore('disk.qcow', bytes)
    const { disk } = openQcow(store, Buffer.alloc(0))
    try {
      disk.write(noise(100, 1), 0, 100, 5000)
      t.fail('written')
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      t.equal(error.code, 'CORRUPT')
      t.match(error.message, words)
      t.match(error.message, /; see vimgfs check$/)
    }
    t.not(disk.failure, '')
    t.ok(store.bytes().equals(bytes), 'not a byte has changed')
    t.ok(checkQcow(store).corruptions > 0)
  })
}

t.test('a table that was never written is made before something else is appended', async t => {
  const bytes = Buffer.from(built.bytes)
  bytes.writeBigUInt64BE((end + 4095n) & ~4095n, built.l1EntryAt(5))
  const store = new MemoryStore('disk.qcow', bytes)
  t.match(checkQcow(store).findings, [{ message: /never written/ }])
  const parent = noise(HONEST.sizeBytes, 8)
  const model = diskOfQcow(HONEST, parent)
  const open = openQcow(store, parent)
  for (const cluster of [200, 64 * 5 + 1, 3]) {
    open.disk.write(noise(100, cluster), 0, 100, cluster * CLUSTER)
    noise(100, cluster).copy(model, cluster * CLUSTER)
  }
  same(readDisk(open), model, 'open')
  open.disk.close()
  sound(store, 'closed')
  same(readAll(viewQcow(store, parent)), model, 'closed')
})

t.test('the part of a cluster past the end of the file stays as it was', async () => {
  for (const cryptMethod of [0, 1]) {
    const spec: QcowSpec = { sizeBytes: 64 * K, cryptMethod, clusters: new Map([[2, data(1)]]) }
    const { bytes, placeOf } = buildQcow(spec)
    const store = new MemoryStore('disk.qcow', bytes.subarray(0, placeOf(2) + 700))
    const model = readAll(viewQcow(store))
    const { disk } = openQcow(store)
    disk.write(noise(CLUSTER, 3), 0, CLUSTER, 8 * CLUSTER)
    noise(CLUSTER, 3).copy(model, 8 * CLUSTER)
    disk.close()
    same(readAll(viewQcow(store)), model, `method ${cryptMethod}`)
    sound(store, 'closed')
  }
})

t.test('an L1 table after clusters shares no slice with them', async () => {
  const { bytes, l1Offset } = built
  const at = bytes.length + 4096 - (bytes.length % 4096) + 512
  const moved = Buffer.alloc(at + 64)
  bytes.copy(moved)
  bytes.copy(moved, at, l1Offset, l1Offset + 64)
  moved.fill(0, l1Offset, l1Offset + 64)
  moved.writeBigUInt64BE(BigInt(at), HEADER_AT.l1Offset)
  // A cluster right in front of it.
  moved.writeBigUInt64BE(BigInt(at - CLUSTER), built.entryAt(5))
  const store = new MemoryStore('disk.qcow', moved)
  const model = readAll(viewQcow(store))
  const open = openQcow(store)
  for (const [i, cluster] of [5, 200, 5, 70, 5, 400].entries()) {
    open.disk.write(noise(CLUSTER, i), 0, CLUSTER, cluster * CLUSTER)
    noise(CLUSTER, i).copy(model, cluster * CLUSTER)
    if (i % 2 === 1) open.disk.flush()
  }
  open.disk.close()
  same(readAll(viewQcow(store)), model, 'closed')
  sound(store, 'closed')
})
