/** Copying disks between models, in every combination of what sources and targets can be. */
import assert from 'node:assert/strict'
import { deflateRawSync, inflateRawSync } from 'node:zlib'
import fc from 'fast-check'
import t from 'tap'
import { ImageError } from '../../../src/errors.js'
import type { Extent, View } from '../../../src/formats/driver.js'
import { copyDisk } from '../../../src/image/convert/copy-disk.js'
import type { ConvertedDisk } from '../../../src/image/convert/piece-cursor.js'
import type { Sink } from '../../../src/image/convert/sink.js'
import { readView } from '../../../src/image/reading/engine.js'
import { FileRuns } from '../../../src/image/reading/file-runs.js'
import { readSalvaging } from '../../../src/image/reading/salvage.js'
import { walkLayers } from '../../../src/image/reading/walk-layers.js'
import type { Store } from '../../../src/io/store.js'
import { noise } from '../../fixtures/model.js'
import { holds } from '../../support/property.js'
import { MemoryStore } from '../../support/stores.js'

const BLOCK = 4096

/** The kind of a block of a made-up disk. */
type Block = 'hole' | 'zero' | 'zeros' | 'data' | 'packed' | 'bad-table' | 'bad-data'

interface Disk {
  readonly blocks: readonly Block[]
  /** How many bytes the last block lacks. */
  readonly missing: number
  readonly seed: number
}

/** A disk with its content; what cannot be read is zeros there. */
function made({ blocks, missing, seed }: Disk): { disk: ConvertedDisk; content: Buffer } {
  const sizeBytes = Math.max(0, blocks.length * BLOCK - missing)
  const content = Buffer.alloc(blocks.length * BLOCK)
  blocks.forEach((block, i) => {
    if (block === 'data' || block === 'packed') noise(BLOCK, seed + i).copy(content, i * BLOCK)
    // Zeros but for one byte.
    if (block === 'data' && i % 3 === 0) content.fill(0, i * BLOCK, (i + 1) * BLOCK - 700)
  })
  const file = new MemoryStore('source', content)
  const bad: Store = Object.assign(Object.create(file), {
    read: () => {
      throw new ImageError('CORRUPT', 'a bad block')
    },
  })
  const lookup = (offset: number, length: number): Extent => {
    const index = Math.floor(offset / BLOCK)
    const block = blocks[index] as Block
    const bytes = Math.min(length, (index + 1) * BLOCK - offset)
    if (block === 'bad-table') throw new ImageError('CORRUPT', 'a bad table', { offset })
    if (block === 'hole') return { kind: 'parent', length: bytes }
    if (block === 'zero') return { kind: 'zero', length: bytes }
    if (block === 'packed') {
      const whole = () => Buffer.from(content.subarray(index * BLOCK, (index + 1) * BLOCK))
      const skip = offset % BLOCK
      const job = { format: 'qcow2', storeId: 0, numbers: [] }
      const unpackInto = (target: Buffer) => void whole().copy(target)
      return {
        kind: 'packed',
        length: bytes,
        skip,
        wholeBytes: BLOCK,
        job,
        unpack: whole,
        unpackInto,
      }
    }
    const store = block === 'bad-data' ? bad : file
    return { kind: 'data', length: bytes, store, at: offset }
  }
  const view: View = { driver: { sizeBytes, unitBytes: BLOCK, lookup }, parent: undefined }
  const runs = new FileRuns(file)
  const disk: ConvertedDisk = {
    view,
    sizeBytes,
    walk: (offset = 0, length = sizeBytes - offset, onLoss) =>
      walkLayers(view, offset, length, onLoss),
    runsOf: () => runs,
    placeOf: () => undefined,
    read: (target, start, length, offset) => readView(view, target, start, length, offset),
    salvage: (target, start, length, offset, onLoss) =>
      readSalvaging(view, target, start, length, offset, onLoss),
  }
  return { disk, content: content.subarray(0, sizeBytes) }
}

/** A target in memory, which checks what it is asked for. */
class ModelSink implements Sink {
  readonly content: Buffer
  /** The bytes that it was told of. */
  readonly told: Buffer
  private reached = 0
  packs = 0

  constructor(
    before: Buffer,
    readonly unitBytes: number,
    readonly storesZeros: boolean,
    readonly packing: Sink['packing'],
  ) {
    this.content = Buffer.from(before)
    this.told = Buffer.alloc(before.length)
  }

  write(bytes: Buffer, offset: number): void {
    this.take(offset, bytes.length)
    bytes.copy(this.content, offset)
  }

  pack(packed: Buffer, offset: number): void {
    const unit = inflateRawSync(packed)
    assert.equal(unit.length, this.unitBytes)
    const bytes = Math.min(unit.length, this.content.length - offset)
    assert.ok(
      unit.subarray(bytes).every(byte => byte === 0),
      'the last unit is padded with zeros',
    )
    this.take(offset, bytes)
    unit.copy(this.content, offset)
    this.packs++
  }

  zero(offset: number, length: number): void {
    this.take(offset, length)
    this.content.fill(0, offset, offset + length)
  }

  private take(offset: number, length: number): void {
    assert.ok(offset >= this.reached && length > 0, 'in ascending order')
    assert.equal(offset % this.unitBytes, 0, 'from the start of a unit')
    this.reached = offset + length
    assert.ok(this.reached % this.unitBytes === 0 || this.reached === this.content.length)
    this.told.fill(1, offset, this.reached)
  }
}

const KINDS: Block[] = ['hole', 'zero', 'zeros', 'data', 'packed']
const disks = (kinds: readonly Block[]): fc.Arbitrary<Disk> =>
  fc.record({
    // Runs, so that large windows are left out, too.
    blocks: fc
      .array(fc.tuple(fc.constantFrom(...kinds), fc.constantFrom(1, 1, 3, 40, 300)), {
        maxLength: 8,
      })
      .map(runs => runs.flatMap(([kind, count]) => Array<Block>(count).fill(kind))),
    missing: fc.constantFrom(0, 0, 512, 1000),
    seed: fc.nat(1000),
  })
const options = fc.record({
  unitBytes: fc.constantFrom(512, 4096, 65_536, 2 ** 21),
  sparseBytes: fc.constantFrom(0, 4096, 65_536),
  storesZeros: fc.boolean(),
  more: fc.constantFrom(0, 512, 100_000),
})

t.test('the target has the bytes of the source', async () => {
  await holds(fc.record({ disk: disks(KINDS), how: options }), 40, async ({ disk, how }) => {
    const { disk: source, content } = made(disk)
    const sizeBytes = content.length + how.more
    const before = how.storesZeros ? noise(sizeBytes, 9) : Buffer.alloc(sizeBytes)
    const sink = new ModelSink(before, how.unitBytes, how.storesZeros, undefined)
    const reached: number[] = []
    await copyDisk(source, sink, {
      sizeBytes,
      sparseBytes: how.sparseBytes,
      onProgress: offset => void reached.push(offset),
    })
    const wanted = Buffer.concat([content, Buffer.alloc(how.more)])
    assert.ok(sink.content.equals(wanted))
    assert.equal(reached.at(-1), sizeBytes)
    if (how.sparseBytes === 0)
      assert.ok(
        sink.told.every(byte => byte === 1),
        'all is allocated',
      )
  })
})

t.test('units of zeros are not stored', async t => {
  const blocks = [
    ...Array<Block>(16).fill('zeros'),
    'data' as const,
    ...Array<Block>(31).fill('zeros'),
  ]
  const { disk } = made({ blocks, missing: 0, seed: 1 })
  for (const [unitBytes, sparseBytes, stored] of [
    [4096, 4096, 4096],
    [65_536, 4096, 65_536],
    [512, 4096, 4096],
    [4096, 65_536, 65_536],
  ] as const) {
    const sink = new ModelSink(Buffer.alloc(disk.sizeBytes), unitBytes, false, undefined)
    await copyDisk(disk, sink, { sizeBytes: disk.sizeBytes, sparseBytes })
    t.equal(sink.told.filter(byte => byte === 1).length, stored, `${unitBytes}, -S ${sparseBytes}`)
  }
})

t.test('compressed', async t => {
  await holds(fc.record({ disk: disks(KINDS), how: options }), 15, async ({ disk, how }) => {
    const { disk: source, content } = made(disk)
    const sizeBytes = Math.ceil(content.length / 512) * 512
    const packing = { type: 'deflate', maxBytes: how.unitBytes - 1 } as const
    const sink = new ModelSink(Buffer.alloc(sizeBytes), how.unitBytes, false, packing)
    await copyDisk(source, sink, { sizeBytes, sparseBytes: how.sparseBytes })
    assert.ok(sink.content.subarray(0, content.length).equals(content))
  })
  const { disk } = made({ blocks: Array<Block>(64).fill('zeros'), missing: 0, seed: 1 })
  const packing = { type: 'deflate', maxBytes: 65_535 } as const
  const sink = new ModelSink(Buffer.alloc(disk.sizeBytes), 65_536, false, packing)
  await copyDisk(disk, sink, { sizeBytes: disk.sizeBytes, sparseBytes: 0 })
  t.equal(sink.packs, 4, 'what becomes smaller is packed')
  t.ok(deflateRawSync(Buffer.alloc(65_536)).length < 65_536)
})

t.test('onto a base only what differs is written', async () => {
  const pairs = fc.record({
    top: disks(KINDS),
    base: disks(KINDS),
    unit: fc.constantFrom(4096, 65_536),
  })
  await holds(pairs, 40, async ({ top, base, unit }) => {
    const { disk: source, content } = made({ ...top, seed: 5 })
    const { disk: below, content: beneath } = made({ ...base, seed: 5 })
    const sizeBytes = Math.ceil(content.length / 512) * 512
    const before = Buffer.alloc(sizeBytes)
    beneath.copy(before, 0, 0, sizeBytes)
    const sink = new ModelSink(before, unit, false, undefined)
    await copyDisk(source, sink, { sizeBytes, sparseBytes: 4096, base: below })
    assert.ok(sink.content.subarray(0, content.length).equals(content))
    for (let at = 0; at < sizeBytes; at += unit) {
      const end = Math.min(at + unit, sizeBytes)
      const differs = before.compare(sink.content, at, end, at, end) !== 0
      if (sink.told[at] === 1 && !differs) assert.fail(`the unit at ${at} is equal and was written`)
    }
  })
})

t.test('damage is named; with salvage it becomes zeros, and the rest is copied', async () => {
  const damaged = disks([...KINDS, 'bad-table', 'bad-data'])
  await holds(damaged, 40, async disk => {
    const { disk: source, content } = made(disk)
    const sizeBytes = content.length
    const isBad = (block: Block) => block.startsWith('bad')
    const bad = disk.blocks.findIndex(isBad)
    const plain = new ModelSink(Buffer.alloc(sizeBytes), 4096, false, undefined)
    const copied = copyDisk(source, plain, { sizeBytes, sparseBytes: 4096 })
    if (bad < 0 || bad * BLOCK >= sizeBytes) await copied
    else
      await assert.rejects(
        copied,
        error => error instanceof ImageError && typeof error.context.offset === 'number',
      )
    const lost = Buffer.alloc(disk.blocks.length * BLOCK)
    const sink = new ModelSink(Buffer.alloc(sizeBytes), 4096, false, undefined)
    const onLoss = (offset: number, length: number) => void lost.fill(1, offset, offset + length)
    await copyDisk(source, sink, { sizeBytes, sparseBytes: 4096, onLoss })
    assert.ok(sink.content.equals(content))
    disk.blocks.forEach((block, i) => {
      if (i * BLOCK < sizeBytes) assert.equal(lost[i * BLOCK], isBad(block) ? 1 : 0, `block ${i}`)
    })
  })
})

t.test('an error of the target ends the copy', async t => {
  const { disk } = made({ blocks: Array<Block>(4000).fill('data'), missing: 0, seed: 1 })
  const { sizeBytes } = disk
  for (const nth of [0, 1, 7, 15]) {
    let writes = 0
    const sink = new ModelSink(Buffer.alloc(sizeBytes), 4096, false, undefined)
    const write = sink.write.bind(sink)
    sink.write = (bytes, offset) => {
      write(bytes, offset)
      if (writes++ === nth) throw new Error('full')
    }
    await t.rejects(copyDisk(disk, sink, { sizeBytes, sparseBytes: 4096 }), { message: 'full' })
  }
})

t.test('a signal ends it', async t => {
  const { disk } = made({ blocks: Array<Block>(4000).fill('data'), missing: 0, seed: 1 })
  const { sizeBytes } = disk
  const ending = new AbortController()
  const sink = new ModelSink(Buffer.alloc(sizeBytes), 4096, false, undefined)
  const copied = copyDisk(disk, sink, {
    ...{ sizeBytes, sparseBytes: 4096, signal: ending.signal },
    onProgress: offset => {
      if (offset > sizeBytes / 2) ending.abort(new Error('enough'))
    },
  })
  await t.rejects(copied, { message: 'enough' })
})
