/** The header of sparse extents: which are accepted, the message of each refusal, and random bytes. */
import t from 'tap'
import { ImageError, oneLine, SystemError } from '../../../src/errors.js'
import {
  readEmbeddedDescriptor,
  readSparseHeader,
  type SparseHeader,
} from '../../../src/formats/vmdk/sparse-header.js'
import { noise } from '../../fixtures/model.js'
import {
  type BuiltExtent,
  buildExtent,
  type ExtentSpec,
  type Grain,
  HEADER_AT,
  packed,
} from '../../fixtures/vmdk-builder.js'
import { MemoryStore } from '../../support/stores.js'

const K = 1024
const SECTOR = 512
const data = (seed: number): Grain => ({ kind: 'data', bytes: noise(4 * K, seed) })

/** Five tables of four grains of 4 KiB. */
const PLAIN: ExtentSpec = {
  capacitySectors: 150,
  grainSectors: 8,
  tableEntries: 4,
  grains: new Map([
    [0, data(1)],
    [18, data(2)],
  ]),
}
const STREAM: ExtentSpec = {
  ...PLAIN,
  isCompressed: true,
  isStream: true,
  grains: new Map([[0, packed(noise(4 * K, 1))]]),
}
const TEXT = '# Disk DescriptorFile\nversion=1\n'

const headerOf = (bytes: Buffer): SparseHeader => readSparseHeader(new MemoryStore('x.vmdk', bytes))

const usual = buildExtent(PLAIN)
const atEnd = buildExtent(STREAM)
const taken: { title: string; spec: ExtentSpec; expected: Partial<SparseHeader> }[] = [
  {
    title: 'two directories',
    spec: PLAIN,
    expected: {
      version: 1,
      capacityBytes: 150 * SECTOR,
      grainBytes: 4 * K,
      tableEntries: 4,
      directoryAt: usual.directoryAt,
      redundantDirectoryAt: usual.redundantDirectoryAt,
      isCompressed: false,
      hasZeroGrains: false,
      isUnclean: false,
      descriptor: undefined,
      warnings: [],
    },
  },
  {
    title: 'one directory',
    spec: { ...PLAIN, hasRedundant: false },
    expected: { redundantDirectoryAt: undefined, directoryAt: SECTOR },
  },
  {
    title: 'zeroed grains',
    spec: { ...PLAIN, hasZeroGrains: true },
    expected: { version: 2, hasZeroGrains: true, warnings: [] },
  },
  {
    title: 'a stream',
    spec: STREAM,
    expected: {
      version: 3,
      isCompressed: true,
      directoryAt: atEnd.directoryAt,
      redundantDirectoryAt: undefined,
      warnings: [],
    },
  },
  { title: 'version 3', spec: { ...PLAIN, version: 3 }, expected: { version: 3 } },
  {
    title: 'an unclean one',
    spec: { ...PLAIN, isUnclean: true },
    expected: {
      isUnclean: true,
      warnings: ['it was not closed cleanly: what was written last may be missing'],
    },
  },
  {
    title: 'a descriptor',
    spec: { ...PLAIN, descriptor: TEXT },
    expected: { descriptor: { offset: SECTOR, bytes: 20 * SECTOR } },
  },
  ...[1, 0x200000].map(grainSectors => ({
    title: `grains of ${grainSectors} sectors`,
    spec: { capacitySectors: 150, grainSectors, grains: new Map(), leavesOutTables: true },
    expected: { grainBytes: grainSectors * SECTOR },
  })),
  ...[1, 512].map(tableEntries => ({
    title: `tables of ${tableEntries} entries`,
    spec: { ...PLAIN, tableEntries },
    expected: { tableEntries },
  })),
]
for (const { title, spec, expected } of taken) {
  t.test(title, async t => {
    const built = buildExtent(spec)
    const header = headerOf(built.bytes)
    t.match(header, expected)
    for (const [key, value] of Object.entries(expected)) {
      t.same(header[key as keyof SparseHeader], value, key)
    }
    t.same(structuredClone(header), header)
  })
}

t.test('the descriptor within an extent', async t => {
  const store = new MemoryStore('x.vmdk', buildExtent({ ...PLAIN, descriptor: TEXT }).bytes)
  const text = readEmbeddedDescriptor(store, readSparseHeader(store))?.text
  t.equal(text?.toString(), TEXT, 'up to the first NUL')
  const full = Buffer.alloc(20 * SECTOR, 'x')
  const whole = new MemoryStore('x.vmdk', buildExtent({ ...PLAIN, descriptor: full }).bytes)
  t.ok(readEmbeddedDescriptor(whole, readSparseHeader(whole))?.text.equals(full), 'without a NUL')
  const header = headerOf(buildExtent(PLAIN).bytes)
  t.equal(readEmbeddedDescriptor(store, header), undefined)
})

t.test('an extent that is there for its descriptor only', async t => {
  const { bytes } = buildExtent({ ...PLAIN, descriptor: TEXT })
  bytes.writeBigUInt64LE(0n, HEADER_AT.capacity)
  bytes.writeBigUInt64LE(0n, HEADER_AT.grain)
  bytes.writeUInt32LE(0, HEADER_AT.tableEntries)
  const store = new MemoryStore('x.vmdk', bytes)
  const header = readSparseHeader(store)
  t.match(header, { capacityBytes: 0, descriptor: { offset: SECTOR } })
  t.equal(readEmbeddedDescriptor(store, header)?.text.toString(), TEXT)
})

const put64 = (at: number, value: bigint) => (b: Buffer) => void b.writeBigUInt64LE(value, at)
const put32 = (at: number, value: number) => (b: Buffer) => void b.writeUInt32LE(value, at)
const MAX = 2n ** 64n - 1n

const refused: {
  title: string
  spec?: ExtentSpec
  /** Changes the bytes, or returns others. */
  change: (bytes: Buffer, built: BuiltExtent) => unknown
  expected: [string, RegExp]
}[] = [
  { title: 'nothing', change: () => Buffer.alloc(0), expected: ['NOT_AN_IMAGE', /cut off/] },
  {
    title: 'half a header',
    change: b => b.subarray(0, 300),
    expected: ['NOT_AN_IMAGE', /cut off/],
  },
  { title: 'another magic', change: put32(0, 0x1234), expected: ['NOT_AN_IMAGE', /"KDMV"/] },
  ...[0, 4, 2 ** 31].map(version => ({
    title: `version ${version}`,
    change: put32(HEADER_AT.version, version),
    expected: ['UNSUPPORTED', new RegExp(`no version ${version} `)] as [string, RegExp],
  })),
  ...[18, 25, 31].map(bit => ({
    title: `flag ${bit}`,
    change: put32(HEADER_AT.flags, (1 | (1 << bit)) >>> 0),
    expected: ['UNSUPPORTED', /unknown flags, 0x[0-9a-f]+0000/] as [string, RegExp],
  })),
  {
    title: 'a transfer as text',
    change: b => void b.write('\n \n\n', HEADER_AT.newlines),
    expected: ['CORRUPT', /newline .*transfer it again, as binary/],
  },
  ...[0n, 3n, 0x400000n, 2n ** 63n, MAX].map(grain => ({
    title: `grains of ${grain} sectors`,
    change: put64(HEADER_AT.grain, grain),
    expected: ['CORRUPT', /gives grains of \d+ sectors, not a power of two/] as [string, RegExp],
  })),
  ...[0, 3, 511].map(entries => ({
    title: `tables of ${entries} entries`,
    change: put32(HEADER_AT.tableEntries, entries),
    expected: ['CORRUPT', /entries, no power of two/] as [string, RegExp],
  })),
  ...[1024, 2 ** 31].map(entries => ({
    title: `tables of ${entries} entries`,
    change: put32(HEADER_AT.tableEntries, entries),
    expected: ['UNSUPPORTED', /only up to 512/] as [string, RegExp],
  })),
  ...[2n ** 44n, MAX].map(capacity => ({
    title: `a disk of ${capacity} sectors`,
    change: put64(HEADER_AT.capacity, capacity),
    expected: ['UNSUPPORTED', /the disk is too large: it has \d+ bytes/] as [string, RegExp],
  })),
  {
    title: 'too long a directory',
    change: put64(HEADER_AT.capacity, 2n ** 43n),
    expected: ['UNSUPPORTED', /a grain directory of 274877906944 entries/],
  },
  {
    title: 'a longer directory than the file',
    change: put64(HEADER_AT.capacity, 2n ** 25n),
    expected: ['CORRUPT', /the grain directory at \d+ lies beyond the end/],
  },
  {
    title: 'no disk and no descriptor',
    change: put64(HEADER_AT.capacity, 0n),
    expected: ['CORRUPT', /neither a disk nor a descriptor/],
  },
  {
    title: 'a descriptor beyond the end',
    spec: { ...PLAIN, descriptor: TEXT },
    change: put64(HEADER_AT.descriptorOffset, MAX),
    expected: ['CORRUPT', /the descriptor at \S+ lies beyond/],
  },
  {
    title: 'too long a descriptor',
    spec: { ...PLAIN, descriptor: TEXT },
    change: put64(HEADER_AT.descriptorSize, 2n ** 30n),
    expected: ['CORRUPT', /the descriptor has \d+ bytes/],
  },
  ...[0n, 2n ** 33n, MAX - 1n].map(directory => ({
    title: `a directory at sector ${directory} and no other`,
    spec: { ...PLAIN, hasRedundant: false },
    change: put64(HEADER_AT.directory, directory),
    expected: ['CORRUPT', /the grain directory at \S+ lies beyond/] as [string, RegExp],
  })),
  {
    title: 'a method of compression without its flag',
    change: b => void b.writeUInt16LE(1, HEADER_AT.compression),
    expected: ['CORRUPT', /contradict each other/],
  },
  {
    title: 'a flag of compression without its method',
    change: put32(HEADER_AT.flags, 0x30001),
    expected: ['CORRUPT', /contradict each other/],
  },
  {
    title: 'markers without compression',
    change: put32(HEADER_AT.flags, 0x20001),
    expected: ['CORRUPT', /contradict each other/],
  },
  {
    title: 'another method of compression',
    change: b => void b.writeUInt16LE(0x100, HEADER_AT.compression),
    expected: ['UNSUPPORTED', /compression method 256/],
  },
  {
    title: 'compression without markers',
    spec: { ...STREAM, isStream: false },
    change: put32(HEADER_AT.flags, 0x10001),
    expected: ['UNSUPPORTED', /no markers/],
  },
  {
    title: 'compressed grains of 4 MiB',
    spec: { ...STREAM, isStream: false },
    change: put64(HEADER_AT.grain, 8192n),
    expected: ['UNSUPPORTED', /compressed grains of 4194304 bytes/],
  },
  ...[1, 512, 1024, 1536, 1537, 4096].map(missing => ({
    title: `a stream without its last ${missing} bytes`,
    spec: STREAM,
    change: (b: Buffer) => b.subarray(0, b.length - missing),
    expected: ['CORRUPT', /a stream that was cut short/] as [string, RegExp],
  })),
  {
    title: 'a stream with nothing but its header',
    spec: STREAM,
    change: b => b.subarray(0, SECTOR),
    expected: ['CORRUPT', /a stream that was cut short/],
  },
  {
    title: 'a stream with more after its end',
    spec: STREAM,
    change: b => Buffer.concat([b, Buffer.alloc(SECTOR)]),
    expected: ['CORRUPT', /a stream that was cut short/],
  },
  {
    title: 'a stream without a footer between its markers',
    spec: STREAM,
    change: (b, { footerAt }) => void b.fill(0, footerAt, footerAt + SECTOR),
    expected: ['CORRUPT', /the footer of a sparse extent begins with "KDMV"/],
  },
  ...[0, 8, 12].map(at => ({
    title: `a stream whose last marker differs in its byte ${at}`,
    spec: STREAM,
    change: (b: Buffer) => void b.writeUInt8(9, b.length - SECTOR + at),
    expected: ['CORRUPT', /a stream that was cut short/] as [string, RegExp],
  })),
  {
    title: 'a footer that names no directory',
    spec: STREAM,
    change: (b, { footerAt }) => put64(footerAt + HEADER_AT.directory, MAX)(b),
    expected: ['CORRUPT', /the footer names no grain directory/],
  },
  {
    title: 'a footer of no disk',
    spec: STREAM,
    change: (b, { footerAt }) => put64(footerAt + HEADER_AT.capacity, 0n)(b),
    expected: ['CORRUPT', /the footer gives a disk of no sectors/],
  },
]
for (const { title, spec = PLAIN, change, expected } of refused) {
  t.test(`refused: ${title}`, async t => {
    const built = buildExtent(spec)
    const changed = change(built.bytes, built)
    const bytes = changed instanceof Buffer ? changed : built.bytes
    const [code, line] = expected
    const error = t.throws(() => headerOf(bytes), { code })
    t.ok(error instanceof ImageError)
    t.match(oneLine(error as ImageError), line)
    t.match(oneLine(error as ImageError), /^x\.vmdk: .*; /, 'names the file, and says what to do')
  })
}

t.test('a damaged directory, and the redundant one', async t => {
  const damages: ((b: Buffer, built: BuiltExtent) => void)[] = [
    (b, { directoryAt }) => void b.writeUInt32LE(0xfffffff0, directoryAt + 4),
    b => put64(HEADER_AT.directory, MAX - 1n)(b),
    b => put64(HEADER_AT.directory, 0n)(b),
    (b, { directoryAt }) => void b.writeUInt32LE(b.length / SECTOR, directoryAt + 16),
  ]
  for (const damage of damages) {
    const built = buildExtent(PLAIN)
    damage(built.bytes, built)
    const header = headerOf(built.bytes)
    t.equal(header.directoryAt, built.redundantDirectoryAt)
    t.equal(header.redundantDirectoryAt, undefined)
    t.match(header.warnings, [/redundant one is read instead/])
  }
  const built = buildExtent(PLAIN)
  built.bytes.writeUInt32LE(0xfffffff0, built.directoryAt + 4)
  built.bytes.writeUInt32LE(0xfffffff0, built.redundantDirectoryAt + 8)
  const both = headerOf(built.bytes)
  t.equal(both.directoryAt, built.directoryAt, 'neither is whole: entry by entry')
  t.equal(both.redundantDirectoryAt, built.redundantDirectoryAt)
  t.match(both.warnings, [/^1 of its 5 grain tables lie beyond the end of the file$/])
  const unused = buildExtent(PLAIN)
  unused.bytes.writeUInt32LE(1, HEADER_AT.flags)
  t.equal(headerOf(unused.bytes).redundantDirectoryAt, undefined, 'one that nobody keeps up')
})

t.test('only a part of a long directory is kept at a time', async t => {
  const capacitySectors = 8 * 2 ** 20
  const spec = { capacitySectors, grainSectors: 8, tableEntries: 1, leavesOutTables: true }
  const { bytes, directoryAt } = buildExtent({ ...spec, hasRedundant: false })
  const store = new MemoryStore('x.vmdk', bytes)
  const asked: number[] = []
  const counting = {
    path: 'x.vmdk',
    sizeBytes: store.sizeBytes,
    read: (target: Buffer, start: number, length: number, at: number) => {
      asked.push(length)
      return store.read(target, start, length, at)
    },
    nextData: (at: number) => at,
    nextHole: () => store.sizeBytes,
  }
  t.equal(readSparseHeader(counting).directoryAt, directoryAt)
  t.ok(Math.max(...asked) <= 64 * K)
  t.equal(
    asked.reduce((a, b) => a + b),
    SECTOR + 4 * 2 ** 20,
  )
})

t.test('any bytes at all', async t => {
  const rolls = noise(64 * K, 77)
  const extents = [PLAIN, STREAM, { ...PLAIN, descriptor: TEXT }].map(spec => buildExtent(spec))
  let refusals = 0
  let roll = 0
  const next = () => rolls[roll++ % rolls.length] as number
  for (let round = 0; round < 3000; round++) {
    const { bytes, footerAt } = extents[round % extents.length] as BuiltExtent
    const copy = Buffer.from(bytes)
    const base = footerAt > 0 && next() % 2 ? footerAt : 0
    for (let changes = 1 + (next() % 3); changes > 0; changes--) {
      const at = next() % 3 ? next() % 80 : next() * 8 + (next() % 8)
      copy[(base + at) % copy.length] = next() % 3 ? next() : 0xff
    }
    const store = new MemoryStore('x.vmdk', copy)
    try {
      readEmbeddedDescriptor(store, readSparseHeader(store))
    } catch (error) {
      refusals++
      if (!(error instanceof ImageError || error instanceof SystemError)) throw error
    }
  }
  t.ok(refusals > 500 && refusals < 3000, `${refusals} refusals`)
})
