/** The header: which are accepted, and the message of each refusal. */
import { truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { oneLine } from '../../../src/errors.js'
import { closeChain } from '../../../src/image/opening/chain.js'
import { openChain } from '../../../src/image/opening/open-chain.js'
import {
  type BuiltImage,
  buildImage,
  featureNames,
  type ImageSpec,
} from '../../fixtures/qcow2-builder.js'
import { tempFolder } from '../../support/run.js'

const K = 1024
const HONEST: ImageSpec = { clusterBits: 12, sizeBytes: 1000 * K + 1 }

const taken: { title: string; spec: Partial<ImageSpec>; expected: object; warnings?: RegExp[] }[] =
  [
    {
      title: 'version 2',
      spec: { version: 2 },
      expected: {
        version: 2,
        headerBytes: 72,
        refcountOrder: 4,
        incompatible: 0n,
        compression: 'zlib',
      },
    },
    {
      title: 'the shortest version 3',
      spec: { headerBytes: 104 },
      expected: { version: 3, headerBytes: 104, compression: 'zlib', sizeBytes: 1000 * K + 1 },
    },
    { title: 'fields of the future', spec: { headerBytes: 256 }, expected: { headerBytes: 256 } },
    { title: 'zstd', spec: { compression: 'zstd' }, expected: { compression: 'zstd' } },
    {
      title: 'bits of the future that may be ignored',
      spec: { compatible: 1n << 63n, autoclear: 1n << 40n },
      expected: { compatible: 1n << 63n, autoclear: 1n << 40n },
    },
    {
      title: 'a dirty image',
      spec: { incompatible: 1n },
      expected: { incompatible: 1n },
      warnings: [/not closed cleanly/],
    },
    {
      title: 'a corrupt image',
      spec: { incompatible: 2n },
      expected: { incompatible: 2n },
      warnings: [/marked corrupt/],
    },
    ...[9, 21].map(clusterBits => ({
      title: `clusters of 2^${clusterBits} bytes`,
      spec: { clusterBits },
      expected: { clusterBits },
    })),
    ...[0, 6].map(refcountOrder => ({
      title: `reference counts of 2^${refcountOrder} bits`,
      spec: { refcountOrder },
      expected: { refcountOrder },
    })),
    { title: 'no disk at all', spec: { sizeBytes: 0 }, expected: { sizeBytes: 0, l1Entries: 0 } },
    {
      title: 'more L1 entries than needed',
      spec: { l1Entries: 700 },
      expected: { l1Entries: 700 },
    },
    {
      title: 'unknown extensions',
      spec: {
        extensions: [
          { type: 0xdeadbeef, data: Buffer.from('abc') },
          featureNames([{ type: 0, bit: 0, name: 'dirty bit' }]),
          { type: 0x12345678, data: Buffer.alloc(0) },
        ],
      },
      expected: { defects: [] },
    },
    {
      title: 'extensions in version 2',
      spec: { version: 2, extensions: [{ type: 0xdeadbeef, data: Buffer.alloc(9) }] },
      expected: { defects: [] },
    },
  ]
for (const { title, spec, expected, warnings = [] } of taken) {
  t.test(title, async t => {
    const image = join(tempFolder(t), 'disk.qcow2')
    buildImage({ ...HONEST, ...spec }).write(image)
    const chain = openChain(image)
    closeChain(chain)
    t.match(chain.layers[0].spec, expected)
    t.match(chain.warnings, warnings)
    t.equal(chain.warnings.length, warnings.length)
  })
}

const u32 = (at: number, value: number) => (file: Buffer) => void file.writeUInt32BE(value, at)
const u64 = (at: number, value: bigint) => (file: Buffer) => void file.writeBigUInt64BE(value, at)
const names = featureNames([
  { type: 1, bit: 9, name: 'another table' },
  { type: 0, bit: 9, name: 'quantum\x1b[2J clusters' },
  { type: 0, bit: 63, name: 'x'.repeat(46) },
])

const refused: {
  title: string
  spec?: Partial<ImageSpec>
  damage?: (file: Buffer, built: BuiltImage) => void
  code: string
  says: RegExp
}[] = [
  {
    title: 'version 4',
    damage: u32(4, 4),
    code: 'UNSUPPORTED',
    says: /qcow2 has no version 4; versions 2 and 3/,
  },
  { title: 'version 0', damage: u32(4, 0), code: 'UNSUPPORTED', says: /no version 0/ },
  {
    title: 'an unknown feature',
    spec: { incompatible: 1n << 9n },
    code: 'UNSUPPORTED',
    says: /not known here: bit 9; /,
  },
  {
    title: 'unknown features with names',
    spec: { incompatible: (1n << 9n) | (1n << 63n) | (1n << 20n), extensions: [names] },
    code: 'UNSUPPORTED',
    says: /quantum\\x1b\[2J clusters \(bit 9\), bit 20, x{46} \(bit 63\); /,
  },
  {
    title: 'an unknown feature that changed the extensions',
    spec: { incompatible: 1n << 9n, extensions: [names, { type: 5, data: Buffer.alloc(8) }] },
    damage: u32(112 + 8 + 144 + 4, 2 ** 31),
    code: 'UNSUPPORTED',
    says: /quantum/,
  },
  {
    title: 'an unknown encryption',
    damage: u32(32, 3),
    code: 'CORRUPT',
    says: /encryption method 3/,
  },
  { title: 'a header of 96 bytes', damage: u32(100, 96), code: 'CORRUPT', says: /has 96 bytes/ },
  { title: 'a header of 108 bytes', damage: u32(100, 108), code: 'CORRUPT', says: /has 108 bytes/ },
  {
    title: 'a header longer than its cluster',
    damage: u32(100, 4104),
    code: 'CORRUPT',
    says: /has 4104 bytes/,
  },
  {
    title: 'an unknown compression',
    damage: f => {
      f.writeUInt8(2, 104)
      f.writeUInt8(8, 79)
    },
    code: 'UNSUPPORTED',
    says: /compression type 2/,
  },
  {
    title: 'zstd without its bit',
    damage: f => void f.writeUInt8(1, 104),
    code: 'CORRUPT',
    says: /contradict/,
  },
  {
    title: 'the bit of zstd without zstd',
    damage: f => void f.writeUInt8(8, 79),
    code: 'CORRUPT',
    says: /contradict/,
  },
  {
    title: 'subclusters in small clusters',
    damage: f => void f.writeUInt8(16, 79),
    code: 'CORRUPT',
    says: /16 KiB/,
  },
  {
    title: 'a data file without a name',
    damage: f => void f.writeUInt8(4, 79),
    code: 'CORRUPT',
    says: /does not name/,
  },
  {
    title: 'an L1 table an entry too short',
    spec: { sizeBytes: 4096 * K + 1 },
    damage: u32(36, 2),
    code: 'CORRUPT',
    says: /2 entries and the disk needs 3/,
  },
  {
    title: 'a backing file name of 1024 bytes',
    damage: f => {
      u64(8, 512n)(f)
      u32(16, 1024)(f)
    },
    code: 'CORRUPT',
    says: /has 1024 bytes at 512/,
  },
]
for (const { title, spec, damage, code, says } of refused) {
  t.test(title, async t => {
    const image = join(tempFolder(t), 'disk.qcow2')
    const built = buildImage({ ...HONEST, ...spec })
    const file = built.bytes()
    damage?.(file, built)
    writeFileSync(image, file)
    try {
      openChain(image)
      t.fail('it was opened')
    } catch (error) {
      t.match(error, { name: 'ImageError', code, context: { path: image, hint: /\w/ } })
      t.match(oneLine(error as Error), says)
      t.notMatch(oneLine(error as Error), /[\x00-\x1f]/)
    }
  })
}

t.test('a refcount table that ends in a hole past the end of the file', async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  const file = buildImage({ clusterBits: 9, sizeBytes: 1024 }).bytes()
  // Moved to where the file ends, as a table that was made large and is not filled yet.
  const table = Buffer.alloc(512)
  file.copy(table, 0, Number(file.readBigUInt64BE(48)), Number(file.readBigUInt64BE(48)) + 8)
  u64(48, BigInt(file.length))(file)
  u32(56, 8)(file)
  writeFileSync(image, Buffer.concat([file, table]))
  closeChain(openChain(image))
  truncateSync(image, file.length)
  const chain = openChain(image)
  closeChain(chain)
  t.match(chain.warnings, [/refcount table at \d+ lies beyond/])
})
