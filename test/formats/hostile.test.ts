/**
 * Images that nobody made in good faith, and damaged ones: one line that says what, or a mount that
 * gives errors where the damage is; never a hang, nor memory by an image's word.
 */
import { closeSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { noise, prose } from '../fixtures/model.js'
import { deflate, deflated, zstdFrame } from '../fixtures/packers.js'
import {
  type BuiltImage,
  buildImage,
  type Cluster,
  type ImageSpec,
} from '../fixtures/qcow2-builder.js'
import { tempFolder } from '../support/run.js'
import { Watchdog } from '../support/watchdog.js'

const K = 1024
const MAX_GROWTH_BYTES = 150 * K * K

const data = (bytes: number, seed: number): Cluster => ({ kind: 'data', bytes: noise(bytes, seed) })

/** A sound disk; each case below changes one thing about it. */
const HONEST: ImageSpec = {
  clusterBits: 12,
  sizeBytes: 1024 * K,
  clusters: new Map<number, Cluster>([
    [0, data(4 * K, 1)],
    [1, data(4 * K, 2)],
    [5, deflated(prose(4 * K, 3))],
    [100, { kind: 'zero' }],
  ]),
  snapshots: [{ name: 'one', clusters: new Map([[0, data(4 * K, 4)]]) }],
}

interface Case {
  title: string
  spec?: Partial<ImageSpec>
  damage?: (file: Buffer, built: BuiltImage) => Buffer | undefined
  /** What opening must say. Without it the image opens. */
  says?: RegExp
  code?: string
  /** Whether a read, a seek or a count meets the damage. */
  isDamaged?: boolean
}

const u32 = (at: number, value: number) => (file: Buffer) => {
  file.writeUInt32BE(value, at)
  return file
}
const u64 = (at: number, value: bigint) => (file: Buffer) => {
  file.writeBigUInt64BE(value, at)
  return file
}

const snapshot = (more: object) => ({ snapshots: [{ name: 'one', ...more }] })
/** As much as two clusters of compressed bytes can hold. */
const BOMB = deflate(Buffer.alloc(7 * K * K))

const ZSTD_MAGIC = Buffer.from([0x28, 0xb5, 0x2f, 0xfd])
const zstd = (packed: Buffer): Partial<ImageSpec> => ({
  compression: 'zstd',
  snapshots: [],
  clusters: new Map([[0, { kind: 'packed', packed, content: Buffer.alloc(0) }]]),
})

const cases: Case[] = [
  { title: 'nothing is false' },
  {
    title: 'an empty file',
    damage: () => Buffer.alloc(0),
    says: /no disk image: it has 0 bytes|no qcow2 image/,
    code: 'NOT_AN_IMAGE',
  },
  {
    title: 'a text',
    damage: () => Buffer.from('hello'.repeat(500)),
    says: /no qcow2 image/,
    code: 'NOT_AN_IMAGE',
  },
  ...[4, 8, 71, 72, 100, 103].map(bytes => ({
    title: `${bytes} bytes of a header`,
    damage: (file: Buffer) => file.subarray(0, bytes),
    says: /cut off after \d+ bytes/,
    code: 'NOT_AN_IMAGE',
  })),
  {
    title: 'a header and nothing else',
    damage: file => file.subarray(0, 4 * K),
    says: /lies beyond the end of the file/,
    code: 'CORRUPT',
  },
  {
    title: 'an L1 table of 2^32 entries',
    damage: u32(36, 2 ** 32 - 1),
  },
  {
    title: 'a disk of 2^60 bytes',
    damage: u64(24, 1n << 60n),
    says: /disk is too large: it has about 1152921504606847000 bytes/,
    code: 'UNSUPPORTED',
  },
  {
    title: 'a disk that needs 2^40 L1 entries',
    damage: u64(24, 1n << 52n),
    says: /the disk needs 2147483648/,
    code: 'CORRUPT',
  },
  {
    title: 'an L1 table of no entries',
    damage: u32(36, 0),
    says: /has 0 entries and the disk needs/,
    code: 'CORRUPT',
  },
  {
    title: 'an L1 table beyond the end',
    damage: u64(40, 1n << 40n),
    says: /L1 table at 1099511627776 lies beyond/,
    code: 'CORRUPT',
  },
  {
    title: 'an L1 table that is not aligned',
    damage: u64(40, 0x3008n),
    says: /L1 table at 12296 is not aligned/,
    code: 'CORRUPT',
  },
  {
    title: 'an L1 table over the header',
    damage: u64(40, 0n),
    says: /L1 table overlaps the header/,
    code: 'CORRUPT',
  },
  {
    title: 'an L1 table over the refcount table',
    damage: (f, b) => u64(40, BigInt(b.refcountTableAt))(f),
    says: /overlaps/,
    code: 'CORRUPT',
  },
  {
    title: 'a snapshot table over the L1 table',
    damage: (f, b) => u64(64, BigInt(b.l1At))(f),
    says: /overlaps/,
    code: 'CORRUPT',
  },
  {
    title: '2^32 snapshots',
    damage: u32(60, 2 ** 32 - 1),
  },
  {
    title: 'more snapshots than the table has',
    damage: u32(60, 500),
  },
  {
    title: 'a snapshot table beyond the end',
    damage: u64(64, 1n << 50n),
  },
  {
    title: 'a snapshot table that is not aligned',
    damage: (f, b) => u64(64, BigInt(b.snapshotsAt + 8))(f),
  },
  {
    title: 'a snapshot with 2^32 bytes of extra data',
    damage: (f, b) => u32(b.snapshotsAt + 36, 2 ** 32 - 1)(f),
  },
  {
    title: 'a snapshot whose L1 table has 2^32 entries',
    damage: (f, b) => u32(b.snapshotsAt + 8, 2 ** 32 - 1)(f),
    isDamaged: true,
  },
  {
    title: 'a snapshot whose L1 table is not aligned',
    damage: (f, b) => u64(b.snapshotsAt, 0x1234n)(f),
    isDamaged: true,
  },
  {
    title: 'a snapshot whose L1 table lies beyond the end',
    damage: (f, b) => u64(b.snapshotsAt, 1n << 40n)(f),
    isDamaged: true,
  },
  {
    title: 'a snapshot whose L1 table lies beyond 2^53',
    damage: (f, b) => u64(b.snapshotsAt, 1n << 60n)(f),
  },
  {
    title: "a snapshot whose L1 table is the disk's, but longer",
    damage: (f, b) => u32(b.snapshotsAt + 8, 64)(u64(b.snapshotsAt, BigInt(b.l1At))(f)),
  },
  { title: 'a snapshot of 2^52 bytes', spec: snapshot({ sizeBytes: 2 ** 52, l1Entries: 1 }) },
  {
    title: 'a snapshot of 2^60 bytes',
    damage: (f, b) => u64(b.snapshotsAt + 48, 1n << 60n)(f),
  },
  { title: 'a VM state of 2^52 bytes', damage: (f, b) => u64(b.snapshotsAt + 40, 1n << 52n)(f) },
  {
    title: 'a snapshot with a name of 64 KiB',
    spec: snapshot({ name: 'x'.repeat(65535), id: 'y'.repeat(65535) }),
  },
  {
    title: '65536 snapshots of one name and one ID',
    spec: {
      clusterBits: 9,
      sizeBytes: K,
      clusters: new Map(),
      snapshots: Array.from({ length: 65536 }, () => ({ name: 'same', id: '1', l1Entries: 0 })),
    },
  },
  {
    title: 'a snapshot name of control characters',
    spec: snapshot({ name: '\x1b[2J\n\r\0/../..\u2028', id: '\n' }),
  },
  {
    title: 'a backing file name beyond the cluster',
    damage: u64(8, 5000n),
    says: /backing file name at 5000/,
    code: 'CORRUPT',
  },
  {
    title: 'a backing file name of 2^32 bytes',
    damage: f => u32(16, 2 ** 32 - 1)(u64(8, 200n)(f)),
    says: /backing file name has 4294967295 bytes/,
    code: 'CORRUPT',
  },
  {
    title: 'a backing file name with a NUL',
    spec: { backing: { name: 'a\0b', format: 'raw' } },
    says: /holds a NUL/,
    code: 'CORRUPT',
  },
  {
    title: 'a backing file name of lines',
    spec: { backing: { name: 'a\nb\x1b[2Jc', format: 'raw' } },
    says: /a\\x0ab\\x1b\[2Jc/,
    code: 'MISSING',
  },
  {
    title: 'a header extension of 2^32 bytes',
    spec: { extensions: [{ type: 0x11111111, data: Buffer.alloc(8) }] },
    damage: u32(116, 2 ** 32 - 1),
  },
  {
    title: 'clusters of 2^30 bytes',
    damage: u32(20, 30),
    says: /clusters of 2\^30 bytes/,
    code: 'CORRUPT',
  },
  {
    title: 'clusters of 2^8 bytes',
    damage: u32(20, 8),
    says: /clusters of 2\^8 bytes/,
    code: 'CORRUPT',
  },
  {
    title: 'a header of 2^32 bytes',
    damage: u32(100, 2 ** 32 - 8),
    says: /says that it has 4294967288 bytes/,
    code: 'CORRUPT',
  },
  {
    title: 'a refcount table of 2^32 clusters',
    damage: u32(56, 2 ** 32 - 1),
  },
  {
    title: 'an L2 table beyond the end',
    damage: (f, b) => u64(b.l1At, 1n << 40n)(f),
    isDamaged: true,
  },
  {
    title: 'an L2 table beyond 2^53',
    damage: (f, b) => u64(b.l1At, 0x00ff_ffff_ffff_f000n)(f),
    isDamaged: true,
  },
  {
    title: 'an L2 table that is not aligned',
    damage: (f, b) => u64(b.l1At, BigInt(b.l1At + 512))(f),
    isDamaged: true,
  },
  {
    title: 'an L2 table that is the L1 table',
    damage: (f, b) => u64(b.l1At, BigInt(b.l1At))(f),
  },
  { title: 'an L2 table that is the header', damage: (f, b) => u64(b.l1At, 0n)(f) },
  {
    title: 'a cluster beyond the end',
    damage: (f, b) => u64(b.l2EntryAt(0), 1n << 40n)(f),
    isDamaged: true,
  },
  {
    title: 'a cluster that is not aligned',
    damage: (f, b) => u64(b.l2EntryAt(0), 0x1200n)(f),
    isDamaged: true,
  },
  {
    title: 'a compressed cluster beyond the end',
    damage: (f, b) => u64(b.l2EntryAt(5), (1n << 62n) | (1n << 40n))(f),
    isDamaged: true,
  },
  {
    title: 'a compressed cluster beyond 2^53',
    damage: (f, b) => u64(b.l2EntryAt(5), (1n << 62n) | (1n << 57n))(f),
    isDamaged: true,
  },
  {
    title: 'a compressed cluster that inflates 1000-fold',
    spec: {
      clusters: new Map([
        [0, { kind: 'packed', packed: BOMB, content: Buffer.alloc(0) } as Cluster],
      ]),
    },
  },
  {
    title: 'a compressed cluster that is cut off',
    damage: (f, b) => f.subarray(0, b.placeOf(HONEST.clusters?.get(5) as Cluster) + 3),
    isDamaged: true,
  },
  {
    title: 'a compressed cluster of noise',
    spec: {
      clusters: new Map([
        [0, { kind: 'packed', packed: noise(900, 1), content: Buffer.alloc(0) } as Cluster],
      ]),
    },
    isDamaged: true,
  },
  {
    title: 'a frame that claims 2^40 bytes',
    spec: zstd(Buffer.concat([ZSTD_MAGIC, Buffer.from('e0000000000001000001000001', 'hex')])),
    isDamaged: true,
  },
  {
    title: 'a frame that claims 1.9 GiB',
    spec: zstd(
      Buffer.concat([ZSTD_MAGIC, Buffer.from('a000000079010000', 'hex'), Buffer.from('ab', 'hex')]),
    ),
    isDamaged: true,
  },
  {
    title: 'a frame with a window of 1 GiB',
    spec: zstd(
      Buffer.concat([ZSTD_MAGIC, Buffer.from([0, 20 << 3]), Buffer.from('030000ab', 'hex')]),
    ),
    isDamaged: true,
  },
  {
    title: 'a frame of 128 KiB in a cluster of 4',
    spec: zstd(zstdFrame(Buffer.alloc(128 * K, 1))),
    isDamaged: true,
  },
  {
    title: 'thousands of empty frames',
    spec: {
      ...zstd(Buffer.concat(Array.from({ length: 5000 }, () => zstdFrame(Buffer.alloc(0))))),
      clusterBits: 21,
    },
    isDamaged: true,
  },
  {
    title: 'the file ends in the middle of its tables',
    damage: (f, b) => f.subarray(0, b.l2EntryAt(0) + 8),
    isDamaged: true,
  },
]

/** Tables that a few MiB of a file make into a disk of PiB: what walks them must end. */
const REPEATED: { title: string; entry: bigint; clusterBits: number }[] = [
  { title: 'zeros', entry: 1n, clusterBits: 16 },
  { title: 'zeros in small clusters', entry: 1n, clusterBits: 9 },
  { title: 'one compressed cluster', entry: (1n << 62n) | 0x40n, clusterBits: 16 },
]
for (const { title, entry, clusterBits } of REPEATED) {
  t.test(`one L2 table four million times: ${title}`, async t => {
    const image = join(tempFolder(t), 'disk.qcow2')
    const clusterBytes = 2 ** clusterBits
    const l2Entries = clusterBytes / 8
    const clusters = new Map<number, Cluster>()
    for (let i = 0; i < l2Entries; i++) clusters.set(i, { kind: 'entry', entry })
    const sizeBytes = 2 ** 22 * l2Entries * clusterBytes
    const built = buildImage({ clusterBits, sizeBytes, clusters })
    built.write(image)
    const l2At = built.l2EntryAt(0)
    const l1 = Buffer.alloc(2 ** 25)
    for (let at = 0; at < l1.length; at += 8) l1.writeUInt32BE(l2At, at + 4)
    const fd = openSync(image, 'r+')
    writeSync(fd, l1, 0, l1.length, built.l1At)
    closeSync(fd)
    const outcome = await new Watchdog(t).exercise(image, {}, 20_000)
    t.notOk(outcome.hangs, `answers in time: ${Math.round(outcome.milliseconds)} ms`)
    t.same(outcome.unexpected, [])
    t.ok(outcome.grownBytes < MAX_GROWTH_BYTES, `grew by ${outcome.grownBytes} bytes`)
  })
}

t.test('one fault each', async t => {
  const folder = tempFolder(t)
  const watchdog = new Watchdog(t)
  for (const [index, { title, spec, damage, says, code, isDamaged }] of cases.entries()) {
    await t.test(title, async t => {
      const built = buildImage({ ...HONEST, ...spec })
      const image = join(folder, `${index}.qcow2`)
      if (damage) writeFileSync(image, damage(built.bytes(), built) ?? Buffer.alloc(0))
      else built.write(image)
      const outcome = await watchdog.exercise(image)
      t.notOk(outcome.hangs, `answers in time: ${Math.round(outcome.milliseconds)} ms`)
      t.same(outcome.unexpected, [])
      t.ok(outcome.grownBytes < MAX_GROWTH_BYTES, `grew by ${outcome.grownBytes} bytes`)
      if (says) {
        t.match(outcome.refusal, { line: says, code })
        t.ok(outcome.refusal?.line.startsWith(`${image}: `), 'names the file')
        t.ok(outcome.refusal?.line.includes('; '), 'says what to do')
      } else {
        t.equal(outcome.refusal, undefined, 'opens')
        t.equal(outcome.damages > 0, isDamaged ?? false, `${outcome.damages} errors met`)
      }
      const unfit = outcome.names.filter(
        name => Buffer.byteLength(name) > 255 || /[/\x00-\x1f]/.test(name),
      )
      t.same(unfit, [], 'file names are fit')
    })
  }
})
