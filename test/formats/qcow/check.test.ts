/** What a check finds, what a repair changes, and that both bound their memory. */
import fc from 'fast-check'
import t from 'tap'
import { ImageError } from '../../../src/errors.js'
import { MAX_FINDINGS } from '../../../src/formats/check/report.js'
import { checkQcow } from '../../../src/formats/qcow/check.js'
import { repairQcow } from '../../../src/formats/qcow/repair.js'
import { noise, prose } from '../../fixtures/model.js'
import {
  type BuiltQcow,
  buildQcow,
  type Cluster,
  diskOfQcow,
  type QcowSpec,
} from '../../fixtures/qcow-builder.js'
import { readAll } from '../../support/image.js'
import { holds } from '../../support/property.js'
import { MemoryStore } from '../../support/stores.js'
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
const storeOf = (bytes: Buffer) => new MemoryStore('disk.qcow', bytes)

const HONEST: QcowSpec = {
  sizeBytes: 8 * 64 * CLUSTER - 1000,
  l2Bits: 6,
  clusters: new Map([
    [0, data(1)],
    [1, data(2)],
    [64, data(3)],
    [66, packed(4)],
    [67, packed(5)],
    [70, data(6)],
  ]),
}

function changed({ bytes }: BuiltQcow, at: number, value: bigint): Buffer {
  const copy = Buffer.from(bytes)
  copy.writeBigUInt64BE(value, at)
  return copy
}

t.test('an image that is sound', async t => {
  const { bytes, placeOf } = buildQcow(HONEST)
  t.match(checkQcow(storeOf(bytes)), {
    corruptions: 0,
    leaks: 0,
    checkErrors: 0,
    totalClusters: 512,
    allocatedClusters: 6,
    // After a table, after compressed clusters, and these.
    fragmentedClusters: 4,
    compressedClusters: 2,
    imageEndOffset: placeOf(70) + CLUSTER,
    findings: [],
  })
})

t.test('an empty one', async t => {
  t.match(checkQcow(storeOf(buildQcow({ sizeBytes: 3000 * K }).bytes)), {
    corruptions: 0,
    leaks: 0,
    totalClusters: 750,
    allocatedClusters: 0,
    imageEndOffset: 48 + 2 * 8,
  })
})

t.test('QEMU writes L1 tables in whole sectors, wherever they begin', async t => {
  const spec = { sizeBytes: 1000 * 64 * 512, clusterBits: 9, l2Bits: 6, backingName: 'base' }
  t.match(
    checkQcow(storeOf(buildQcow({ ...spec, clusters: new Map([[0, data(1, 512)]]) }).bytes)),
    {
      corruptions: 0,
      leaks: 0,
    },
  )
})

t.test('nor is what they take of a cluster space that nothing uses', async t => {
  const sizeBytes = 500 * 64 * CLUSTER
  const store = storeOf(
    buildQcow({ sizeBytes, l2Bits: 6, clusters: new Map([[0, data(1)]]) }).bytes,
  )
  // The table ends before the second cluster of the file, and its last sector in it.
  store.write(noise(8, 1), 0, 8, CLUSTER + 8)
  t.equal(checkQcow(store).leaks, 0)
  store.write(noise(8, 1), 0, 8, CLUSTER + 512)
  t.equal(checkQcow(store).leaks, 0)
})

const WINDOW_BYTES = 4
/** Of the file, that a map of so many bytes has in a window. */
const WINDOW_SPAN = WINDOW_BYTES * 8 * 512

t.test('clusters that lie over each other, wherever windows end', async t => {
  const base = 20 * WINDOW_SPAN
  const cases = [
    { title: 'in one place', places: [base, base] },
    { title: 'in part', places: [base + 512, base + CLUSTER] },
    { title: 'over a border', places: [base - 2048, base - 2048] },
    { title: 'over a border, in part', places: [base - 2048, base + 1536] },
    { title: 'over a border, the later one', places: [base + 1536, base - 2048] },
    { title: 'before a border', places: [base - 2048, base - 5632] },
    { title: 'apart', places: [base - 2048, base + 2048], expected: 0 },
  ]
  for (const { title, places, expected = 1 } of cases) {
    const clusters = new Map<number, Cluster>([[0, data(1)]])
    places.forEach((place, i) => {
      clusters.set(5 + i, { kind: 'entry', entry: BigInt(place) })
    })
    const store = storeOf(buildQcow({ sizeBytes: 64 * CLUSTER, clusters }).bytes)
    store.truncate(base + 3 * CLUSTER)
    for (const windowBytes of [WINDOW_BYTES, 2 * WINDOW_BYTES, 4096]) {
      const found = checkQcow(store, { windowBytes })
      t.equal(found.corruptions, expected, `${title}, maps of ${windowBytes} bytes`)
      t.equal(found.leaks, 0)
    }
  }
})

t.test('a damaged table that lies over a cluster, wherever windows end', async t => {
  const spec = { sizeBytes: 512 * CLUSTER, l2Bits: 7, alignment: 512 }
  const clusters = new Map([0, 1, 2].map(i => [i, data(i)] as const))
  const { bytes, l1EntryAt, tableAt } = buildQcow({ ...spec, clusters })
  // All else is aligned to the size of a table.
  bytes.writeBigUInt64BE(BigInt(tableAt(0) + 512), l1EntryAt(1))
  const found = checkQcow(storeOf(bytes))
  t.equal(found.corruptions, 2)
  for (const windowBytes of [WINDOW_BYTES, 2 * WINDOW_BYTES]) {
    t.strictSame(checkQcow(storeOf(bytes), { windowBytes }).findings, found.findings)
  }
})

t.test('an encrypted cluster that the end of the file cuts off', async t => {
  for (const [alignment, gapSectors, corruptions] of [
    [CLUSTER, 1, 0],
    [512, 1, 0],
    // Here more is missing than up to the next multiple of a cluster.
    [512, 7, 1],
  ] as const) {
    const clusters = new Map([[0, data(1)]])
    const spec = { sizeBytes: 64 * K, cryptMethod: 1, alignment, clusters, gapSectors }
    const store = storeOf(buildQcow(spec).bytes.subarray(0, -1000))
    t.equal(checkQcow(store).corruptions, corruptions, `aligned to ${alignment}`)
    t.equal(readable(store) === undefined, corruptions === 1, 'read')
  }
})

const HOLES = { before: CLUSTER * 16 }

/** A good image with space that nothing uses within it and after it. */
function leaky(): { store: MemoryStore; model: Buffer } {
  const spec: QcowSpec = {
    sizeBytes: 64 * CLUSTER,
    clusters: new Map([0, 1, 2, 3, 4, 5].map(i => [i, data(i)])),
  }
  const built = buildQcow(spec)
  const store = storeOf(built.bytes)
  const none = Buffer.alloc(8)
  for (const lost of [1, 2, 5]) store.write(none, 0, 8, built.entryAt(lost))
  const model = diskOfQcow(spec)
  for (const lost of [1, 2, 5]) model.fill(0, lost * CLUSTER, (lost + 1) * CLUSTER)
  store.truncate(store.sizeBytes + HOLES.before)
  return { store, model }
}

t.test('space that nothing uses', async t => {
  const { store, model } = leaky()
  const found = checkQcow(store)
  t.match(found, {
    corruptions: 0,
    leaks: 3,
    findings: [
      { kind: 'leak', message: 'nothing uses 8192 bytes' },
      { kind: 'leak', message: `nothing uses ${CLUSTER + HOLES.before} bytes` },
    ],
  })
  t.equal(checkQcow(store, { isDevice: true }).leaks, 0, 'of a device nothing can be given back')
  const { allocatedBytes } = store
  const { before, after, changes } = repairQcow(store, 'leaks')
  t.same([before.leaks, after.leaks], [3, 0])
  t.match(changes, [
    { kind: 'fix', message: '8192 bytes that nothing uses are a hole' },
    { kind: 'fix', message: `${CLUSTER + HOLES.before} bytes that nothing uses are cut off` },
  ])
  t.equal(allocatedBytes - store.allocatedBytes, 3 * CLUSTER)
  t.equal(store.sizeBytes, after.imageEndOffset)
  t.ok(readAll(viewQcow(store)).equals(model))
  t.same(repairQcow(store, 'all').changes, [])
})

const KEPT = [{ kind: 'error', message: /space is kept: .*a lost table reads as zeros/ }]

t.test('what an L1 table of zeros may have named is kept', async t => {
  for (const what of ['leaks', 'all'] as const) {
    const built = buildQcow(HONEST)
    const bytes = Buffer.from(built.bytes)
    bytes.fill(0, built.l1EntryAt(0), built.l1EntryAt(8))
    const store = storeOf(bytes)
    const { after, changes } = repairQcow(store, what)
    t.match(changes, KEPT)
    t.ok(after.leaks > 0)
    t.ok(store.bytes().equals(bytes), `${what}: not a byte has changed`)
  }
})

t.test('what an L2 table of zeros may have named is kept, but not what a crash leaves', async t => {
  const count = 64
  const all = Array.from({ length: count }, (_, i): [number, Cluster] => [64 + i, data(i)])
  const clusters = new Map<number, Cluster>([
    [0, data(99)],
    ...all,
    [128, data(98)],
    [129, data(97)],
  ])
  const built = buildQcow({ ...HONEST, clusters })
  const zeroed = () => {
    const bytes = Buffer.from(built.bytes)
    bytes.fill(0, built.tableAt(1), built.tableAt(1) + 64 * 8)
    return bytes
  }
  const lost = Buffer.concat([zeroed(), noise(CLUSTER, 5)])
  const store = storeOf(Buffer.from(lost))
  t.match(repairQcow(store, 'all').changes, KEPT)
  t.ok(store.bytes().equals(lost), 'not a byte has changed')
  const crashed = storeOf(zeroed())
  const { before, after } = repairQcow(crashed, 'all')
  t.same([before.leaks, after.leaks], [count, 0], 'no more than a crash leaves')
})

t.test('space stays where the file system makes no holes', async t => {
  const { store } = leaky()
  store.punch = () => false
  const { after, changes } = repairQcow(store, 'leaks')
  t.equal(after.leaks, 2)
  t.match(changes, [{ kind: 'error', message: /the file system makes no holes/ }, { kind: 'fix' }])
})

t.test('a table that was never written', async t => {
  const { store, model } = leaky()
  const entry = Buffer.alloc(8)
  entry.writeBigUInt64BE(BigInt(store.sizeBytes))
  const built = buildQcow({ ...HONEST, clusters: new Map() })
  const other = storeOf(changed(built, built.l1EntryAt(3), BigInt(CLUSTER)))
  t.match(checkQcow(other), {
    corruptions: 1,
    findings: [
      {
        kind: 'corruption',
        at: built.l1EntryAt(3),
        message: 'the L1 entry 3 names a table at the end of the file, which was never written',
      },
    ],
  })
  t.match(repairQcow(other, 'leaks'), { changes: [], after: { corruptions: 1 } })
  const { after, changes } = repairQcow(other, 'all')
  t.match(changes, [{ kind: 'fix', message: 'the L1 entry names no table any more' }])
  t.equal(after.corruptions, 0)
  t.ok(readAll(viewQcow(other)).equals(Buffer.alloc(HONEST.sizeBytes)))
  t.ok(readAll(viewQcow(store)).equals(model))
})

t.test('where something is damaged nothing is given back', async t => {
  for (const what of ['leaks', 'all'] as const) {
    const { store } = leaky()
    const entry = Buffer.alloc(8)
    entry.writeBigUInt64BE(0x1234n)
    // The entry of cluster 9 of the only table, which is right after the header's cluster.
    store.write(entry, 0, 8, CLUSTER + 9 * 8)
    const bytes = store.bytes()
    const { before, after, changes } = repairQcow(store, what)
    t.match(before, { corruptions: 1, leaks: 3 })
    t.equal(after, before)
    t.match(changes, [{ kind: 'error', message: /nothing of it is changed/ }])
    t.ok(store.bytes().equals(bytes))
  }
})

t.test('thousands of corruptions are counted, and some of them listed', async t => {
  const entry = { kind: 'entry' as const, entry: 0x1001n }
  const clusters = new Map(Array.from({ length: 5000 }, (_, i) => [i, entry] as const))
  const found = checkQcow(storeOf(buildQcow({ sizeBytes: 5000 * CLUSTER, clusters }).bytes))
  t.equal(found.corruptions, 5000)
  t.equal(found.findings.length, MAX_FINDINGS)
  t.equal(found.findingsLeftOut, 5000 - MAX_FINDINGS)
})

t.test('the tables that an L1 table names again and again are walked once', async t => {
  const sizeBytes = 100_000 * 8192 * 64 * K
  const clusters = new Map([[0, data(1, 64 * K)]])
  const built = buildQcow({ sizeBytes: 64 * K, clusterBits: 16, l2Bits: 13, clusters })
  const store = new MemoryStore('disk.qcow', built.bytes)
  const l1 = Buffer.alloc(100_000 * 8)
  for (let i = 0; i < 100_000; i++) l1.writeBigUInt64BE(BigInt(built.tableAt(0)), i * 8)
  const at = store.sizeBytes
  store.write(l1, 0, l1.length, at)
  const header = Buffer.alloc(8)
  header.writeBigUInt64BE(BigInt(sizeBytes))
  store.write(header, 0, 8, 24)
  header.writeBigUInt64BE(BigInt(at))
  store.write(header, 0, 8, 40)
  let reads = 0
  const { read } = store
  store.read = (...args) => {
    reads++
    return read.apply(store, args)
  }
  t.equal(checkQcow(store).corruptions, 99_999)
  t.ok(reads < 100, `${reads} reads`)
})

/** A file that is said to be as large as a file can be, and is almost all holes. */
class SparseStore extends MemoryStore {
  constructor(
    private readonly front: MemoryStore,
    private readonly bytesSaid: number,
  ) {
    super('disk.qcow')
  }
  override get sizeBytes(): number {
    return this.bytesSaid
  }
  override read(target: Buffer, start: number, length: number, at: number): number {
    const got = Math.max(0, Math.min(length, this.sizeBytes - at))
    target.fill(0, start, start + got)
    this.front.read(target, start, got, at)
    return got
  }
  override nextData(at: number): number {
    return this.front.nextData(at)
  }
  override nextHole(at: number): number {
    return this.front.nextHole(at)
  }
}

t.test('a file of a PiB that is nothing but holes', async t => {
  const sizeBytes = 2 ** 50
  const entryOf = (place: number) => ({ kind: 'entry' as const, entry: BigInt(place) })
  const clusters = (count: number) =>
    new Map(Array.from({ length: count }, (_, i) => [i, entryOf((i + 1) * 2 ** 40)] as const))
  const sparse = (count: number) => {
    const { bytes } = buildQcow({ sizeBytes: 512 * CLUSTER, clusters: clusters(count) })
    return new SparseStore(storeOf(bytes), sizeBytes)
  }
  t.match(checkQcow(sparse(20)), { corruptions: 0, leaks: 0, allocatedClusters: 20 })
  t.throws(() => checkQcow(sparse(200)), {
    code: 'UNSUPPORTED',
    message: /its tables name more than 128 parts of a file of \d+ bytes/,
  })
})

const mutation = fc.record({
  /** Which entry: of the L1 table, or of a table. */
  level: fc.constantFrom(1, 2, 2, 2),
  entry: fc.nat(200),
  to: fc.oneof(
    fc.record({ kind: fc.constantFrom('sector', 'byte', 'entry'), at: fc.nat(1000) }),
    fc.record({ kind: fc.constantFrom('packed', 'end', 'wild'), at: fc.nat(1000) }),
  ),
})
const hostile = fc.record({
  clusterBits: fc.constantFrom(9, 10, 12),
  l2Bits: fc.constantFrom(6, 7),
  kinds: fc.array(fc.constantFrom(0, 1, 1, 2), { minLength: 1, maxLength: 150 }),
  alignment: fc.constantFrom(512, undefined),
  mutations: fc.array(mutation, { maxLength: 4 }),
  cut: fc.constantFrom(0, 0, 0, 1, 513, 5000),
})
type Hostile = typeof hostile extends fc.Arbitrary<infer T> ? T : never

/** An image, some of its entries changed. */
function hostileImage({ clusterBits, l2Bits, kinds, alignment, mutations, cut }: Hostile): Buffer {
  const cluster = 2 ** clusterBits
  const clusters = new Map<number, Cluster>()
  kinds.forEach((kind, i) => {
    if (kind > 0) clusters.set(i, kind === 1 ? data(i, cluster) : packed(i, cluster))
  })
  const sizeBytes = 4 * 2 ** (clusterBits + l2Bits)
  const spec = { sizeBytes, clusterBits, l2Bits, clusters, ...(alignment && { alignment }) }
  const { bytes, l1Offset, l1EntryAt, tableAt, entryAt } = buildQcow(spec)
  for (const { level, entry, to } of mutations) {
    if (level === 2 && tableAt(entry >> l2Bits) === 0) continue
    const place = level === 1 ? l1EntryAt(entry % 4) : entryAt(entry)
    bytes.writeBigUInt64BE(valueOf(to, bytes.length, cluster), place)
  }
  return bytes.subarray(0, Math.max(l1Offset + 4 * 8, bytes.length - cut))
}

function valueOf(
  { kind, at }: { kind: string; at: number },
  size: number,
  cluster: number,
): bigint {
  const byte = BigInt(Math.floor((at / 1001) * size))
  if (kind === 'byte') return byte
  if (kind === 'end') return BigInt(Math.ceil(size / cluster) * cluster)
  if (kind === 'wild') return (BigInt(at) << 54n) | 512n
  if (kind === 'packed') {
    return (
      (1n << 63n) | (BigInt(1 + (at % (cluster - 1))) << BigInt(63 - Math.log2(cluster))) | byte
    )
  }
  return byte & ~511n
}

/** Finds overlaps in the simplest way: by the owner of each byte of the file. */
function isDamaged(bytes: Buffer): boolean {
  const word = (at: number) => bytes.readBigUInt64BE(at)
  const clusterBits = bytes.readUInt8(32)
  const cluster = 2 ** clusterBits
  const tableBytes = 8 * 2 ** bytes.readUInt8(33)
  const l1 = Number(word(40))
  const entries = Math.ceil(Number(word(24)) / (cluster * (tableBytes / 8)))
  const end = Math.ceil(bytes.length / cluster) * cluster
  const owned = new Uint8Array(end + 65536)
  let damaged = false
  const claim = (at: number, length: number, mark: number) => {
    for (let i = at; i < at + length; i++) {
      if (owned[i] === 1 || (owned[i] === 2 && mark === 1)) damaged = true
      owned[i] = mark
    }
  }
  claim(0, 48, 1)
  claim(l1, entries * 8, 1)
  const tables: number[] = []
  for (let i = 0; i < entries; i++) {
    const table = word(l1 + i * 8)
    if (table === 0n) continue
    if (table === BigInt(end)) {
      claim(end, tableBytes, 1)
      continue
    }
    if (table % 512n !== 0n || table + BigInt(tableBytes) > BigInt(bytes.length)) return true
    claim(Number(table), tableBytes, 1)
    tables.push(Number(table))
  }
  if (damaged) return true
  for (const table of tables) {
    for (let at = table; at < table + tableBytes; at += 8) {
      const entry = word(at)
      if (entry === 0n) continue
      if (entry >> 63n) {
        const place = entry & ((1n << BigInt(63 - clusterBits)) - 1n)
        const length = (entry >> BigInt(63 - clusterBits)) & BigInt(cluster - 1)
        if (length === 0n || place + length > BigInt(bytes.length)) return true
        // It may share a sector with others of its kind, not with a table or a cluster.
        claim(Number(place), Number(length), 2)
      } else {
        if (entry % 512n !== 0n || entry >= BigInt(bytes.length)) return true
        claim(Number(entry), cluster, 1)
      }
    }
  }
  return damaged
}

t.test('any image: a sound one can be read and written, a broken one stays as it is', async t => {
  let sound = 0
  let damaged = 0
  await holds(hostile, 400, spec => {
    const bytes = hostileImage(spec)
    const store = storeOf(bytes)
    const found = checkQcow(store)
    const isUnwritten = found.findings.some(({ message }) => message.includes('never written'))
    const others = found.corruptions - Number(isUnwritten)
    const expected = isDamaged(bytes)
    // Sectors, not bytes, tell what compressed clusters lie over.
    if (expected !== others > 0) throw new Error(`${others} corruptions; ${expected}`)
    for (const windowBytes of [4, 64]) {
      const inWindows = checkQcow(store, { windowBytes })
      for (const key of ['leaks', 'imageEndOffset', 'fragmentedClusters'] as const) {
        if (inWindows[key] !== found[key]) {
          throw new Error(`${key}: ${found[key]}, and ${inWindows[key]} in windows`)
        }
      }
      const more = inWindows.corruptions - found.corruptions
      // Compressed clusters over a border may be blamed on either side of it.
      if (more < 0 || (more > 0 && found.compressedClusters === 0)) {
        throw new Error(`${found.corruptions} corruptions, and ${more} more in windows`)
      }
    }
    const disk = readable(store)
    const { disk: written } = openQcow(store)
    const at = Math.floor(written.sizeBytes / 3)
    const content = noise(3000, 5)
    if (others > 0) {
      damaged++
      if (!isRefused(() => written.write(content, 0, content.length, at)))
        throw new Error('written')
      if (!store.bytes().equals(bytes)) throw new Error('something of it was changed')
      return
    }
    // A compressed cluster may be nonsense all the same.
    if (!disk) return
    sound++
    written.write(content, 0, content.length, at)
    content.copy(disk, at)
    written.close()
    if (!readAll(viewQcow(store)).equals(disk)) throw new Error('something else was changed')
    if (checkQcow(store).corruptions > 0) throw new Error('it has been damaged')
    repairQcow(store, 'all')
    if (!readAll(viewQcow(store)).equals(disk)) throw new Error('the repair has changed something')
    if (checkQcow(store).leaks > 0) throw new Error('leaks are left')
  })
  t.ok(sound > 30 && damaged > 30, `${sound} sound, ${damaged} damaged`)
})

/** The disk, where all of it can be read. */
function readable(store: MemoryStore): Buffer | undefined {
  try {
    return readAll(viewQcow(store))
  } catch (error) {
    if (error instanceof ImageError) return undefined
    throw error
  }
}

function isRefused(act: () => void): boolean {
  try {
    act()
    return false
  } catch (error) {
    if (error instanceof ImageError && error.code === 'CORRUPT') return true
    throw error
  }
}
