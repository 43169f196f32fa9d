/** An image that its writer refuses at the first write is not changed before, not by a byte. */
import t from 'tap'
import { buildCow } from '../fixtures/cow-builder.js'
import { noise } from '../fixtures/model.js'
import { buildQcow } from '../fixtures/qcow-builder.js'
import { buildExtent, type Grain } from '../fixtures/vmdk-builder.js'
import { openCow, openQcow } from '../soundness/image-disk.js'
import { openVmdkWritable } from '../soundness/vmdk-disk.js'
import { MemoryStore } from '../support/stores.js'
import type { OpenDisk } from '../support/writable.js'
import { descriptor } from './vmdk/hostile-images.js'

const SECTOR = 512
const GRAIN_SECTORS = 8
const GRAIN_BYTES = GRAIN_SECTORS * SECTOR
const TABLE_ENTRIES = 16

/** An extent that was not closed cleanly, with two grains. */
const unclean = (tables: number) =>
  buildExtent({
    capacitySectors: tables * TABLE_ENTRIES * GRAIN_SECTORS,
    grainSectors: GRAIN_SECTORS,
    tableEntries: TABLE_ENTRIES,
    isUnclean: true,
    grains: new Map(
      [0, 1].map((grain): [number, Grain] => [
        grain,
        { kind: 'data', bytes: noise(GRAIN_BYTES, grain) },
      ]),
    ),
  })

/** One redundant table lags, and so is made right before the first write. */
function lagging(tables = 1): Buffer {
  const { bytes, redundantEntryAt } = unclean(tables)
  bytes.writeUInt32LE(0, redundantEntryAt(1))
  return bytes
}

/** Two grains whose first tables are unallocated, and whose redundant ones name one place. */
function undecided(): Buffer {
  const { bytes, entryAt, redundantEntryAt, placeOf } = unclean(1)
  bytes.writeUInt32LE(0, entryAt(0))
  bytes.writeUInt32LE(0, entryAt(1))
  bytes.writeUInt32LE(placeOf(0) / SECTOR, redundantEntryAt(1))
  return bytes
}

/** A redundant directory that has lost nearly all of its tables: more than are mended. */
function beyondMending(): Buffer {
  const tables = 16_500
  const bytes = lagging(tables)
  const at = Number(bytes.readBigUInt64LE(48)) * SECTOR
  bytes.fill(0, at + 4, at + tables * 4)
  return bytes
}

/** Writes to a disk of these extents. */
function writeVmdk(...extents: Buffer[]): { stores: MemoryStore[]; open: () => OpenDisk } {
  const sectorsOf = (bytes: Buffer) => Number(bytes.readBigUInt64LE(12))
  const names = extents.map((_, i) => `extent-${i}.vmdk`)
  const lines = extents.map((bytes, i) => `RW ${sectorsOf(bytes)} SPARSE "${names[i]}"`)
  const stores = [
    new MemoryStore('disk.vmdk', Buffer.from(descriptor({ extents: lines }))),
    ...extents.map((bytes, i) => new MemoryStore(names[i] as string, bytes)),
  ]
  return { stores, open: () => openVmdkWritable({ stores }) }
}

function qcow(change: (bytes: Buffer, entryAt: (cluster: number) => number) => void) {
  const clusters = new Map(
    [0, 1].map(i => [i, { kind: 'data' as const, bytes: noise(4096, i) }] as const),
  )
  const built = buildQcow({ sizeBytes: 64 * 4096, clusterBits: 12, l2Bits: 9, clusters })
  const bytes = Buffer.from(built.bytes)
  change(bytes, built.entryAt)
  // The file ends within its last cluster, which is made whole before the first write.
  const store = new MemoryStore('disk.qcow', bytes.subarray(0, bytes.length - 100))
  return { stores: [store], open: () => openQcow({ store }) }
}

function cow() {
  const sectors = new Map([0, 200].map(sector => [sector, noise(SECTOR, sector)] as const))
  const { bytes } = buildCow({ layout: 'qemu-x86-64', sizeBytes: 201 * SECTOR, sectors })
  const store = new MemoryStore('disk.cow', bytes.subarray(0, bytes.length - 2 * SECTOR))
  return { stores: [store], open: () => openCow({ store }) }
}

const REFUSED = {
  'vmdk, whose second extent cannot be decided': {
    ...writeVmdk(lagging(), undecided()),
    says: /redundant grain tables name what the first ones do not/,
  },
  'vmdk, with more to mend than is mended': {
    ...writeVmdk(beyondMending()),
    says: /more than 16384 of its redundant grain tables/,
  },
  'vmdk, whose second extent has too much to mend': {
    ...writeVmdk(lagging(), beyondMending()),
    says: /more than 16384 of its redundant grain tables/,
  },
  'qcow, one cluster of which two entries name': {
    ...qcow((bytes, entryAt) => bytes.copy(bytes, entryAt(0), entryAt(1), entryAt(1) + 8)),
    says: /see vimgfs check/,
  },
  'cow, cut off before a sector that is marked': { ...cow(), says: /beyond the end of the file/ },
}

for (const [title, { stores, open, says }] of Object.entries(REFUSED)) {
  t.test(title, async t => {
    const before = stores.map(store => store.bytes())
    const { disk } = open()
    t.throws(() => disk.write(noise(100, 9), 0, 100, GRAIN_BYTES * 3), { message: says })
    stores.forEach((store, i) => {
      t.ok(store.bytes().equals(before[i] as Buffer), `${store.path} is as it was`)
    })
  })
}

t.test('what is mended without a refusal', async t => {
  const { stores, open } = writeVmdk(lagging(), lagging())
  const before = stores.map(store => store.bytes())
  const { disk } = open()
  disk.write(noise(100, 9), 0, 100, GRAIN_BYTES * 3)
  stores.forEach((store, i) => {
    t.notOk(store.bytes().equals(before[i] as Buffer), `${store.path} was changed`)
  })
})
