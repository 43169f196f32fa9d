/** Freed space is used again before a write answers ENOSPC, with no flush by anybody in between. */
import t, { type Test } from 'tap'
import { SystemError } from '../../src/errors.js'
import { checkQcow2 } from '../../src/formats/qcow2/check.js'
import { noise } from '../fixtures/model.js'
import { buildImage, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { FullDiskStore, MemoryStore, WrappedStore } from '../support/stores.js'
import { type OpenDisk, openWritable } from '../support/writable.js'

const ENOSPC = 28
const CLUSTER = 4096
const CLUSTERS = 200
const DISK: ImageSpec = { clusterBits: 12, sizeBytes: CLUSTERS * CLUSTER }
const SPECS: Record<string, ImageSpec> = {
  'version 3': DISK,
  'version 2': { ...DISK, version: 2 },
  'extended L2 entries': { ...DISK, clusterBits: 14, isExtended: true },
}

/** A store that cannot grow, such as a block device. */
class FixedStore extends WrappedStore {
  /** How many writes were refused. */
  refused = 0

  override write(source: Buffer, start: number, length: number, at: number): void {
    if (at + length > this.sizeBytes) {
      this.refused++
      throw new SystemError('write', ENOSPC, this.path)
    }
    super.write(source, start, length, at)
  }
}

/** Writes clusters from the start of the disk until one does not fit. Returns how many did. */
function fill({ disk }: OpenDisk): number {
  for (let i = 0; i < CLUSTERS; i++) {
    try {
      disk.write(noise(CLUSTER, i), 0, CLUSTER, i * CLUSTER)
    } catch (error) {
      if (!(error instanceof SystemError) || error.errno !== ENOSPC) throw error
      return i
    }
  }
  throw new Error('all of it fits')
}

/** Frees some of the clusters that were written, in two pieces, and writes as many others. */
function exchange(t: Test, { disk, read }: OpenDisk, filled: number, count: number): void {
  disk.zero(0, count * CLUSTER)
  const first = filled - (filled % 4) - count
  disk.zero(first * CLUSTER, count * CLUSTER)
  const target = CLUSTERS - 2 * count - 4
  for (let i = 0; i < 2 * count; i++) {
    disk.write(noise(CLUSTER, 500 + i), 0, CLUSTER, (target + i) * CLUSTER)
  }
  const expected = Buffer.alloc(CLUSTERS * CLUSTER)
  for (let i = count; i < filled; i++) noise(CLUSTER, i).copy(expected, i * CLUSTER)
  expected.fill(0, first * CLUSTER, (first + count) * CLUSTER)
  for (let i = 0; i < 2 * count; i++) noise(CLUSTER, 500 + i).copy(expected, (target + i) * CLUSTER)
  t.ok(read(0, target * CLUSTER).equals(expected.subarray(0, target * CLUSTER)), 'all else is kept')
  t.ok(read(0, expected.length).equals(expected), 'what was written is there')
}

for (const [title, spec] of Object.entries(SPECS)) {
  const bytes = buildImage(spec).bytes()

  t.test(`${title}, on a full file system`, async t => {
    const memory = new MemoryStore('image', bytes)
    const store = new FullDiskStore(memory)
    const opened = openWritable({ store })
    store.limitBytes = memory.allocatedBytes + 100 * CLUSTER
    const filled = fill(opened)
    exchange(t, opened, filled, 8)
    opened.disk.close()
    t.match(checkQcow2(memory), { corruptions: 0, leaks: 0 })
  })

  t.test(`${title}, in a file that cannot grow`, async t => {
    const memory = new MemoryStore('image', bytes)
    memory.truncate(bytes.length + 100 * CLUSTER)
    const store = new FixedStore(memory)
    const opened = openWritable({ store })
    const filled = fill(opened)
    const before = store.refused
    exchange(t, opened, filled, 8)
    t.ok(store.refused > before, 'the end of the file was met')
    opened.disk.close()
    t.match(checkQcow2(memory), { corruptions: 0, leaks: 0 })
  })
}

t.test('a write is tried twice, not more often', async t => {
  const memory = new MemoryStore('image', buildImage(DISK).bytes())
  memory.truncate(memory.sizeBytes + 20 * CLUSTER)
  const store = new FixedStore(memory)
  const { disk } = openWritable({ store })
  fill({ disk } as OpenDisk)
  const before = store.refused
  t.throws(() => disk.write(noise(CLUSTER, 1), 0, CLUSTER, 190 * CLUSTER), { code: 'ENOSPC' })
  t.equal(store.refused - before, 2)
  t.equal(disk.failure, '')
})
