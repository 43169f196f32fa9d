/**
 * Images that have lost what only writers or snapshots need. The disk is read, not written, and a repair
 * makes the image one that QEMU finds no corruption in.
 */
import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { closeChain } from '../../../src/image/opening/chain.js'
import { openChain } from '../../../src/image/opening/open-chain.js'
import { describe } from '../../../src/image/info.js'
import { checkQcow2 } from '../../../src/formats/qcow2/check.js'
import { readHeader } from '../../../src/formats/qcow2/header.js'
import { repairQcow2 } from '../../../src/formats/qcow2/repair.js'
import { readSnapshots } from '../../../src/formats/qcow2/snapshots.js'
import { noise } from '../../fixtures/model.js'
import {
  type BuiltImage,
  buildImage,
  type Cluster,
  type ImageSpec,
} from '../../fixtures/qcow2-builder.js'
import { openedImage, readAll } from '../../support/image.js'
import { tempFolder } from '../../support/run.js'
import { MemoryStore } from '../../support/stores.js'
import { openWritable } from '../../support/writable.js'

const K = 1024
const data = (seed: number): Cluster => ({ kind: 'data', bytes: noise(4 * K, seed) })
const SHARED = data(2)
const SPEC: ImageSpec = {
  clusterBits: 12,
  sizeBytes: 4096 * K,
  clusters: new Map([
    [0, data(1)],
    [1, SHARED],
    [600, data(3)],
  ]),
  snapshots: [
    { name: 'first', clusters: new Map([[1, SHARED]]), extraBytes: 24 },
    { name: 'second', clusters: new Map([[7, data(4)]]), extraBytes: 24 },
  ],
}
const EMPTY = {
  clusterBits: 12,
  sizeBytes: 4096 * K,
  clusters: SPEC.clusters as Map<number, Cluster>,
}
/** Of the second entry: the first takes 40 bytes, 24 more, and an id and a name. */
const entryAt = ({ snapshotsAt }: BuiltImage, bytes: Buffer, number: number): number => {
  let at = snapshotsAt
  for (let i = 1; i < number; i++) {
    const length =
      40 + bytes.readUInt32BE(at + 36) + bytes.readUInt16BE(at + 12) + bytes.readUInt16BE(at + 14)
    at += Math.ceil(length / 8) * 8
  }
  return at
}
/** The image with its snapshot table at the end of the file, where QEMU has it, and of `length` bytes. */
function cutInTable(bytes: Buffer, image: BuiltImage, length: number): Buffer {
  const table = bytes.subarray(image.snapshotsAt, entryAt(image, bytes, 3))
  const moved = Buffer.concat([bytes, table.subarray(0, length)])
  moved.writeBigUInt64BE(BigInt(bytes.length), 64)
  return moved
}
const BITMAPS = 0x23852875

interface Case {
  title: string
  spec?: ImageSpec
  damage: (bytes: Buffer, image: BuiltImage) => Buffer | undefined | number
  /** The message. */
  says: RegExp
  /** Names of the snapshots that are left, when it is read and after a repair. */
  shown?: string[]
  repaired?: string[]
  /** Whether clusters are kept that lost snapshots may own. */
  keepsLeaks?: boolean
  isWritable?: boolean
  isRepaired?: boolean
}

const both = ['first', 'second']
const CASES: Case[] = [
  {
    title: 'cut off before its snapshot table',
    damage: (bytes, image) => cutInTable(bytes, image, 0),
    says: /snapshots \(2\) are lost: the table at \d+ lies beyond the end/,
    shown: [],
    keepsLeaks: true,
  },
  {
    title: 'cut off in its snapshot table',
    damage: (bytes, image) =>
      cutInTable(bytes, image, entryAt(image, bytes, 2) - image.snapshotsAt + 20),
    says: /snapshots from 2 of 2 on are not shown: number 2 is cut off/,
    shown: ['first'],
    keepsLeaks: true,
  },
  {
    title: 'a snapshot table that is not aligned',
    damage: bytes => bytes.writeBigUInt64BE(8n * 512n + 8n, 64),
    says: /not aligned/,
    shown: [],
    keepsLeaks: true,
  },
  {
    title: 'a snapshot table at no place at all',
    damage: bytes => bytes.writeBigUInt64BE(2n ** 64n - 4096n, 64),
    says: /lies beyond the end/,
    shown: [],
    keepsLeaks: true,
  },
  {
    title: 'more snapshots than there can be',
    damage: bytes => bytes.writeUInt32BE(2 ** 31, 60),
    says: /claims 2147483648 snapshots/,
    keepsLeaks: true,
  },
  {
    title: 'a snapshot too many',
    damage: bytes => bytes.writeUInt32BE(3, 60),
    says: /from 3 of 3 on are not shown/,
    keepsLeaks: true,
  },
  {
    title: 'a snapshot with an absurd size',
    damage: (bytes, image) => bytes.writeBigUInt64BE(2n ** 63n, entryAt(image, bytes, 1) + 40 + 8),
    says: /snapshot 1 of 2, "first", is not shown: it has a disk of about 9223372036854776000/,
    shown: ['second'],
    repaired: both,
  },
  {
    title: 'a snapshot with absurd extra data',
    damage: (bytes, image) => bytes.writeUInt32BE(2 ** 31, entryAt(image, bytes, 2) + 36),
    says: /from 2 of 2 on are not shown: number 2 has \d+ bytes of extra data/,
    shown: ['first'],
    keepsLeaks: true,
  },
  {
    title: "a snapshot's L1 table beyond the end",
    damage: (bytes, image) => bytes.writeBigUInt64BE(2n ** 40n, entryAt(image, bytes, 1)),
    says: /"first", cannot be read: it has its L1 table, of 2 entries, at 1099511627776/,
    repaired: ['second'],
    keepsLeaks: true,
  },
  {
    title: "a snapshot's L1 table that is not aligned",
    damage: (bytes, image) => bytes.writeBigUInt64BE(4097n, entryAt(image, bytes, 2)),
    says: /"second", cannot be read/,
    repaired: ['first'],
    keepsLeaks: true,
  },
  {
    title: "a snapshot's L1 table of 32 GiB",
    damage: (bytes, image) => bytes.writeUInt32BE(2 ** 32 - 1, entryAt(image, bytes, 2) + 8),
    says: /"second", cannot be read/,
    repaired: ['first'],
    keepsLeaks: true,
  },
  {
    title: 'no refcount table',
    damage: bytes => bytes.writeUInt32BE(0, 56),
    says: /it has no refcount table/,
  },
  {
    title: 'a refcount table beyond the end',
    damage: bytes => bytes.writeBigUInt64BE(2n ** 41n, 48),
    says: /the refcount table at \d+ lies beyond the end/,
  },
  {
    title: 'a refcount table at no place at all',
    damage: bytes => bytes.writeBigUInt64BE(2n ** 63n + 5n, 48),
    says: /refcount table at \d+/,
  },
  {
    title: 'a refcount table over the snapshot table',
    damage: (bytes, { snapshotsAt }) => bytes.writeBigUInt64BE(BigInt(snapshotsAt), 48),
    says: /the refcount table overlaps the snapshot table/,
    shown: [],
    keepsLeaks: true,
  },
  {
    title: 'a refcount table over the header',
    damage: bytes => bytes.writeBigUInt64BE(0n, 48),
    says: /the refcount table overlaps the header/,
  },
  {
    title: 'a refcount table that is too long',
    damage: bytes => bytes.writeUInt32BE(2 ** 31, 56),
    says: /has 2147483648 clusters/,
  },
  {
    title: 'counts of 2^7 bits',
    damage: bytes => bytes.writeUInt32BE(7, 96),
    says: /refcount order is 7/,
  },
  {
    title: 'an L1 table that is too long',
    damage: bytes => bytes.writeUInt32BE(2 ** 22 + 1, 36),
    says: /L1 table has 4194305 entries, more than there can be; the disk needs 2/,
    keepsLeaks: true,
  },
  {
    title: 'an L1 table that reaches beyond the end',
    damage: bytes => bytes.writeUInt32BE(2 ** 20, 36),
    says: /L1 table has 1048576 entries, more than there can be; the disk needs 2/,
    keepsLeaks: true,
  },
  {
    title: 'the counts and the snapshots',
    damage: (bytes, image) => {
      bytes.writeUInt32BE(0, 56)
      return cutInTable(bytes, image, 0)
    },
    says: /are lost/,
    shown: [],
    keepsLeaks: true,
  },
  {
    title: 'an extension of bitmaps of a wrong length',
    spec: { ...EMPTY, extensions: [{ type: BITMAPS, data: Buffer.alloc(16) }] },
    damage: bytes => bytes.writeBigUInt64BE(1n, 88),
    says: /extension that says where the bitmaps are is damaged/,
    shown: [],
    isWritable: true,
  },
  {
    title: 'an extension that is too long',
    spec: { ...EMPTY, extensions: [{ type: 0xdeadbeef, data: Buffer.alloc(16) }] },
    damage: bytes => bytes.writeUInt32BE(2 ** 31, 112 + 4),
    says: /header extension at 112 is longer/,
    shown: [],
  },
  {
    title: 'a bitmap directory beyond the end',
    spec: { ...EMPTY, extensions: [{ type: BITMAPS, data: Buffer.alloc(24) }] },
    damage: bytes => {
      bytes.writeBigUInt64BE(1n, 88)
      bytes.writeUInt32BE(1, 112 + 8)
      bytes.writeBigUInt64BE(64n, 112 + 16)
      bytes.writeBigUInt64BE(2n ** 40n, 112 + 24)
    },
    says: /bitmap/,
    shown: [],
    isWritable: true,
  },
]

for (const one of CASES) {
  const { title, spec = SPEC, damage, says, keepsLeaks = false, isWritable = false } = one
  const shown = one.shown ?? both
  const names = one.repaired ?? shown
  t.test(title, async t => {
    const built = buildImage(spec)
    const whole = built.bytes()
    const damaged = damage(whole, built)
    const bytes = typeof damaged === 'object' ? damaged : whole
    const image = join(tempFolder(t), 'disk.qcow2')
    writeFileSync(image, bytes)
    const want = Buffer.alloc(spec.sizeBytes)
    for (const [i, cluster] of spec.clusters ?? []) {
      if (cluster.kind === 'data') cluster.bytes.copy(want, i * 4 * K)
    }

    const open = openedImage(t, image)
    t.ok(readAll(open.view('disk.raw')).equals(want), 'the disk is read')
    t.same(
      open.chain.snapshots.map(({ name }) => String(name)),
      shown,
    )
    const warnings: string[] = []
    const [info] = describe(image, {}, false, text => warnings.push(text))
    t.equal(info?.['virtual-size'], spec.sizeBytes)
    t.match([...open.chain.warnings, ...warnings].join('\n'), says)

    const chain = openChain(image, { access: 'write if possible' })
    closeChain(chain)
    t.equal(chain.isWritable, isWritable)
    if (!isWritable) {
      t.match(chain.warnings[0], /, mounted read-only; the disk is read without that; [^;]*$/)
      t.equal(new Set(chain.warnings).size, chain.warnings.length)
      t.throws(() => openChain(image, { access: 'write' }), {
        code: 'READ_ONLY',
        context: { hint: /check --repair all/ },
      })
    }
    t.ok(readFileSync(image).equals(bytes), 'nothing is written')

    const before = checkQcow2(new MemoryStore(image, bytes))
    t.ok(before.corruptions > 0)
    const store = new MemoryStore(image, bytes)
    const { after, changes } = repairQcow2(store, 'all')
    t.equal(after.corruptions + after.checkErrors, 0)
    if (keepsLeaks && after.leaks > 0) {
      t.ok(changes.some(({ message }) => message.startsWith('leaks are kept')))
    } else t.equal(after.leaks, 0)
    t.same(
      readSnapshots(store, readHeader(store)).snapshots.map(({ name }) => String(name)),
      names,
    )
    writeFileSync(image, store.bytes())
    const again = openedImage(t, image)
    t.same(again.chain.warnings, [])
    t.ok(readAll(again.view('disk.raw')).equals(want), 'the disk is read after the repair')
    const qemu = spawnSync('qemu-img', ['check', '-f', 'qcow2', image], { encoding: 'utf8' })
    if (!qemu.error) t.equal(qemu.status, after.leaks > 0 ? 3 : 0, qemu.stdout + qemu.stderr)
    // Every cluster that a lost snapshot owned is still there, as it was.
    if (after.leaks > 0) {
      for (const { clusters } of spec.snapshots ?? []) {
        for (const cluster of clusters?.values() ?? []) {
          const at = built.placeOf(cluster)
          if (cluster.kind !== 'data' || at === undefined || at + 4 * K > bytes.length) continue
          const now = store.bytes().subarray(at, at + 4 * K)
          t.ok(now.equals(bytes.subarray(at, at + 4 * K)), 'what snapshots may own is kept')
        }
      }
      repairQcow2(store, 'leaks')
      t.match(checkQcow2(store), { corruptions: 0, leaks: 0 })
    }
  })
}

t.test('a writer that is opened all the same refuses to begin', async t => {
  for (const { title, spec = SPEC, damage, isWritable } of CASES) {
    if (isWritable) continue
    const built = buildImage(spec)
    const whole = built.bytes()
    const damaged = damage(whole, built)
    const bytes = typeof damaged === 'object' ? damaged : whole
    const store = new MemoryStore('', bytes)
    const { disk } = openWritable({ store })
    t.throws(() => disk.write(noise(4 * K, 9), 0, 4 * K, 0), { name: 'ImageError' }, title)
    t.ok(store.bytes().equals(bytes), title)
  }
})
