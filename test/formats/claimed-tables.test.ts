/** vmdk, qcow and cow images whose headers claim more than there can be; see claims.ts. */
import t from 'tap'
import { noise } from '../fixtures/model.js'
import { buildCow } from '../fixtures/cow-builder.js'
import { buildCowd, type CowdSpec } from '../fixtures/cowd-builder.js'
import { buildQcow, HEADER_AT as QCOW_AT } from '../fixtures/qcow-builder.js'
import { buildSesparse } from '../fixtures/sesparse-builder.js'
import { buildExtent, type ExtentSpec, HEADER_AT, packed } from '../fixtures/vmdk-builder.js'
import { type ClaimingFile, type ClaimingImage, usesLittle } from './claims.js'
import { descriptor } from './vmdk/hostile-images.js'

const SECTOR = 512
const K = 1024
const GIB = 2 ** 30
const TIB = 2 ** 40
/** Where the images that claim large directories have them: after everything that the builders make. */
const FAR = 2 ** 24
const MAX_DIRECTORY_ENTRIES = 2 ** 23
/** Entries of a directory that are no holes: what time a check takes goes by them. */
const REAL_ENTRIES = 2 ** 16

type Change = (bytes: Buffer) => void

const u32 =
  (at: number, value: number): Change =>
  bytes =>
    void bytes.writeUInt32LE(value, at)
const u64 =
  (at: number, value: bigint): Change =>
  bytes =>
    void bytes.writeBigUInt64LE(value, at)

// --- Hosted sparse extents

const GRAIN_SECTORS = 16
const data = (seed: number) =>
  ({ kind: 'data', bytes: noise(GRAIN_SECTORS * SECTOR, seed) }) as const

function hosted(
  changes: Change[],
  sizeBytes: number,
  more: Partial<ExtentSpec> = {},
): ClaimingImage {
  const capacitySectors = 2048
  const { bytes } = buildExtent({
    capacitySectors,
    grainSectors: GRAIN_SECTORS,
    grains: new Map([
      [0, data(1)],
      [5, data(2)],
    ]),
    descriptor: descriptor({ extents: [`RW ${capacitySectors} SPARSE "disk.vmdk"`] }),
    ...more,
  })
  for (const change of changes) change(bytes)
  return { 'disk.vmdk': { bytes, sizeBytes } }
}

/** The largest disk that a directory of so many entries has room for. */
const capacity = (entries: number, tableEntries = 512) =>
  u64(HEADER_AT.capacity, BigInt(entries) * BigInt(tableEntries * GRAIN_SECTORS))
const directories = (first: number, redundant: number): Change[] => [
  u64(HEADER_AT.directory, BigInt(first / SECTOR)),
  u64(HEADER_AT.redundantDirectory, BigInt(redundant / SECTOR)),
]
/** Real bytes after the header, so that not all is a hole. */
function withWords(image: ClaimingImage, at: number, words: Uint32Array): ClaimingImage {
  const file = image['disk.vmdk'] as ClaimingFile
  const bytes = Buffer.alloc(at + words.byteLength)
  file.bytes.copy(bytes)
  Buffer.from(words.buffer).copy(bytes, at)
  return { 'disk.vmdk': { ...file, bytes } }
}

const wholeDirectory = capacity(MAX_DIRECTORY_ENTRIES)
const realDirectory = capacity(REAL_ENTRIES)
const farDirectories = directories(FAR, 4 * FAR)

/** Two of so many entries, one right after the other. */
const nearDirectories = directories(FAR, FAR + 4 * REAL_ENTRIES)
const namedTables = (sectorOf: (i: number) => number) =>
  Uint32Array.from({ length: 2 * REAL_ENTRIES }, (_, i) => sectorOf(i))

// --- Streams

const stream = (changes: Change[], sizeBytes: number, footer: Change[] = []): ClaimingImage => {
  const built = buildExtent({
    capacitySectors: 2048,
    grainSectors: GRAIN_SECTORS,
    isCompressed: true,
    isStream: footer.length > 0,
    hasRedundant: false,
    version: 3,
    grains: new Map([[0, packed(noise(GRAIN_SECTORS * SECTOR, 1))]]),
    descriptor: descriptor({ extents: ['RW 2048 SPARSE "disk.vmdk"'] }),
  })
  for (const change of changes) change(built.bytes)
  if (footer.length === 0) return { 'disk.vmdk': { bytes: built.bytes, sizeBytes } }
  for (const change of footer) change(built.bytes.subarray(built.footerAt))
  const tail = Buffer.from(built.bytes.subarray(built.footerAt - SECTOR))
  return { 'disk.vmdk': { bytes: built.bytes, sizeBytes, tail } }
}

// --- Extents of ESX

const named = (line: string, name: string, file: ClaimingFile): ClaimingImage => {
  const text = Buffer.from(descriptor({ extents: [line] }))
  return { 'disk.vmdk': { bytes: text, sizeBytes: text.length }, [name]: file }
}

const cowd = (
  spec: Partial<CowdSpec>,
  sizeBytes: number,
  changes: Change[] = [],
): ClaimingImage => {
  const sectors = spec.sectors ?? 2 ** 20
  const grains = new Map([
    [0, noise(SECTOR, 1)],
    [9, noise(SECTOR, 2)],
  ])
  const { bytes } = buildCowd({ sectors, grains, ...spec })
  for (const change of changes) change(bytes)
  return named(`RW ${sectors} VMFSSPARSE "e.vmdk"`, 'e.vmdk', { bytes, sizeBytes })
}

const COWD_AT = { capacity: 12, directoryEntries: 24, freeSector: 28 }

const SESPARSE_AT = { capacity: 16, directory: 128, tables: 144, grains: 192 }
function sesparse(changes: Change[], sizeBytes: number, sectors = 2 ** 16): ClaimingImage {
  const { bytes } = buildSesparse({
    sectors: 2 ** 16,
    grains: new Map([[0, { kind: 'data', bytes: noise(4096, 1) }]]),
  })
  for (const change of changes) change(bytes)
  return named(`RW ${sectors} SESPARSE "e.vmdk"`, 'e.vmdk', { bytes, sizeBytes })
}
const region = (at: number, firstByte: number, bytes: number): Change[] => [
  u64(at, BigInt(firstByte / SECTOR)),
  u64(at + 8, BigInt(bytes / SECTOR)),
]

// --- qcow and cow

function qcow(sizeBytes: bigint, fileBytes: number, change: Change = () => {}): ClaimingImage {
  const { bytes } = buildQcow({
    sizeBytes: 2 ** 20,
    clusterBits: 12,
    l2Bits: 9,
    clusters: new Map([[0, { kind: 'data', bytes: noise(4096, 1) }]]),
  })
  bytes.writeBigUInt64BE(sizeBytes, QCOW_AT.sizeBytes)
  change(bytes)
  return { image: { bytes, sizeBytes: fileBytes } }
}
const qcowL1 =
  (at: number): Change =>
  bytes =>
    void bytes.writeBigUInt64BE(BigInt(at), QCOW_AT.l1Offset)

const cow = (sizeBytes: bigint, fileBytes: number): ClaimingImage => {
  const { bytes } = buildCow({
    layout: 'qemu-x86-64',
    sizeBytes: 2 ** 20,
    sectors: new Map([[0, noise(SECTOR, 1)]]),
  })
  bytes.writeBigUInt64BE(sizeBytes, 1040)
  return { image: { bytes, sizeBytes: fileBytes } }
}

const IMAGES: Record<string, () => ClaimingImage> = {
  'hosted, a disk of 2^63 sectors': () => hosted([u64(HEADER_AT.capacity, 2n ** 63n)], GIB),
  'hosted, grains of 2^21 sectors': () => hosted([u64(HEADER_AT.grain, 2n ** 21n)], GIB),
  'hosted, tables of 2^32 - 1 entries': () =>
    hosted([u32(HEADER_AT.tableEntries, 2 ** 32 - 1)], GIB),
  'hosted, 2^23 tables of one entry': () =>
    hosted([capacity(2 ** 23, 1), u32(HEADER_AT.tableEntries, 1), ...farDirectories], TIB),
  'hosted, a descriptor of 2^63 sectors': () =>
    hosted([u64(HEADER_AT.descriptorSize, 2n ** 63n)], GIB),
  'hosted, a descriptor of 2 GiB': () =>
    hosted([u64(HEADER_AT.descriptorSize, 2n ** 22n)], 4 * GIB),
  'hosted, an overhead of 2^63 sectors': () => hosted([u64(HEADER_AT.overhead, 2n ** 63n)], GIB),
  'hosted, a redundant directory at sector 2^63': () =>
    hosted([u64(HEADER_AT.redundantDirectory, 2n ** 63n)], GIB),
  'hosted, two directories of 2^23 entries, holes': () =>
    hosted([wholeDirectory, ...farDirectories], 2 * TIB),
  'hosted, one directory of 2^23 entries, a hole, and an open extent': () =>
    hosted([wholeDirectory, ...directories(FAR, FAR)], 2 * TIB, { isUnclean: true }),
  'hosted, two directories of 2^16 entries that name one table': () =>
    withWords(
      hosted([realDirectory, ...nearDirectories], TIB),
      FAR,
      namedTables(() => 50),
    ),
  'hosted, two directories of 2^16 entries that name tables in holes': () =>
    withWords(
      hosted([realDirectory, ...nearDirectories], 2 * TIB),
      FAR,
      namedTables(i => 2 ** 20 + 4 * i),
    ),
  'hosted, a redundant directory alone that names tables in holes': () =>
    withWords(
      hosted([realDirectory, ...nearDirectories], 2 * TIB, { isUnclean: true }),
      FAR,
      namedTables(i => (i < REAL_ENTRIES ? 0 : 2 ** 20 + 4 * i)),
    ),
  'hosted, directories that name nothing in the file': () =>
    withWords(
      hosted([realDirectory, ...nearDirectories], TIB),
      FAR,
      namedTables(() => 2 ** 32 - 1),
    ),
  'stream, a directory of 2^23 entries, a hole': () =>
    stream([wholeDirectory, u64(HEADER_AT.directory, BigInt(FAR / SECTOR))], TIB),
  'stream, a footer with a disk of 2^63 sectors': () =>
    stream([], TIB, [u64(HEADER_AT.capacity, 2n ** 63n)]),
  'stream, a footer with a directory of 2^23 entries, a hole': () =>
    stream([], TIB, [wholeDirectory, u64(HEADER_AT.directory, BigInt(FAR / SECTOR))]),
  'stream, a grain of 2^32 - 1 bytes': () => {
    const image = stream([], TIB)
    const file = image['disk.vmdk'] as ClaimingFile
    const at = file.bytes.indexOf(Buffer.from([0x78, 0x9c])) - 4
    if (at > 0) file.bytes.writeUInt32LE(2 ** 32 - 1, at)
    return image
  },
  'COWD, a directory of 2^25 entries for a small disk': () =>
    cowd({}, TIB, [u32(COWD_AT.directoryEntries, 2 ** 25)]),
  'COWD, a directory of 2^32 - 1 entries': () =>
    cowd({}, TIB, [u32(COWD_AT.directoryEntries, 2 ** 32 - 1)]),
  'COWD, a disk of 2^32 - 1 sectors, whose tables are holes': () => {
    const sectors = 2 ** 32 - 1
    const grains = new Map([[0, noise(SECTOR, 1)]])
    return cowd({ sectors, grains }, 2 * TIB)
  },
  'COWD, a next free sector of 2^32 - 1': () =>
    cowd({}, TIB, [u32(COWD_AT.freeSector, 2 ** 32 - 1)]),
  'seSparse, a disk of 2^63 sectors': () => sesparse([u64(SESPARSE_AT.capacity, 2n ** 63n)], TIB),
  'seSparse, a directory of 2^25 entries, a hole': () =>
    sesparse(
      [
        u64(SESPARSE_AT.capacity, 2n ** 40n),
        ...region(SESPARSE_AT.directory, FAR, 8 * 2 ** 25),
        ...region(SESPARSE_AT.grains, TIB, TIB),
      ],
      4 * TIB,
      2 ** 40,
    ),
  'seSparse, a directory of 2^40 entries': () =>
    sesparse(region(SESPARSE_AT.directory, FAR, 8 * 2 ** 40), 12 * TIB),
  'seSparse, 2^28 tables, holes': () =>
    sesparse(
      [
        ...region(SESPARSE_AT.tables, FAR, 2 ** 28 * 32 * K),
        ...region(SESPARSE_AT.grains, 10 * TIB, TIB),
      ],
      12 * TIB,
    ),
  'seSparse, grains of 2^63 sectors': () => sesparse([u64(SESPARSE_AT.grains + 8, 2n ** 63n)], TIB),
  'qcow, a disk of 2^63 bytes': () => qcow(2n ** 63n, TIB),
  'qcow, a disk of 4 PiB, whose L1 table is a hole': () => qcow(2n ** 52n, TIB, qcowL1(FAR)),
  'qcow, a disk of 4 PiB and a short file': () => qcow(2n ** 52n, GIB, qcowL1(FAR)),
  'cow, a disk of 4 PiB, whose bitmap is a hole': () => cow(2n ** 52n, 2 * TIB),
  'cow, a disk of 4 PiB, all of it in the file': () => cow(2n ** 40n, 2 * TIB),
  'cow, a disk of 2^63 bytes': () => cow(2n ** 63n, TIB),
}

for (const [title, build] of Object.entries(IMAGES)) {
  t.test(title, async t => usesLittle(t, build()))
}
