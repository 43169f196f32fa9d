/** The judges of qcow and cow images pass sound images and find the damage in broken ones. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { convertedBy } from '../peers/qemu.js'
import { needs, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'
import { COW_RECIPES, makeCowKind } from './cow-kinds.js'
import { cowPlaces } from './cow-judge.js'
import type { ImageKind } from './image-scenario.js'
import { makeQcowKind, QCOW_RECIPES, type QcowRecipe } from './qcow-kinds.js'

const SECTOR = 512
const K = 1024

for (const recipe of QCOW_RECIPES) {
  t.test(`qcow: ${recipe.title}`, needs('qemu-img', 'qemu-io'), async t => {
    const folder = tempFolder(t)
    const { verdict, disk, file, encryption } = await makeQcowKind(recipe, folder)
    t.equal(verdict.corruptions.length, recipe.namesEnd ? 1 : 0)
    t.ok(verdict.disk.equals(disk), 'it reads what the program reads')
    // QEMU looks for no table at the end of a file, and is not given the passphrase.
    if (encryption || recipe.namesEnd) return
    const path = join(folder, 'judged.qcow')
    writeFileSync(path, file.bytes())
    const theirs = await convertedBy(path, undefined, 'qcow')
    t.ok(disk.length - theirs.length < SECTOR, 'as large as QEMU has it')
    t.ok(disk.subarray(0, theirs.length).equals(theirs), 'as QEMU reads it')
  })
}

for (const recipe of COW_RECIPES) {
  t.test(`cow: ${recipe.title}`, async t => {
    const { verdict, disk } = makeCowKind(recipe)
    t.same(verdict.corruptions, [])
    t.ok(verdict.disk.equals(disk), 'it reads what the program reads')
  })
}

const damaged = ({ file, format, ...kind }: ImageKind, damage: (bytes: Buffer) => unknown) => {
  const bytes = file.bytes()
  const changed = damage(bytes)
  return format.judge(new MemoryStore(file.path, changed instanceof Buffer ? changed : bytes), kind)
}

const SPEC: QcowRecipe = {
  title: 'to be damaged',
  clusterBits: 12,
  l2Bits: 6,
  sizeBytes: 512 * K + 100,
  parentBytes: 100 * K,
  data: [
    [0, 3],
    [70, 2],
  ],
  packed: [[5, 2]],
}
const u64 = (bytes: Buffer, at: number): number => Number(bytes.readBigUInt64BE(at))
const l1At = (bytes: Buffer): number => u64(bytes, 40)
/** Where the entry of a cluster is. */
const entryAt = (bytes: Buffer, number: number): number =>
  u64(bytes, l1At(bytes) + Math.floor(number / 64) * 8) + (number % 64) * 8
const point = (bytes: Buffer, at: number, to: number): void => {
  bytes.writeBigUInt64BE(BigInt(to), at)
}

const QCOW_DAMAGE: Record<string, [(bytes: Buffer) => void, RegExp]> = {
  'a cluster used twice': [b => point(b, entryAt(b, 9), u64(b, entryAt(b, 1))), /lies over/],
  'clusters that overlap by a sector': [
    b => point(b, entryAt(b, 9), u64(b, entryAt(b, 1)) - SECTOR),
    /lies over/,
  ],
  'a cluster over a table': [b => point(b, entryAt(b, 9), u64(b, l1At(b) + 8)), /lies over/],
  'a cluster over the header': [b => point(b, entryAt(b, 9), SECTOR), /lies over|lies over/],
  'a cluster over compressed bytes': [
    b => {
      const packed = Number(b.readBigUInt64BE(entryAt(b, 5)) & ((1n << 51n) - 1n))
      point(b, entryAt(b, 9), packed - (packed % SECTOR))
    },
    /lies over/,
  ],
  'a cluster past the end of the file': [
    b => point(b, entryAt(b, 9), Math.ceil(b.length / 4096) * 4096),
    /beyond the end/,
  ],
  'a cluster at no sector': [b => point(b, entryAt(b, 1), u64(b, entryAt(b, 1)) + 1), /no sector/],
  'tables that share a place': [b => point(b, l1At(b) + 8, u64(b, l1At(b))), /lies over/],
  'a table past the end of the file': [
    b => point(b, l1At(b) + 16, Math.ceil(b.length / 4096) * 4096),
    /not there/,
  ],
  'an entry past the end of the disk': [
    b => {
      point(b, l1At(b) + 16, u64(b, l1At(b) + 8))
      point(b, l1At(b) + 8, 0)
      point(b, entryAt(b, 128) + 8, u64(b, entryAt(b, 134)))
    },
    /past the disk's end/,
  ],
  'compressed bytes that are none': [
    b => {
      const at = Number(b.readBigUInt64BE(entryAt(b, 5)) & ((1n << 51n) - 1n))
      b.fill(0xff, at, at + 4)
    },
    /does not decompress/,
  ],
}
for (const [title, [damage, expected]] of Object.entries(QCOW_DAMAGE)) {
  t.test(`qcow: ${title}`, async t => {
    const kind = await makeQcowKind(SPEC, tempFolder(t))
    t.match(damaged(kind, damage).corruptions.join('; '), expected)
  })
}

t.test('qcow: bytes that no writer may change', async t => {
  const kind = await makeQcowKind(SPEC, tempFolder(t))
  const changes = (at: number) => {
    const { fixed } = damaged(kind, bytes => void bytes.writeUInt8(bytes.readUInt8(at) ^ 1, at))
    return [...fixed].filter(([name, now]) => !kind.verdict.fixed.get(name)?.equals(now)).length
  }
  t.equal(changes(20), 1)
  t.equal(changes(50), 1)
  t.equal(changes(kind.file.sizeBytes - 1), 0)
})

t.test(
  'cow: a marked sector past the end of the file, and bits past the end of the disk',
  async t => {
    const recipe = COW_RECIPES.find(({ title }) => title.startsWith('QEMU, i386, over a longer'))
    if (!recipe) throw new Error('no such kind')
    const kind = makeCowKind(recipe)
    const { bitmapAt, bitmapBytes } = cowPlaces(recipe.layout, recipe.sizeBytes, SECTOR)
    const cut = damaged(kind, bytes => bytes.subarray(0, bytes.length - 1))
    t.match(cut.corruptions.join('; '), /sector 402 is marked/)
    const last = bitmapAt + bitmapBytes - 1
    const extra = damaged(kind, bytes => void bytes.writeUInt8(bytes.readUInt8(last) | 0x80, last))
    t.same(extra.corruptions, [])
    t.not(extra.fixed.get('the bits past the disk')?.[0], 0)
    t.ok(extra.disk.equals(kind.disk))
  },
)
