/** fallocate(2) without flags: reserved space can be written on a full file system, and reads as before. */
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { buildCow } from '../fixtures/cow-builder.js'
import {
  attemptIn,
  HERE,
  mount,
  noFuse,
  noLibfuse,
  overLibfuse,
  runIn,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { needs, needsRoot, run } from '../support/run.js'

const MIB = 2 ** 20
const SIZE = 8 * MIB
const skip = { ...needs('qemu-img', 'qemu-io', 'fallocate'), ...needsRoot(), ...noFuse() }

interface Kind {
  readonly title: string
  readonly format: string
  readonly options?: readonly string[]
  /** Commands of qemu-io. */
  readonly before?: readonly string[]
  /** Whether a layer of data lies below. */
  readonly isChild?: boolean
}

const DATA = 'write -q -P 5 1M 300k'
const KINDS: Kind[] = [
  { title: 'qcow2', format: 'qcow2', before: [DATA] },
  { title: 'qcow2, compressed', format: 'qcow2', before: ['write -q -c -P 5 1M 256k'] },
  { title: 'qcow2, zero clusters', format: 'qcow2', before: [DATA, 'write -q -z 2M 1M'] },
  { title: 'qcow2 with subclusters', format: 'qcow2', options: ['extended_l2=on'], before: [DATA] },
  { title: 'qcow2, only its tables', format: 'qcow2', options: ['preallocation=metadata'] },
  { title: 'qcow2 with a data file', format: 'qcow2', options: ['data_file=FOLDER/data.raw'] },
  { title: 'qcow2 on a layer', format: 'qcow2', isChild: true, before: [DATA] },
  { title: 'vmdk', format: 'vmdk', before: [DATA] },
  { title: 'flat vmdk', format: 'vmdk', options: ['subformat=monolithicFlat'], before: [DATA] },
  { title: 'qcow', format: 'qcow', before: [DATA] },
  { title: 'raw', format: 'raw', before: [DATA] },
  { title: 'cow', format: 'cow' },
]

/** A small file system, which holds the image. */
async function smallFolder(t: Test, mebibytes: number): Promise<string> {
  const folder = join(sharedFolder(t), 'small')
  mkdirSync(folder)
  await run('mount', ['-t', 'tmpfs', '-o', `size=${mebibytes}M`, 'none', folder])
  t.teardown(() => run('umount', ['-l', folder]))
  return folder
}

async function make(folder: string, { format, options = [], before = [], isChild }: Kind) {
  const image = join(folder, `disk.${format}`)
  if (format === 'cow') {
    writeFileSync(image, buildCow({ layout: 'qemu-x86-64', sizeBytes: SIZE }).bytes)
    await run('fallocate', ['--dig-holes', image])
    return image
  }
  const words = options.flatMap(option => ['-o', option.replace('FOLDER', folder)])
  if (isChild) {
    const base = join(folder, 'base')
    await run('qemu-img', ['create', '-q', '-f', 'raw', base, '3M'])
    await run('qemu-io', ['-f', 'raw', '-c', 'write -q -P 7 64k 1M', base])
    words.push('-b', base, '-F', 'raw')
  }
  await run('qemu-img', ['create', '-q', '-f', format, ...words, image, String(SIZE)])
  for (const command of before) await run('qemu-io', ['-f', format, '-c', command, image])
  chmodSync(image, 0o666)
  return image
}

for (const kind of KINDS) {
  t.test(kind.title, skip, async t => {
    const folder = await smallFolder(t, 16)
    const image = await make(folder, kind)
    const { file, folder: mounted } = await mount(t, image)
    const disk = file('disk.raw')
    const before = readFileSync(disk)
    // Not at the borders of clusters.
    const [offset, length] = [5000, 4 * MIB + 1000]
    await runIn(HERE, 'fallocate', ['-o', String(offset), '-l', String(length), disk])
    t.ok(readFileSync(disk).equals(before), 'the bytes stay')
    const filler = ['if=/dev/zero', `of=${join(folder, 'filler')}`, 'bs=64k', 'status=none']
    t.match((await attemptIn(HERE, 'dd', filler)).stderr, /No space left/)
    const noise = join(sharedFolder(t), 'noise')
    await run('dd', ['if=/dev/urandom', `of=${noise}`, 'bs=1M', 'count=4', 'status=none'])
    const words = [`if=${noise}`, `of=${disk}`, 'bs=4k', 'oflag=seek_bytes', 'conv=notrunc,fsync']
    await runIn(HERE, 'dd', [...words, `seek=${offset}`, 'status=none'])
    const expected = Buffer.from(before)
    readFileSync(noise).copy(expected, offset)
    t.ok(readFileSync(disk).equals(expected), 'all of it was written')
    await run('rm', [join(folder, 'filler')])
    const { code, stderr } = await vimgfs(HERE, ['umount', mounted])
    t.equal(code, 0, stderr)
    if (kind.format === 'raw') return
    const checked = await vimgfs(HERE, ['check', image])
    t.equal(checked.code, 0, checked.stdout + checked.stderr)
  })
}

t.test('more than there is room for', skip, async t => {
  const folder = await smallFolder(t, 8)
  const image = await make(folder, { title: 'qcow2', format: 'qcow2' })
  const { file, folder: mounted } = await mount(t, image)
  const big = await attemptIn(HERE, 'fallocate', ['-l', String(SIZE), file('disk.raw')])
  t.match(big.stderr, /No space left/)
  const { code, stderr } = await vimgfs(HERE, ['umount', mounted])
  t.equal(code, 0, stderr)
  t.equal((await vimgfs(HERE, ['check', image])).code, 0)
})

t.test('posix_fallocate(3), by both transports', { ...skip, ...noLibfuse() }, async t => {
  for (const place of [HERE, overLibfuse(HERE)]) {
    const folder = await smallFolder(t, 16)
    const image = await make(folder, { title: 'qcow2', format: 'qcow2' })
    const { file, folder: mounted } = await mount(t, image, { place })
    const disk = file('disk.raw')
    await runIn(place, 'fallocate', ['--posix', '-l', String(2 * MIB), disk])
    const filler = ['if=/dev/zero', `of=${join(folder, 'filler')}`, 'bs=64k', 'status=none']
    t.match((await attemptIn(place, 'dd', filler)).stderr, /No space left/)
    const words = ['if=/dev/urandom', `of=${disk}`, 'bs=4k', 'count=512', 'conv=notrunc,fsync']
    await runIn(place, 'dd', [...words, 'status=none'])
    await run('rm', [join(folder, 'filler')])
    const { code, stderr } = await vimgfs(place, ['umount', mounted])
    t.equal(code, 0, stderr)
  }
})
