/** The judge of VMDK images passes sound images and finds the damage in broken ones. */
import t from 'tap'
import { noise } from '../fixtures/model.js'
import {
  buildExtent,
  type BuiltExtent,
  descriptorText,
  HEADER_AT,
} from '../fixtures/vmdk-builder.js'
import { needs, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'
import { judgeVmdk, leaksOf, type VmdkVerdict } from './vmdk-judge.js'
import { makeVmdkKind, VMDK_RECIPES } from './vmdk-kinds.js'

const SECTOR = 512
const GRAIN = 8 * SECTOR

for (const recipe of VMDK_RECIPES) {
  t.test(recipe.title, needs('qemu-img', 'qemu-io'), async t => {
    const { verdict, files } = await makeVmdkKind(recipe, tempFolder(t))
    t.same(verdict.corruptions, [])
    // QEMU gives up the space of a grain that it zeroes.
    const isLeaky = /found unclean|^by QEMU.*zeroed/.test(recipe.title)
    t.equal(
      leaks(verdict).some(({ between, behind }) => between + behind > 0),
      isLeaky,
    )
    t.equal(verdict.isUnclean, recipe.title.includes('unclean'))
    t.equal(verdict.cid === undefined, /without a descriptor|alone/.test(recipe.title))
    t.equal(files.length > 0, true)
  })
}

const leaks = ({ extents }: VmdkVerdict, before?: VmdkVerdict) =>
  extents.map((extent, index) => leaksOf(extent, before?.extents[index]))

const built = (): BuiltExtent =>
  buildExtent({
    capacitySectors: 2400,
    grainSectors: 8,
    tableEntries: 128,
    hasZeroGrains: true,
    descriptor: descriptorText('monolithicSparse', 2400, 'image.vmdk'),
    grains: new Map([0, 1, 5, 140].map(i => [i, { kind: 'data', bytes: noise(GRAIN, i + 1) }])),
  })

/** What the judge says after `damage`. */
function damaged(damage: (bytes: Buffer, image: BuiltExtent) => Buffer | undefined): VmdkVerdict {
  const image = built()
  const bytes = damage(image.bytes, image) ?? image.bytes
  return judgeVmdk([new MemoryStore('image.vmdk', bytes)])
}

/** Sets entries of both directories' tables. */
function both(bytes: Buffer, image: BuiltExtent, grain: number, sector: number): undefined {
  bytes.writeUInt32LE(sector, image.entryAt(grain))
  bytes.writeUInt32LE(sector, image.redundantEntryAt(grain))
}

const CORRUPT: readonly {
  title: string
  damage: Parameters<typeof damaged>[0]
  expected: RegExp
}[] = [
  {
    title: 'a grain used twice',
    damage: (bytes, image) => both(bytes, image, 7, image.placeOf(5) / SECTOR),
    expected: /belongs to a grain and to grain 7/,
  },
  {
    title: 'two grains that overlap by a sector',
    damage: (bytes, image) => both(bytes, image, 7, image.placeOf(140) / SECTOR + 7),
    expected: /belongs to a grain|lies beyond/,
  },
  {
    title: 'a grain over a table',
    damage: (bytes, image) => both(bytes, image, 2, image.tableAt(1) / SECTOR),
    expected: /belongs to/,
  },
  {
    title: 'a grain over the descriptor',
    damage: (bytes, image) => both(bytes, image, 2, image.descriptorAt / SECTOR + 1),
    expected: /belongs to the descriptor/,
  },
  {
    title: 'a grain past the end of the file',
    damage: (bytes, image) => both(bytes, image, 2, bytes.length / SECTOR),
    expected: /lies beyond the file's end/,
  },
  {
    title: 'redundant tables that name another grain',
    damage: (bytes, image) => {
      const copy = Buffer.concat([bytes, noise(GRAIN, 9)])
      copy.writeUInt32LE(bytes.length / SECTOR, image.redundantEntryAt(5))
      return copy
    },
    expected: /grain 5 is at .* by the redundant table/,
  },
  {
    title: 'an entry past the end of the disk',
    damage: (bytes, image) => {
      const copy = Buffer.concat([bytes, noise(GRAIN, 9)])
      both(copy, image, 300, bytes.length / SECTOR)
      return copy
    },
    expected: /past the disk's end/,
  },
  {
    title: 'tables that share a place',
    damage: (bytes, image) =>
      void bytes.writeUInt32LE(image.tableAt(0) / SECTOR, image.directoryAt + 4),
    expected: /belongs to a table/,
  },
]
for (const { title, damage, expected } of CORRUPT) {
  t.test(title, async t => {
    const { corruptions } = damaged(damage)
    t.match(corruptions.join('; '), expected)
  })
}

t.test('findings that are no corruption', async t => {
  const sound = damaged(() => undefined)
  t.same(sound.corruptions, [])
  t.same(leaks(sound), [{ between: 0, behind: 0 }])
  t.match(sound, { isUnclean: false, cid: 0x1234abcd, parentCid: 0xffffffff })

  const leaked = damaged(bytes => Buffer.concat([bytes, noise(2 * GRAIN, 1)]))
  t.same(leaked.corruptions, [])
  t.same(leaks(leaked), [{ between: 0, behind: 2 }])
  t.same(leaks(leaked, leaked), [{ between: 0, behind: 0 }])

  const lagging = damaged((bytes, image) => void bytes.writeUInt32LE(0, image.redundantEntryAt(1)))
  t.same(lagging.corruptions, [])
  t.same(leaks(lagging), leaks(sound))
  t.same(lagging.extents[0]?.disagreements, [{ offset: GRAIN, length: GRAIN }])

  const leading = damaged((bytes, image) => void bytes.writeUInt32LE(0, image.entryAt(140)))
  t.same(leading.corruptions, [])
  t.same(leaks(leading), [{ between: 0, behind: 1 }])
  t.same(leading.extents[0]?.disagreements, [{ offset: 140 * GRAIN, length: GRAIN }])

  const zero = damaged((bytes, image) => both(bytes, image, 2, 1))
  t.same(zero.corruptions, [])
})

t.test('bytes that no writer may change', async t => {
  const before = damaged(() => undefined).fixed
  const changes = (damage: Parameters<typeof damaged>[0]) =>
    [...damaged(damage).fixed].filter(([name, now]) => !before.get(name)?.equals(now)).length
  const edit = (from: string, to: string) => (bytes: Buffer) => {
    bytes.write(to, bytes.indexOf(from), 'latin1')
    return undefined
  }
  t.equal(changes(edit('CID=1234abcd', 'CID=00000001')), 0)
  t.equal(
    changes(bytes => void bytes.writeUInt8(1, HEADER_AT.unclean)),
    0,
  )
  t.equal(changes(edit('parentCID=ffffffff', 'parentCID=00000001')), 1)
  t.equal(changes(edit('RW 2400', 'RW 2401')), 1)
  t.equal(
    changes(bytes => void bytes.writeUInt8(9, HEADER_AT.overhead)),
    1,
  )
})
