/** Disks that grow and shrink: they read as a model of them does, and QEMU finds them clean after each step. */
import { appendFileSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import type { OptionValues } from '../../src/formats/creating.js'
import type { Preallocation } from '../../src/formats/resizing.js'
import { checkImage } from '../../src/index.js'
import { createImage } from '../../src/image/making/create-image.js'
import { openImage } from '../../src/image/open-image.js'
import { resizeImage } from '../../src/image/changing/resize.js'
import { noise } from '../fixtures/model.js'
import { Random } from '../soundness/steps.js'
import { firstDifference } from '../support/image.js'
import { needs, run, tempFolder } from '../support/run.js'
import { qemuImg } from './qemu.js'

const K = 1024
const M = K * K
const SIZE = 3 * M + 512
const PASSPHRASE = 'of-the-disk'

interface Kind {
  readonly format: 'raw' | 'qcow2' | 'vmdk'
  readonly options?: OptionValues
  /** The size of a raw base. */
  readonly baseBytes?: number
  readonly hasSnapshot?: boolean
  readonly modes?: readonly Preallocation[]
}

const ALL_MODES: readonly Preallocation[] = ['off', 'metadata', 'falloc', 'full']
const KINDS: Record<string, Kind> = {
  raw: { format: 'raw', modes: ['off', 'falloc', 'full'] },
  qcow2: { format: 'qcow2' },
  'qcow2, clusters of 4 KiB': { format: 'qcow2', options: { cluster_size: 4 * K } },
  'qcow2, version 2': { format: 'qcow2', options: { compat: '0.10' } },
  'qcow2, subclusters': { format: 'qcow2', options: { extended_l2: true } },
  'qcow2, over a larger base': { format: 'qcow2', baseBytes: 8 * M },
  'qcow2, version 2, over a larger base': {
    format: 'qcow2',
    options: { compat: '0.10' },
    baseBytes: 8 * M,
  },
  'qcow2, data in another file': { format: 'qcow2', options: { data_file: 'data' } },
  'qcow2, raw data file': {
    format: 'qcow2',
    options: { data_file: 'data', data_file_raw: true },
    modes: ['off'],
  },
  'qcow2, LUKS': {
    format: 'qcow2',
    options: { 'encrypt.format': 'luks', 'encrypt.iter-time': 10, cluster_size: 16 * K },
  },
  'qcow2, with a snapshot': { format: 'qcow2', hasSnapshot: true },
  'qcow2, version 2, with a snapshot': {
    format: 'qcow2',
    options: { compat: '0.10' },
    hasSnapshot: true,
  },
}

for (const subformat of [
  'monolithicSparse',
  'monolithicFlat',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentFlat',
]) {
  KINDS[`vmdk, ${subformat}`] = { format: 'vmdk', options: { subformat }, modes: ['off'] }
}
KINDS['vmdk, zeroed grains'] = { format: 'vmdk', options: { zeroed_grain: true }, modes: ['off'] }

for (const [title, kind] of Object.entries(KINDS)) {
  t.test(title, { ...needs('qemu-img') }, async t => {
    const file = join(tempFolder(t), `disk.${kind.format}`)
    let disk = await make(file, kind)
    const before = disk
    if (kind.hasSnapshot) await qemuImg('snapshot', '-c', 'before', file)
    const random = new Random(7)
    for (let step = 0; step < 6; step++) {
      const grows = step % 2 === 0
      const change = 1 + random.below(grows ? 4 * M : Math.min(disk.length, 3 * M) - 1)
      const preallocation = random.pick(kind.modes ?? ALL_MODES)
      const wanted = grows ? disk.length + change : disk.length - change
      const resized = await resizeImage(file, {
        format: kind.format,
        sizeOf: () => wanted,
        ...{ shrinks: true, force: true, upgrades: true, preallocation },
        ask: async () => [Buffer.from(PASSPHRASE)],
      })
      const whole = Math.ceil(wanted / 512) * 512
      t.equal(resized.afterBytes, whole)
      disk = Buffer.concat([disk.subarray(0, whole)], whole)
      await holds(t, file, kind, disk, `${step}: ${grows ? preallocation : 'smaller'}, ${whole}`)
      await scribble(file, kind, disk, random)
      // Bytes past the disk's end do not belong to it.
      if (kind.options?.data_file) appendFileSync(join(dirname(file), 'data'), noise(70 * K, step))
    }
    await holds(t, file, kind, disk, 'at last')
    if (!kind.hasSnapshot) return
    const image = await openImage(file)
    t.teardown(() => image.close())
    const [snapshot] = image.snapshots
    const read = Buffer.alloc(SIZE)
    t.equal(snapshot?.sizeBytes, SIZE, 'the snapshot keeps its size')
    snapshot?.read(read, 0)
    t.equal(firstDifference(read, before), -1, 'and its bytes')
  })
}

/** Makes an image with data here and there. Returns the disk. */
async function make(file: string, kind: Kind): Promise<Buffer> {
  const disk = Buffer.alloc(SIZE)
  const { format, options = {}, baseBytes } = kind
  if (baseBytes) {
    const base = noise(baseBytes, 5)
    writeFileSync(join(dirname(file), 'base'), base)
    base.copy(disk)
  }
  await createImage(file, {
    ...{ format, options, sizeBytes: SIZE, passphrase: PASSPHRASE },
    ...(baseBytes && { backing: { name: 'base', format: 'raw' } }),
  })
  await scribble(file, kind, disk, new Random(3))
  return disk
}

/** Writes at places of the disk, its end among them. */
async function scribble(file: string, { format }: Kind, disk: Buffer, random: Random) {
  const image = await openImage(file, { format, access: 'write', passphrase: PASSPHRASE })
  try {
    for (let i = 0; i < 6; i++) {
      const length = 1 + random.below(Math.min(200 * K, disk.length))
      const offset = i === 0 ? disk.length - length : random.below(disk.length - length + 1)
      const bytes = noise(length, i + 1)
      image.disk.write(bytes, offset)
      bytes.copy(disk, offset)
    }
  } finally {
    image.close()
  }
}

async function holds(t: Test, file: string, kind: Kind, disk: Buffer, what: string) {
  const { format, options = {} } = kind
  const image = await openImage(file, { format, passphrase: PASSPHRASE })
  const read = Buffer.alloc(image.disk.sizeBytes)
  image.disk.read(read, 0)
  image.close()
  t.equal(firstDifference(read, disk), -1, `${what}: vimgfs reads what it should have`)
  if (options.data_file_raw) {
    const data = readFileSync(join(dirname(file), 'data')).subarray(0, disk.length)
    t.ok(data.equals(disk), `${what}: the data file is the disk`)
    const map = JSON.parse(await qemu(file, 'map', '-f', format, '--output=json', file))
    t.notOk(
      map.some(({ data }: { data: boolean }) => !data),
      `${what}: all of it is mapped`,
    )
  }
  writeFileSync(`${file}.model`, disk)
  const key = options['encrypt.format'] ? ',encrypt.key-secret=key' : ''
  const source = `driver=${format},file.filename=${file}${key}`
  const model = `driver=raw,file.filename=${file}.model`
  await qemu(file, 'compare', '-q', '--image-opts', source, model)
  if (format === 'qcow2' || `${options.subformat}`.endsWith('Sparse'))
    await qemu(file, 'check', '-q', '--image-opts', source)
}

const qemu = (file: string, command: string, ...args: string[]) =>
  run('qemu-img', [command, '--object', `secret,id=key,data=${PASSPHRASE}`, ...args], {
    cwd: dirname(file),
  })

t.test(
  'a sparse vmdk gets new tables, and a larger directory',
  { ...needs('qemu-img') },
  async t => {
    const file = join(tempFolder(t), 'disk.vmdk')
    const kind: Kind = { format: 'vmdk' }
    const ask = async () => []
    const disk = Buffer.alloc(SIZE)
    await createImage(file, { format: 'vmdk', sizeBytes: SIZE })
    await scribble(file, kind, disk, new Random(3))
    for (const sizeBytes of [
      40 * M,
      3 * 2 ** 30,
      5 * 2 ** 30,
      300 * 2 ** 30,
      33 * M,
      6 * 2 ** 30,
    ]) {
      await resizeImage(file, { sizeOf: () => sizeBytes, shrinks: true, force: true, ask })
      const image = await openImage(file, { access: 'write' })
      const read = Buffer.alloc(SIZE)
      image.disk.read(read, 0)
      t.equal(firstDifference(read, disk), -1, `${sizeBytes}: the beginning stays`)
      image.disk.read(read, sizeBytes - SIZE)
      t.ok(read.equals(Buffer.alloc(SIZE)), 'the end is zeros')
      image.disk.write(Buffer.alloc(1000, 9), sizeBytes - 1000)
      image.close()
      const size = JSON.parse(await qemuImg('info', '--output=json', file))['virtual-size']
      t.equal(size, sizeBytes, 'QEMU finds the new size')
      await qemuImg('check', '-q', file)
      const checked = await checkImage(file)
      t.strictSame([checked?.corruptions, checked?.checkErrors], [0, 0], 'it is sound')
    }
  },
)

t.test('what is allocated', { ...needs('qemu-img') }, async t => {
  const folder = tempFolder(t)
  const taken: Record<string, number> = {}
  for (const preallocation of ALL_MODES) {
    const file = join(folder, `${preallocation}.qcow2`)
    await createImage(file, { format: 'qcow2', sizeBytes: M })
    const ask = async () => []
    await resizeImage(file, { sizeOf: now => now + 8 * M, preallocation, ask })
    taken[preallocation] = statSync(file).blocks * 512
    const map = JSON.parse(await qemuImg('map', '--output=json', file)) as { offset?: number }[]
    t.equal(
      map.some(({ offset }) => offset !== undefined),
      preallocation !== 'off',
      `${preallocation}: clusters have places`,
    )
  }
  t.ok((taken.metadata as number) < M, 'the tables alone take little')
  t.ok((taken.falloc as number) >= 8 * M && (taken.full as number) >= 8 * M, 'the rest is taken')
})
