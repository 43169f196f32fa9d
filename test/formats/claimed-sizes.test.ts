/**
 * Images whose headers claim more than there can be, in sparse files that are long enough for it. Whatever is
 * done with them, memory and time stay small: the image opens, or is refused in one line.
 */
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { problemOf } from '../support/exercise.js'
import { ImageError } from '../../src/errors.js'
import { catalogOf } from '../../src/image/catalog.js'
import { closeChain } from '../../src/image/chain.js'
import { openChain } from '../../src/image/open-chain.js'
import { createDiskMemory } from '../../src/image/disk-memory.js'
import { ImageSet } from '../../src/image/image-set.js'
import { describe } from '../../src/image/info.js'
import { storeOf } from '../../src/image/layer.js'
import { checkQcow2 } from '../../src/formats/qcow2/check.js'
import { repairQcow2 } from '../../src/formats/qcow2/repair.js'
import type { WritableDisk } from '../../src/formats/writable.js'
import { WritableFileStore } from '../../src/io/store.js'
import { noise } from '../fixtures/model.js'
import { buildImage, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { readAt } from '../support/image.js'
import { tempFolder } from '../support/run.js'
import { collectShared } from '../support/writable.js'
import { AUTO, buildBitmapImage, IN_USE } from './qcow2/bitmap-image.js'
import { cpuMs } from '../support/cpu.js'

const SECTOR = 512
const K = 1024
const GIB = 2 ** 30
const MAX_GROWTH_BYTES = 200 * K * K
const MAX_MS = 20_000
const CACHES = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 20 }

interface Image {
  readonly bytes: Buffer
  /** How long the sparse file is. */
  readonly sizeBytes: number
}

// --- Bitmaps of qcow2

const EXTENSION_AT = 120
const BITMAP_AT = { tableEntries: 8, extraBytes: 20 }

function bitmaps(
  flags: number,
  change: (bytes: Buffer, entryAt: number) => void,
  sizeBytes = 6 * GIB,
): Image {
  const { bytes, entryAt } = buildBitmapImage({
    clusterBits: 12,
    sizeBytes: 64 * 4096,
    bitmaps: [{ name: 'b', flags, granularityBits: 12, bits: [1] }],
  })
  change(bytes, entryAt[0] as number)
  return { bytes, sizeBytes }
}

const claims = (entries: number) => (bytes: Buffer, at: number) =>
  bytes.writeUInt32BE(entries, at + BITMAP_AT.tableEntries)

/** As many bitmaps as there can be, each with as long a table as there can be, all at one place. */
function manyBitmaps(flags: number): Image {
  const count = 65_535
  const { bytes, directoryAt } = buildBitmapImage({
    clusterBits: 9,
    sizeBytes: 64 * SECTOR,
    bitmaps: [],
  })
  const directory = Buffer.alloc(count * 32)
  for (let i = 0; i < count; i++) {
    const at = i * 32
    directory.writeBigUInt64BE(BigInt(GIB), at)
    directory.writeUInt32BE(2 ** 20, at + 8)
    directory.writeUInt32BE(flags, at + 12)
    directory.writeUInt8(1, at + 16)
    directory.writeUInt8(9, at + 17)
    directory.writeUInt16BE(1, at + 18)
    directory.write('b', at + 24)
  }
  bytes.writeUInt32BE(count, EXTENSION_AT)
  bytes.writeBigUInt64BE(BigInt(directory.length), EXTENSION_AT + 8)
  return { bytes: Buffer.concat([bytes.subarray(0, directoryAt), directory]), sizeBytes: 4 * GIB }
}

// --- Other tables of qcow2

const QCOW2_AT = { l1Entries: 36, refcountClusters: 56, snapshots: 60 }

function qcow2(change: (bytes: Buffer) => void, more: Partial<ImageSpec> = {}): Image {
  const bytes = buildImage({
    clusterBits: 12,
    sizeBytes: 64 * 4096,
    clusters: new Map([[0, { kind: 'data', bytes: noise(4096, 1) }]]),
    ...more,
  }).bytes()
  change(bytes)
  return { bytes, sizeBytes: 6 * GIB }
}

const u32 = (at: number, value: number) => (bytes: Buffer) => bytes.writeUInt32BE(value, at)

const IMAGES: Record<string, () => Image> = {
  'qcow2, a bitmap in use with 2^29 entries': () => bitmaps(IN_USE, claims(2 ** 29)),
  'qcow2, a bitmap with 2^29 entries': () => bitmaps(AUTO, claims(2 ** 29)),
  'qcow2, a bitmap in use with 2^32 - 1 entries': () =>
    bitmaps(IN_USE, claims(2 ** 32 - 1), 40 * GIB),
  'qcow2, a bitmap with unknown flags and 2^27 entries': () => bitmaps(0x100, claims(2 ** 27)),
  'qcow2, a bitmap with 2^32 - 1 bytes of extra data': () =>
    bitmaps(AUTO, (bytes, at) => bytes.writeUInt32BE(2 ** 32 - 1, at + BITMAP_AT.extraBytes)),
  'qcow2, 2^29 bitmaps': () => bitmaps(AUTO, u32(EXTENSION_AT, 2 ** 29)),
  'qcow2, 2^32 - 1 bitmaps': () => bitmaps(AUTO, u32(EXTENSION_AT, 2 ** 32 - 1)),
  'qcow2, a bitmap directory of 32 GiB': () =>
    bitmaps(AUTO, bytes => bytes.writeBigUInt64BE(2n ** 35n, EXTENSION_AT + 8)),
  'qcow2, a bitmap directory of 2^63 bytes': () =>
    bitmaps(AUTO, bytes => bytes.writeBigUInt64BE(2n ** 63n, EXTENSION_AT + 8)),
  'qcow2, 65535 bitmaps with 2^20 entries each': () => manyBitmaps(AUTO),
  'qcow2, 65535 bitmaps in use with 2^20 entries each': () => manyBitmaps(IN_USE),
  'qcow2, an L1 table of 2^32 - 1 entries': () => qcow2(u32(QCOW2_AT.l1Entries, 2 ** 32 - 1)),
  'qcow2, an L1 table of 32 MiB': () => qcow2(u32(QCOW2_AT.l1Entries, 2 ** 22)),
  'qcow2, a refcount table of 2^32 - 1 clusters': () =>
    qcow2(u32(QCOW2_AT.refcountClusters, 2 ** 32 - 1)),
  'qcow2, 2^32 - 1 snapshots': () => qcow2(u32(QCOW2_AT.snapshots, 2 ** 32 - 1)),
}

// --- What is done with them

/** Lets through what is no refusal of the image in one line. */
function attempt(act: () => void): void {
  try {
    act()
  } catch (error) {
    if (!(error instanceof ImageError) || problemOf(error) !== undefined) throw error
  }
}

function use(path: string, access: 'read' | 'write'): void {
  collectShared()
  const chain = openChain(path, { access })
  try {
    const [top] = chain.layers
    const writing =
      access === 'write' ? { memory: createDiskMemory(top, 1, storeOf(top)), thread: 0 } : undefined
    const images = new ImageSet(chain.layers, CACHES, undefined, writing)
    const view = images.viewOf(catalogOf(chain).entries[0] as never)
    attempt(() => void readAt(view, 0, Math.min(8192, view.driver.sizeBytes)))
    if (access === 'read') return
    const disk = images.disk as WritableDisk
    attempt(() => disk.write(noise(100, 9), 0, 100, 8192))
    attempt(() => disk.flush())
    attempt(() => void disk.close())
  } finally {
    closeChain(chain)
  }
}

function withStore(path: string, sizeBytes: number, act: (store: WritableFileStore) => void): void {
  const fd = openSync(path, 'r+')
  try {
    const size = new BigInt64Array(new SharedArrayBuffer(8))
    size[0] = BigInt(sizeBytes)
    act(new WritableFileStore(path, fd, size))
  } finally {
    closeSync(fd)
  }
}

function make(t: Test, { bytes, sizeBytes }: Image): string {
  const path = join(tempFolder(t), 'image')
  const fd = openSync(path, 'w')
  writeSync(fd, bytes, 0, bytes.length, 0)
  ftruncateSync(fd, sizeBytes)
  closeSync(fd)
  return path
}

for (const [title, build] of Object.entries(IMAGES)) {
  t.test(title, async t => {
    const image = build()
    const file = make(t, image)
    const steps: Record<string, () => void> = {
      'a mount that reads': () => use(file, 'read'),
      info: () => void describe(file, {}, true),
      check: () => withStore(file, image.sizeBytes, store => void checkQcow2(store)),
      'a first write': () => use(file, 'write'),
      repair: () => withStore(file, image.sizeBytes, store => void repairQcow2(store, 'all')),
    }
    for (const [what, act] of Object.entries(steps)) {
      const before = process.resourceUsage().maxRSS * K
      const started = cpuMs()
      attempt(act)
      const milliseconds = cpuMs() - started
      const grown = process.resourceUsage().maxRSS * K - before
      t.ok(milliseconds < MAX_MS, `${what}: ${Math.round(milliseconds)} ms`)
      t.ok(grown < MAX_GROWTH_BYTES, `${what}: ${Math.round(grown / K / K)} MiB more`)
    }
  })
}
