/** The header: which are accepted, and the message of each refusal. */
import t from 'tap'
import { ImageError, oneLine } from '../../../src/errors.js'
import { readQcowHeader } from '../../../src/formats/qcow/header.js'
import { buildQcow, HEADER_AT, HEADER_BYTES, type QcowSpec } from '../../fixtures/qcow-builder.js'
import { MemoryStore } from '../../support/stores.js'

const K = 1024
const T = K ** 4
const HONEST: QcowSpec = { sizeBytes: 1000 * K + 1 }

const storeOf = (bytes: Buffer) => new MemoryStore('disk.qcow', bytes)
const headerOf = (spec: Partial<QcowSpec>) =>
  readQcowHeader(storeOf(buildQcow({ ...HONEST, ...spec }).bytes))

const taken: { title: string; spec: Partial<QcowSpec>; expected: object }[] = [
  {
    title: 'as QEMU makes it',
    spec: {},
    expected: {
      backingName: undefined,
      backingNameOffset: 0,
      backingNameBytes: 0,
      sizeBytes: 1000 * K + 1,
      clusterBits: 12,
      l2Bits: 9,
      cryptMethod: 0,
      l1Offset: 48,
      l1Entries: 1,
    },
  },
  {
    title: 'as QEMU makes it over another image',
    spec: { backingName: 'base.qcow2', clusterBits: 9, l2Bits: 12 },
    expected: {
      backingName: 'base.qcow2',
      backingNameOffset: 48,
      backingNameBytes: 10,
      l1Offset: 64,
    },
  },
  { title: 'a name of 1023 bytes', spec: { backingName: 'é'.repeat(511) }, expected: {} },
  { title: 'the least disk', spec: { sizeBytes: 2 }, expected: { sizeBytes: 2, l1Entries: 1 } },
  { title: 'encrypted', spec: { cryptMethod: 1 }, expected: { cryptMethod: 1 } },
  ...[9, 16].flatMap(clusterBits =>
    [6, 13].map(l2Bits => ({
      title: `clusters of 2^${clusterBits} bytes and tables of 2^${l2Bits} entries`,
      spec: { clusterBits, l2Bits, sizeBytes: 2 ** (clusterBits + l2Bits) + 1 },
      expected: { clusterBits, l2Bits, l1Entries: 2 },
    })),
  ),
]

for (const { title, spec, expected } of taken) {
  t.test(`taken: ${title}`, async t => {
    t.match(headerOf(spec), expected)
  })
}

type Damage = (bytes: Buffer) => Buffer
const at =
  (field: keyof typeof HEADER_AT, write: 'UInt8' | 'UInt32BE', value: number): Damage =>
  bytes => {
    bytes[`write${write}`](value, HEADER_AT[field])
    return bytes
  }
const at64 =
  (field: keyof typeof HEADER_AT, value: bigint): Damage =>
  bytes => {
    bytes.writeBigUInt64BE(value, HEADER_AT[field])
    return bytes
  }
const all =
  (...damages: Damage[]): Damage =>
  bytes =>
    damages.reduce((damaged, damage) => damage(damaged), bytes)

const refused: { title: string; damage: Damage; words: RegExp; code?: string }[] = [
  {
    title: 'cut off',
    damage: bytes => bytes.subarray(0, 47),
    words: /the qcow header is cut off after 47 bytes; restore/,
    code: 'NOT_AN_IMAGE',
  },
  {
    title: 'nothing',
    damage: () => Buffer.alloc(0),
    words: /cut off after 0 bytes/,
    code: 'NOT_AN_IMAGE',
  },
  {
    title: 'another magic',
    damage: at('magic', 'UInt32BE', 0x4b444d56),
    words: /this is no qcow image/,
    code: 'NOT_AN_IMAGE',
  },
  {
    title: 'version 2',
    damage: at('version', 'UInt32BE', 2),
    words: /this is qcow2, version 2, and not qcow; leave out --format to have its format found/,
    code: 'UNSUPPORTED',
  },
  {
    title: 'a disk of nothing',
    damage: at64('sizeBytes', 0n),
    words: /the disk has 0 bytes, below 2/,
  },
  {
    title: 'a disk of one byte',
    damage: at64('sizeBytes', 1n),
    words: /the disk has 1 bytes, below 2/,
  },
  {
    title: 'a disk of 2^64 - 1 bytes',
    damage: at64('sizeBytes', 2n ** 64n - 1n),
    words: /the disk is too large/,
    code: 'UNSUPPORTED',
  },
  {
    title: 'a disk whose L1 table would be too large',
    damage: all(at('clusterBits', 'UInt8', 9), at64('sizeBytes', 2n ** 52n)),
    words: /a disk of 4503599627370496 bytes needs 17179869184 L1 entries, above 268435455/,
  },
  {
    title: '152 TiB in 560 bytes',
    damage: at64('sizeBytes', 152n * BigInt(T)),
    words: /the L1 table of 79691776 entries at 48 lies beyond the end of the file \(560 bytes\)/,
  },
  ...[0, 8, 17, 255].map(bits => ({
    title: `clusters of 2^${bits} bytes`,
    damage: at('clusterBits', 'UInt8', bits),
    words: new RegExp(`the header gives bytes of a cluster of 2\\^${bits}, not 2\\^9 to 2\\^16`),
  })),
  ...[0, 5, 14, 255].map(bits => ({
    title: `tables of 2^${bits} entries`,
    damage: at('l2Bits', 'UInt8', bits),
    words: new RegExp(
      `the header gives entries of an L2 table of 2\\^${bits}, not 2\\^6 to 2\\^13`,
    ),
  })),
  ...[2, 0x80000001].map(method => ({
    title: `encryption method ${method}`,
    damage: at('cryptMethod', 'UInt32BE', method),
    words: new RegExp(`encryption method ${method} is not known`),
  })),
  {
    title: 'the L1 table over the header',
    damage: at64('l1Offset', 40n),
    words: /the L1 table at 40 lies over the header/,
  },
  {
    title: 'the L1 table between words',
    damage: at64('l1Offset', 51n),
    words: /the L1 table at 51 is not aligned to its entries/,
  },
  {
    title: 'the L1 table past the end of the file',
    damage: at64('l1Offset', 560n),
    words: /the L1 table of 1 entries at 560 lies beyond the end of the file/,
  },
  {
    title: 'the L1 table beyond all numbers',
    damage: at64('l1Offset', 2n ** 63n),
    words: /the header is damaged/,
  },
  {
    title: 'a backing name of 1024 bytes',
    damage: all(at64('backingOffset', 48n), at('backingBytes', 'UInt32BE', 1024)),
    words: /the backing file's name has 1024 bytes, above 1023/,
  },
  {
    title: 'a backing name of 4 GiB',
    damage: all(at64('backingOffset', 48n), at('backingBytes', 'UInt32BE', 0xffffffff)),
    words: /name has 4294967295 bytes/,
  },
  {
    title: 'a backing name past the end of the file',
    damage: all(at64('backingOffset', 559n), at('backingBytes', 'UInt32BE', 2)),
    words: /the backing file's name at 559 lies beyond the end of the file/,
  },
  {
    title: 'a backing name with a NUL',
    damage: all(at64('backingOffset', 2n), at('backingBytes', 'UInt32BE', 8)),
    words: /the backing file's name has a NUL byte/,
  },
]

for (const { title, damage, words, code = 'CORRUPT' } of refused) {
  t.test(`refused: ${title}`, async t => {
    const bytes = damage(buildQcow(HONEST).bytes)
    try {
      readQcowHeader(storeOf(bytes))
      t.fail('taken')
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      t.equal(error.code, code)
      t.match(oneLine(error), words)
      t.match(oneLine(error), /^disk\.qcow: [^\n]*; /, 'with the file and a way out')
    }
  })
}

t.test('a backing name without a place, or without bytes, is none', async t => {
  for (const damage of [at('backingBytes', 'UInt32BE', 5000), at64('backingOffset', 2n ** 40n)]) {
    const { backingName } = readQcowHeader(storeOf(damage(buildQcow(HONEST).bytes)))
    t.equal(backingName, undefined)
  }
})

t.test('reading the header takes nothing by the image’s word', async t => {
  // 2 GiB of L1 table in a hole.
  const spec = { sizeBytes: 2 ** 40, clusterBits: 9, l2Bits: 6 }
  const store = storeOf(buildQcow({ ...spec, sizeBytes: 2 }).bytes)
  const size = Buffer.alloc(8)
  size.writeBigUInt64BE(BigInt(spec.sizeBytes))
  store.write(size, 0, 8, HEADER_AT.sizeBytes)
  store.truncate(HEADER_BYTES + 2 ** 25 * 8)
  t.equal(readQcowHeader(store).l1Entries, 2 ** 25)
})
