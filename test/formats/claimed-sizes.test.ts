/** qcow2 images whose headers claim more than there can be; see claims.ts. */
import t from 'tap'
import { noise } from '../fixtures/model.js'
import { buildImage, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { type ClaimingFile, usesLittle } from './claims.js'
import { AUTO, buildBitmapImage, IN_USE } from './qcow2/bitmap-image.js'

const SECTOR = 512
const GIB = 2 ** 30

// --- Bitmaps of qcow2

const EXTENSION_AT = 120
const BITMAP_AT = { tableEntries: 8, extraBytes: 20 }

function bitmaps(
  flags: number,
  change: (bytes: Buffer, entryAt: number) => void,
  sizeBytes = 6 * GIB,
): ClaimingFile {
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
function manyBitmaps(flags: number): ClaimingFile {
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

function qcow2(change: (bytes: Buffer) => void, more: Partial<ImageSpec> = {}): ClaimingFile {
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

const IMAGES: Record<string, () => ClaimingFile> = {
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

for (const [title, build] of Object.entries(IMAGES)) {
  t.test(title, async t => usesLittle(t, { image: build() }))
}
