/** QEMU and libvmdk read our writes to VMDK images; we read QEMU's. */
import { readFileSync, writeFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { Random } from '../soundness/steps.js'
import { needs, run, tempFolder } from '../support/run.js'
import { qemuImg, qemuIo, randomWrites } from './qemu.js'
import { openForWriting } from './writing.js'

const K = 1024
const M = K * K
const G = K * M
const GRAIN = 64 * K
const SMALL = 9 * M + 7 * 512
/** Three extents. */
const LARGE = 5 * G + 300 * K

interface Kind {
  readonly options: string
  readonly sizeBytes: number
  /** The subformat of the parent. */
  readonly parent?: string
  /**
   * QEMU 7.2 fills grains of all extents but the first with the wrong bytes of a parent, those at the
   * grain's place in the extent; so it writes whole grains.
   */
  readonly isBeyondQemu?: boolean
}

const KINDS: Record<string, Kind> = {
  monolithicSparse: { options: 'subformat=monolithicSparse', sizeBytes: SMALL },
  'monolithicSparse with zeroed grains': {
    options: 'subformat=monolithicSparse,zeroed_grain=on',
    sizeBytes: SMALL,
  },
  'monolithicSparse over a flat parent': {
    options: 'subformat=monolithicSparse',
    sizeBytes: SMALL,
    parent: 'monolithicFlat',
  },
  'zeroed grains over a sparse parent': {
    options: 'subformat=monolithicSparse,zeroed_grain=on',
    sizeBytes: SMALL,
    parent: 'monolithicSparse',
  },
  monolithicFlat: { options: 'subformat=monolithicFlat', sizeBytes: SMALL },
  twoGbMaxExtentSparse: { options: 'subformat=twoGbMaxExtentSparse', sizeBytes: LARGE },
  'twoGbMaxExtentSparse over a parent of its kind': {
    options: 'subformat=twoGbMaxExtentSparse,zeroed_grain=on',
    sizeBytes: LARGE,
    parent: 'twoGbMaxExtentSparse',
    isBeyondQemu: true,
  },
  twoGbMaxExtentFlat: { options: 'subformat=twoGbMaxExtentFlat', sizeBytes: LARGE },
}

const create = (image: string, { options, sizeBytes }: Kind, parent?: string) =>
  run(
    'qemu-img',
    [
      ...['create', '-q', '-f', 'vmdk', '-o', options],
      ...(parent === undefined ? [] : ['-b', parent, '-F', 'vmdk']),
      image,
      ...(parent === undefined ? [String(sizeBytes)] : []),
    ],
    { cwd: dirname(image) },
  )

/** Where the disk begins, where its extents meet, and where it ends. */
const places = (sizeBytes: number): number[] =>
  sizeBytes > 2 * G ? [0, 2 * G - 3 * M, 4 * G - 3 * M, sizeBytes - 5 * M] : [0]

/** The same to the image, through vimgfs, and to a plain file. */
async function writeOurs(image: string, model: string, sizeBytes: number, seed: number) {
  const { disk, read, close } = await openForWriting(image)
  const plain = await open(model, 'r+')
  const random = new Random(seed)
  const zeros = Buffer.alloc(700 * K)
  let expected = Buffer.alloc(0)
  try {
    for (let i = 0; i < 60; i++) {
      const base = random.pick(places(sizeBytes))
      const area = Math.min(sizeBytes - base, 9 * M)
      const unit = random.pick([1, 512, 4 * K, GRAIN])
      const offset = base + Math.floor(random.below(area) / unit) * unit
      const longest = random.pick([unit, 5 * K, 3 * GRAIN, 700 * K])
      const most = Math.min(1 + random.below(longest), sizeBytes - offset)
      const length = Math.max(1, most - (most % unit))
      if (random.chance(0.3)) {
        disk.zero(offset, length)
        expected = zeros.subarray(0, length)
      } else {
        expected = Buffer.alloc(length, 1 + random.below(255))
        disk.write(expected, 0, length, offset)
      }
      await plain.write(expected, 0, length, offset)
      if (random.chance(0.1)) disk.flush()
      if (!read(offset, length).equals(expected)) throw new Error(`${seed}: read back at ${offset}`)
    }
  } finally {
    await plain.close()
    close()
  }
}

async function writeTheirs(image: string, model: string, kind: Kind, seed: number) {
  const { sizeBytes, isBeyondQemu } = kind
  const kinds = isBeyondQemu
    ? (['write', 'zero'] as const)
    : (['write', 'partial', 'zero'] as const)
  for (const base of places(sizeBytes)) {
    const area = Math.min(sizeBytes - base, 9 * M)
    const writes = randomWrites(seed, area, { cluster: GRAIN, count: 8, kinds }).map(command =>
      command.replace(/(\d+) (\d+)$/, (_, at, length) => `${Number(at) + base} ${length}`),
    )
    await qemuIo(image, writes, ['-f', 'vmdk'])
    await qemuIo(model, writes, ['-f', 'raw'])
  }
}

async function isSame(t: Test, image: string, model: string, what: string): Promise<void> {
  await run('qemu-img', ['check', '-q', '-f', 'vmdk', image])
  const compared = await qemuImg('compare', '-f', 'raw', '-F', 'vmdk', model, image)
  t.match(compared, /identical/, what)
}

const cidOf = async (image: string): Promise<number> =>
  JSON.parse(await qemuImg('info', '--output=json', image))['format-specific'].data.cid

for (const [name, kind] of Object.entries(KINDS)) {
  t.test(name, needs('qemu-img', 'qemu-io'), async t => {
    const folder = tempFolder(t)
    const image = join(folder, 'disk.vmdk')
    const model = join(folder, 'model')
    const { sizeBytes } = kind
    await run('qemu-img', ['create', '-q', '-f', 'raw', model, String(sizeBytes)])
    if (kind.parent !== undefined) {
      const parent = join(folder, 'parent.vmdk')
      await create(parent, { options: `subformat=${kind.parent}`, sizeBytes })
      await writeTheirs(parent, model, { ...kind, isBeyondQemu: false }, 77)
      await create(image, kind, 'parent.vmdk')
    } else await create(image, kind)
    for (let round = 0; round < 3; round++) {
      const before = await cidOf(image)
      await writeOurs(image, model, sizeBytes, round + 1)
      await isSame(t, image, model, `what we have written, round ${round}`)
      t.not(await cidOf(image), before, 'the content ID has changed')
      await writeTheirs(image, model, kind, round + 10)
      await isSame(t, image, model, `what QEMU has written, round ${round}`)
    }
    const { read, close } = await openForWriting(image)
    const plain = await open(model)
    for (const base of places(sizeBytes)) {
      const bytes = Buffer.alloc(Math.min(9 * M, sizeBytes - base))
      await plain.read(bytes, 0, bytes.length, base)
      t.ok(read(base, bytes.length).equals(bytes), `read from ${base}`)
    }
    await plain.close()
    close()
  })
}

t.test(
  'what QEMU leaves after a descriptor that it has made shorter',
  needs('qemu-img'),
  async t => {
    const image = join(tempFolder(t), 'disk.vmdk')
    await create(image, { options: 'subformat=monolithicFlat', sizeBytes: M })
    // Its new CID is random: one in 256 is shorter by two digits or more.
    const text = readFileSync(image, 'latin1').replace(/\0.*/s, '')
    const shorter = text.replace(/^CID=.*$/m, 'CID=4a65f3')
    const residue = text.slice(shorter.length + 1)
    writeFileSync(
      image,
      Buffer.from(`${shorter}\0${residue.slice(-2)}`.padEnd(10240, '\0'), 'latin1'),
    )
    t.equal(await cidOf(image), 0x4a65f3)
    const { disk, read, close } = await openForWriting(image)
    disk.write(Buffer.alloc(512, 7), 0, 512, 512)
    t.ok(read(512, 512).equals(Buffer.alloc(512, 7)))
    close()
    await qemuImg('check', '-q', '-f', 'vmdk', image)
    t.not(await cidOf(image), 0x4a65f3)
  },
)

t.test('nothing of the image changes before the first write', needs('qemu-img'), async t => {
  const image = join(tempFolder(t), 'disk.vmdk')
  await create(image, { options: 'subformat=monolithicSparse', sizeBytes: SMALL })
  const before = readFileSync(image)
  const { disk, close } = await openForWriting(image)
  disk.flush()
  close()
  t.ok(readFileSync(image).equals(before))
})
