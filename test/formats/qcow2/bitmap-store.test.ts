import fc from 'fast-check'
import t from 'tap'
import { SystemError } from '../../../src/errors.js'
import { type BitmapMemory, loadBitmaps } from '../../../src/formats/qcow2/bitmap-memory.js'
import {
  type ClusterSpace,
  holdBitmaps,
  storeBitmaps,
} from '../../../src/formats/qcow2/bitmap-store.js'
import { BitmapTracker } from '../../../src/formats/qcow2/bitmap-tracker.js'
import { readHeader } from '../../../src/formats/qcow2/header.js'
import type { WritableStore } from '../../../src/io/store.js'
import { holds } from '../../support/property.js'
import {
  type Fault,
  FaultPlan,
  FaultStore,
  type Journal,
  MemoryStore,
  RecordingStore,
} from '../../support/stores.js'
import {
  AUTO,
  type BitmapImageSpec,
  type BitmapSpec,
  buildBitmapImage,
  type Found,
  findBitmaps,
  IN_USE,
} from './bitmap-image.js'

const M = 2 ** 20
const SECTOR = 512
const ENOSPC = 28
const EIO = 5

/** What the test knows at a moment: name → bits that are set, and the clusters that are counted. */
interface Truth {
  readonly bits: ReadonlyMap<string, ReadonlySet<number>>
  readonly counted: ReadonlySet<number>
}

/** A mount of an image, with all that it does to the file in a journal. */
class Mount implements ClusterSpace {
  readonly initial: Buffer
  readonly journal: Journal<Truth> = []
  readonly file: MemoryStore
  readonly memory: BitmapMemory
  readonly tracker: BitmapTracker
  truth: Truth
  sizeBytes: number
  /** What allocate throws. */
  failure: Error | undefined
  private store: WritableStore
  private readonly cluster: number
  private end: number

  constructor(spec: BitmapImageSpec, damage?: (bytes: Buffer) => void) {
    const { bytes } = buildBitmapImage(spec)
    damage?.(bytes)
    this.initial = bytes
    this.file = new MemoryStore('disk.qcow2', bytes)
    this.store = new RecordingStore(this.file, this.journal, 0)
    this.memory = loadBitmaps(this.store, readHeader(this.store), () => true)
    this.tracker = new BitmapTracker(this.memory)
    this.sizeBytes = spec.sizeBytes
    this.cluster = 2 ** spec.clusterBits
    this.end = bytes.length
    const found = findBitmaps(bytes) as Found
    const bits = new Map(found.bitmaps.map(bitmap => [bitmap.name, new Set(bitmap.bits)]))
    this.truth = { bits, counted: new Set(found.clusters) }
    this.know({})
  }

  /** From now on calls fail as `fault` says. */
  fail(fault: Pick<Fault, 'nth' | 'calls' | 'errno'>): FaultPlan {
    const plan = new FaultPlan({ ...fault, persists: false, part: 0.5 })
    this.store = new FaultStore(this.store, plan)
    return plan
  }

  hold(before: 'write' | 'resize' = 'write'): void {
    const clearFeature = () => this.store.write(Buffer.alloc(8), 0, 8, 88)
    holdBitmaps(this.store, this.memory, before, clearFeature)
  }

  write(offset: number, length: number): void {
    this.hold()
    this.tracker.mark(offset, length)
    const bits = new Map(this.truth.bits)
    for (const { name, granularityBits, flags } of this.memory.bitmaps) {
      if ((flags & AUTO) === 0 || length === 0) continue
      const set = new Set(bits.get(name))
      const last = Math.floor((offset + length - 1) / 2 ** granularityBits)
      for (let i = Math.floor(offset / 2 ** granularityBits); i <= last; i++) set.add(i)
      bits.set(name, set)
    }
    this.know({ bits })
  }

  grow(sizeBytes: number): void {
    this.hold('resize')
    const size = Buffer.alloc(8)
    size.writeBigUInt64BE(BigInt(sizeBytes))
    this.store.write(size, 0, 8, 24)
    this.store.sync()
    this.sizeBytes = sizeBytes
  }

  close(): string[] {
    return storeBitmaps(this.store, this.memory, this.sizeBytes, this)
  }

  allocate(clusters: number): number {
    if (this.failure) throw this.failure
    const at = this.end
    this.end += clusters * this.cluster
    const counted = new Set(this.truth.counted)
    for (let i = at; i < this.end; i += this.cluster) counted.add(i)
    this.know({ counted })
    return at
  }

  free(at: number, clusters: number): void {
    const counted = new Set(this.truth.counted)
    for (let i = 0; i < clusters; i++) {
      if (!counted.delete(at + i * this.cluster)) throw new Error(`${at} is free already`)
    }
    this.know({ counted })
  }

  found(): Found {
    return findBitmaps(this.file.bytes()) as Found
  }

  private know(news: Partial<Truth>): void {
    this.truth = { ...this.truth, ...news }
    this.journal.push({ kind: 'mark', mark: this.truth })
  }
}

/** Throws unless every bitmap of `file` is in use or true, and all that it names is counted. */
function check(file: Buffer, { bits, counted }: Truth, isClosed = false): void {
  const found = findBitmaps(file)
  if (found === 'void') throw new Error('the bitmaps are void')
  for (const place of found.clusters) {
    if (!counted.has(place)) throw new Error(`the cluster at ${place} is not counted`)
  }
  for (const bitmap of found.bitmaps) {
    if (bitmap.isInUse) continue
    const model = bits.get(bitmap.name)!
    if (model.size !== bitmap.bits.length || bitmap.bits.some(bit => !model.has(bit))) {
      throw new Error(`${bitmap.name}: ${bitmap.bits} for ${[...model]}`)
    }
  }
  if (isClosed && found.clusters.length !== counted.size) throw new Error('clusters have leaked')
}

/** Checks the file after every power cut that may come, for many of the subsets that it may keep. */
function checkCuts(mount: Mount, seed: number): number {
  let cuts = 0
  let durable = mount.initial
  let pending: { at: number; bytes: Buffer }[] = []
  let truth: Truth | undefined
  let state = seed >>> 0
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
  const cut = (keeps: (index: number) => boolean) => {
    cuts++
    if (truth)
      check(
        applied(
          durable,
          pending.filter((_, index) => keeps(index)),
        ),
        truth,
      )
  }
  for (const entry of mount.journal) {
    if (entry.kind === 'mark') truth = entry.mark
    else if (entry.kind === 'write') pending.push(...sectorsOf(entry.at, entry.bytes))
    else if (entry.kind === 'sync') {
      durable = applied(durable, pending)
      pending = []
    }
    if (pending.length <= 4) {
      for (let subset = 0; subset < 2 ** pending.length; subset++) {
        cut(index => ((subset >> index) & 1) === 1)
      }
    } else {
      cut(() => true)
      cut(index => index === pending.length - 1)
      for (let i = 0; i < 3; i++) {
        const share = random()
        cut(() => random() < share)
      }
    }
  }
  return cuts
}

function applied(file: Buffer, writes: readonly { at: number; bytes: Buffer }[]): Buffer {
  const end = writes.reduce((max, { at, bytes }) => Math.max(max, at + bytes.length), file.length)
  const after = Buffer.alloc(end)
  file.copy(after)
  for (const { at, bytes } of writes) bytes.copy(after, at)
  return after
}

function sectorsOf(at: number, bytes: Buffer): { at: number; bytes: Buffer }[] {
  const pieces: { at: number; bytes: Buffer }[] = []
  for (let done = 0; done < bytes.length; ) {
    const step = Math.min(bytes.length - done, SECTOR - ((at + done) % SECTOR))
    pieces.push({ at: at + done, bytes: bytes.subarray(done, done + step) })
    done += step
  }
  return pieces
}

/** With clusters of 512 bytes a chunk is 4096 bits: 2 MiB of the disk at a bit a sector. */
const SPEC: BitmapImageSpec = {
  clusterBits: 9,
  sizeBytes: 8 * M,
  maxSizeBytes: 256 * M,
  bitmaps: [
    { name: 'fine', flags: AUTO, granularityBits: 9, bits: [0, 16383] },
    { name: 'coarse', flags: AUTO, granularityBits: 16 },
    { name: 'disabled', flags: 0, granularityBits: 9, bits: [5, 16000] },
    { name: 'in use', flags: AUTO | IN_USE, granularityBits: 16, bits: [2] },
  ],
}
const stateOf = (mount: Mount) =>
  Object.fromEntries(
    mount.found().bitmaps.map(({ name, isInUse, bits }) => [name, isInUse ? 'in use' : bits]),
  )

t.test('nothing is written where nothing is', async t => {
  const mount = new Mount(SPEC)
  t.same(mount.close(), [])
  t.same(mount.file.bytes(), mount.initial)
})

t.test('bitmaps that record are in use from the first write to the end', async t => {
  const mount = new Mount(SPEC)
  mount.write(3 * M, 513)
  const during = { fine: 'in use', coarse: 'in use', disabled: [5, 16000], 'in use': 'in use' }
  t.same(stateOf(mount), during)
  const writes = mount.journal.length
  mount.hold()
  t.equal(mount.journal.length, writes, 'they are marked once')
  t.same(mount.close(), [])
  const after = { fine: [0, 6144, 6145, 16383], coarse: [48], disabled: [5, 16000] }
  t.same(stateOf(mount), { ...after, 'in use': 'in use' })
  t.ok(mount.found().bitmaps[0]!.isAuto)
  check(mount.file.bytes(), mount.truth, true)
  t.ok(checkCuts(mount, 1) > 30)
})

t.test('only changed parts are written', async t => {
  const mount = new Mount(SPEC)
  mount.write(0, 512)
  const before = mount.journal.length
  mount.close()
  const written = mount.journal.slice(before).flatMap(e => (e.kind === 'write' ? [e.bytes] : []))
  // The first sector was marked in `fine` before; `coarse` had no cluster, thus gets one.
  t.same(
    written.map(bytes => bytes.length),
    [512, 8, 8, 8],
  )
})

t.test('a disk that has grown', async t => {
  const cases = [
    { title: 'within a chunk', from: 7 * M + 5, to: 8 * M - 512 },
    { title: 'by chunks', from: 8 * M, to: 13 * M },
    { title: 'from half a byte of bits', from: 6 * M + 3 * 512, to: 6 * M + 8 * 512 },
    { title: 'so that tables move', from: 127 * M, to: 131 * M },
    { title: 'twice', from: 1 * M, to: 131 * M, between: 9 * M },
  ]
  for (const { title, from, to, between } of cases) {
    t.test(title, async t => {
      const last = Math.ceil(from / 512) - 1
      const mount = new Mount({
        ...SPEC,
        sizeBytes: from,
        bitmaps: [
          { name: 'auto', flags: AUTO, granularityBits: 9, bits: [0, last], hasTail: true },
          { name: 'disabled', flags: 0, granularityBits: 9, bits: [last], hasTail: true },
          { name: 'ones', flags: 0, granularityBits: 9, ones: [Math.ceil(from / (2 * M)) - 1] },
          { name: 'coarse', flags: AUTO, granularityBits: 20 },
          { name: 'in use', flags: IN_USE, granularityBits: 9 },
        ],
      })
      if (between !== undefined) mount.grow(between)
      mount.grow(to)
      for (const [name, state] of Object.entries(stateOf(mount))) t.equal(state, 'in use', name)
      mount.write(to - 512, 512)
      t.same(mount.close(), [])
      const bits = [...mount.truth.bits].map(([name, set]) => [
        name,
        [...set].sort((a, b) => a - b),
      ])
      t.same(stateOf(mount), { ...Object.fromEntries(bits), 'in use': 'in use' })
      check(mount.file.bytes(), mount.truth, true)
      t.ok(checkCuts(mount, 1) > 30)
    })
  }
})

t.test('a disk that has grown beyond the room for its bits', async t => {
  const mount = new Mount({
    ...SPEC,
    bitmaps: [...SPEC.bitmaps, { name: 'wide', flags: AUTO, granularityBits: 24 }],
  })
  // 2^44 bytes are 2^35 sectors: 4 GiB of bits.
  mount.grow(2 ** 44)
  mount.write(2 ** 44 - 1, 1)
  t.match(mount.close(), [/"fine" becomes inconsistent.*grown/, /"coarse"/, /"disabled"/])
  const { bitmaps } = mount.found()
  t.same(
    bitmaps.map(({ isInUse }) => isInUse),
    [true, true, true, true, false],
  )
  t.same(bitmaps[4]!.bits, [2 ** 20 - 1])
})

t.test('a bitmap that cannot be kept stays in use, and the rest is kept', async t => {
  const cases = [
    {
      title: 'no clusters are left',
      fail: (mount: Mount) => {
        mount.failure = new SystemError('write', ENOSPC, 'disk.qcow2')
      },
      warning: /^bitmap "coarse" becomes inconsistent.*no space is left/,
    },
    {
      title: 'a cluster of bits cannot be written',
      fail: (mount: Mount) => {
        mount.fail({ nth: 0, calls: ['write'], errno: ENOSPC })
      },
      warning: /^bitmap "coarse" becomes inconsistent.*no space is left/,
    },
  ]
  for (const { title, fail, warning } of cases) {
    t.test(title, async t => {
      const mount = new Mount(SPEC)
      mount.write(0, 512)
      fail(mount)
      t.match(mount.close(), [warning])
      t.same(stateOf(mount), {
        fine: [0, 16383],
        coarse: 'in use',
        disabled: [5, 16000],
        'in use': 'in use',
      })
      check(mount.file.bytes(), mount.truth, true)
    })
  }
})

t.test('after any call that fails, a bitmap is in use or true', async t => {
  const growing = { ...SPEC, sizeBytes: 127 * M, bitmaps: SPEC.bitmaps.slice(0, 3) }
  let failures = 0
  for (let nth = 0; ; nth++) {
    const mount = new Mount(growing)
    const plan = mount.fail({ nth, calls: ['write', 'sync'], errno: EIO })
    try {
      mount.write(5 * M, 1000)
      mount.grow(131 * M)
      mount.write(129 * M, 512)
      mount.close()
    } catch (error) {
      if (!(error instanceof SystemError)) throw error
    }
    check(mount.file.bytes(), mount.truth)
    checkCuts(mount, nth)
    if (plan.failed.length === 0) break
    failures++
  }
  t.ok(failures > 15, `${failures} calls`)
})

t.test('marking that failed is done again', async t => {
  const mount = new Mount(SPEC)
  mount.fail({ nth: 0, calls: ['sync'], errno: EIO })
  t.throws(() => mount.write(0, 512), { code: 'EIO' })
  mount.write(M, 512)
  t.same(mount.close(), [])
  t.same(stateOf(mount).fine, [0, 2048, 16383])
  checkCuts(mount, 1)
})

t.test('a bitmap that is damaged is marked as in use for good', async t => {
  const [fine, coarse] = SPEC.bitmaps as [BitmapSpec, BitmapSpec]
  const mount = new Mount({ ...SPEC, bitmaps: [fine, { ...coarse, extra: Buffer.from('extra') }] })
  mount.write(M, 512)
  t.match(mount.close(), [/"coarse" becomes inconsistent/])
  t.same(stateOf(mount), { fine: [0, 2048, 16383], coarse: 'in use' })
})

t.test('where nothing can be said of the bitmaps, all are void before the first write', async t => {
  const { bytes, entryAt } = buildBitmapImage(SPEC)
  bytes.writeUInt8(2, entryAt[0]! + 16)
  const journal: Journal<never> = []
  const file = new MemoryStore('disk.qcow2', bytes)
  const store = new RecordingStore(file, journal, 0)
  const memory = loadBitmaps(store, readHeader(store), () => true)
  const clearFeature = () => store.write(Buffer.alloc(8), 0, 8, 88)
  holdBitmaps(store, memory, 'write', clearFeature)
  t.equal(findBitmaps(file.bytes()), 'void')
  t.same(
    journal.map(({ kind }) => kind),
    ['write', 'sync'],
  )
  holdBitmaps(store, memory, 'resize', clearFeature)
  t.equal(journal.length, 2)
  const space = { allocate: () => t.fail('nothing to store'), free: () => {} } as never
  t.same(storeBitmaps(store, memory, SPEC.sizeBytes, space), [])
  t.equal(journal.length, 2)
})

const SIZE = fc.integer({ min: 1, max: 6 * M })
const BITS = fc.array(fc.nat(2 ** 30), { maxLength: 6 })
const aBitmap = fc.record({
  granularityBits: fc.constantFrom(9, 10, 13, 16, 31),
  flags: fc.constantFrom(AUTO, AUTO, 0, IN_USE, AUTO | IN_USE),
  bits: BITS,
  allocated: fc.array(fc.nat(3)),
  hasTail: fc.boolean(),
})
const aStep = fc.oneof(
  { weight: 4, arbitrary: fc.record({ offset: fc.nat(2 ** 30), length: fc.nat(3 * M) }) },
  { weight: 1, arbitrary: fc.record({ growBy: fc.integer({ min: 1, max: 6 * M }) }) },
)
const aMount = fc.record({
  sizeBytes: SIZE,
  bitmaps: fc.array(aBitmap, { minLength: 1, maxLength: 4 }),
  steps: fc.array(aStep, { maxLength: 5 }),
  isFull: fc.boolean(),
  seed: fc.nat(),
})

t.test('any bitmaps and writes, through a power cut at any time', async t => {
  const runs = await holds(aMount, 400, ({ sizeBytes, bitmaps, steps, isFull, seed }) => {
    const mount = new Mount({
      clusterBits: 9,
      sizeBytes,
      maxSizeBytes: 64 * M,
      bitmaps: bitmaps.map((bitmap, index) => {
        const count = Math.ceil(sizeBytes / 2 ** bitmap.granularityBits)
        return { ...bitmap, name: `bitmap ${index}`, bits: bitmap.bits.map(bit => bit % count) }
      }),
    })
    for (const step of steps) {
      if ('growBy' in step) mount.grow(mount.sizeBytes + step.growBy)
      else {
        const offset = step.offset % mount.sizeBytes
        mount.write(offset, Math.min(step.length, mount.sizeBytes - offset))
      }
    }
    if (isFull) mount.failure = new SystemError('write', ENOSPC, 'disk.qcow2')
    const warnings = mount.close()
    check(mount.file.bytes(), mount.truth, true)
    const lost = mount.found().bitmaps.filter(({ isInUse }) => isInUse).length
    const wasInUse = bitmaps.filter(({ flags }) => flags & IN_USE).length
    if (lost - wasInUse !== warnings.length || (!isFull && warnings.length > 0)) {
      throw new Error(`${lost} are in use, ${wasInUse} were: ${warnings}`)
    }
    checkCuts(mount, seed)
  })
  t.ok(runs >= 20, `${runs} runs`)
})
