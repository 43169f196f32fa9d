/** `-o partitions` on a disk that is written: each partition is a file that can be written, and shows the disk's bytes. */
import {
  closeSync,
  ftruncateSync,
  openSync,
  readFileSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { noise } from '../fixtures/model.js'
import { loop, mountDevice } from '../support/loop.js'
import {
  attemptIn,
  call,
  HERE,
  type Mount,
  mount,
  mountFolder,
  NO_LOG,
  noFuse,
  noLibfuse,
  ordinaryUser,
  overLibfuse,
  runIn,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { needs, needsRoot, run } from '../support/run.js'

const MIB = 2 ** 20
const SECTOR = 512
const ARGS = ['-o', 'partitions']
const HAMMER = fileURLToPath(new URL('shared-bytes.mjs', import.meta.url))
const skip = { ...needs('qemu-img', 'qemu-io', 'sfdisk'), ...noFuse() }

/** Makes a qcow2 image of a disk with partitions; the disk is full of noise where `isFull`. */
async function image(
  t: Test,
  script: string,
  { sizeBytes = 24 * MIB, isFull = false } = {},
): Promise<string> {
  const folder = sharedFolder(t)
  const raw = join(folder, 'made')
  const fd = openSync(raw, 'w')
  for (let at = 0; isFull && at < sizeBytes; at += MIB) writeSync(fd, noise(MIB, at / MIB + 1))
  if (isFull) writeSync(fd, Buffer.alloc(SECTOR), 0, SECTOR, 0)
  ftruncateSync(fd, sizeBytes)
  closeSync(fd)
  await run('sfdisk', ['--quiet', '--wipe=never', raw], { input: script })
  const file = join(folder, 'disk.qcow2')
  await run('qemu-img', ['convert', '-O', 'qcow2', raw, file])
  await run('chmod', ['666', file])
  return file
}

/** Unmounts, and has QEMU check the image. */
async function unmounted(t: Test, { place, folder }: Mount, file: string): Promise<void> {
  t.equal((await vimgfs(place, ['umount', folder])).code, 0)
  await run('qemu-img', ['check', '-q', file])
}

async function rawOf(file: string): Promise<Buffer> {
  await run('qemu-img', ['convert', '-O', 'raw', file, `${file}.out`])
  return readFileSync(`${file}.out`)
}

for (const { name, script, start, loops } of [
  { name: 'at a page', script: 'label: gpt\nstart=2048, size=16384\n', start: MIB, loops: true },
  {
    name: 'within a page',
    script: 'label: dos\nstart=63, size=8192\n',
    start: 63 * SECTOR,
    loops: false,
  },
]) {
  t.test(`several processes write both files; the partition begins ${name}`, skip, async t => {
    const UNITS = 256
    const PROCESSES = 3
    const file = await image(t, script)
    const mounted = await mount(t, file, { args: ARGS })
    const files = ['disk.raw', 'disk.p1.raw'].map(mounted.file)
    const isRoot = process.getuid?.() === 0
    const devices =
      loops && isRoot ? await Promise.all(files.map(each => loop(t, each))) : undefined
    const table = join(sharedFolder(t), 'table')
    writeFileSync(table, Buffer.alloc(8 * UNITS))
    const shared = { files, table, start, units: UNITS, processes: PROCESSES, seed: 7, steps: 1500 }
    const done = Array.from({ length: PROCESSES }, (_, index) => {
      const options = { ...shared, loops: devices?.map(({ device }) => device), process: index }
      return run(process.execPath, [HAMMER, JSON.stringify(options)])
    })
    for (const { status, reason } of (await Promise.allSettled(done)) as PromiseRejectedResult[]) {
      t.equal(status, 'fulfilled', reason?.message)
    }
    for (const each of devices ?? []) await each.detach()
    await unmounted(t, mounted, file)
    const raw = await rawOf(file)
    const versions = readFileSync(table)
    const wrong = []
    for (let unit = 0; unit < UNITS; unit++) {
      const version = versions.readInt32LE(8 * unit + 4)
      const value = version % 7 === 0 ? 0 : version * 65_536 + unit
      const at = start + unit * SECTOR
      const expected = Buffer.from(new Uint32Array(SECTOR / 4).fill(value).buffer)
      if (!raw.subarray(at, at + SECTOR).equals(expected)) wrong.push(unit)
    }
    t.same(wrong, [], 'units in the image')
  })
}

/** Two partitions with a gap between them. */
const TWO = 'label: dos\nstart=2048, size=8192\nstart=12288, size=8192\n'
const [FIRST, SECOND, SIZE] = [MIB, 6 * MIB, 4 * MIB]

t.test(
  'a write through one file, while a map of another has changed the same page',
  skip,
  async t => {
    const file = await image(t, TWO, { isFull: true })
    const mounted = await mount(t, file, { args: ARGS })
    const [disk, partition] = ['disk.raw', 'disk.p1.raw'].map(mounted.file) as [string, string]
    const both = [
      [77, 77],
      [78, 78],
    ]
    t.same(await call(HERE, 'mapBeside', partition, 5000, disk, FIRST + 5000), both)
    t.same(await call(HERE, 'mapBeside', disk, FIRST + 9000, partition, 9000), both)
  },
)

t.test('nothing reaches past a partition', skip, async t => {
  const file = await image(t, TWO, { isFull: true })
  const expected = await rawOf(file)
  const mounted = await mount(t, file, { args: ARGS })
  const name = mounted.file('disk.p1.raw')
  const ends = await call(HERE, 'ends', name, SIZE)
  expected.fill('e', FIRST + SIZE - 10_000, FIRST + SIZE)
  t.match(ends, {
    ...{ inside: 10_000, over: 5000, at: 'ENOSPC', behind: 'ENOSPC', directOver: 4096 },
    ...{ directAt: 'ENOSPC', append: 'ENOSPC', shorter: 'EPERM', longer: 'EPERM', same: 'done' },
    ...{ fsync: 'done', size: SIZE },
  })
  const zero = async (...args: string[]) => await run('fallocate', [...args, name])
  await zero('--punch-hole', '--offset', `${SIZE - 4096}`, '--length', `${MIB}`)
  await zero('--zero-range', '--keep-size', '--offset', '8192', '--length', '4096')
  expected.fill(0, FIRST + SIZE - 4096, FIRST + SIZE).fill(0, FIRST + 8192, FIRST + 12288)
  const second = mounted.file('disk.p2.raw')
  await run('fallocate', ['--punch-hole', '--offset', '0', '--length', `${SIZE}`, second])
  expected.fill(0, SECOND, SECOND + SIZE)
  t.same(await call(HERE, 'data', second), [], 'SEEK_HOLE and SEEK_DATA')
  t.ok(statSync(second).blocks * 512 <= 64 * 1024, 'st_blocks')
  await unmounted(t, mounted, file)
  t.ok((await rawOf(file)).equals(expected))
})

t.test('files that are truncated and written anew', skip, async t => {
  const file = await image(t, TWO, { isFull: true })
  const expected = await rawOf(file)
  const source = join(sharedFolder(t), 'source')
  const bytes = noise(SIZE, 99)
    .fill(0, 4096, MIB)
    .fill(0, 2 * MIB)
  writeFileSync(source, bytes)
  const mounted = await mount(t, file, { args: ARGS })
  const target = mounted.file('disk.p2.raw')
  for (const words of [
    'bs=64k conv=sparse',
    'bs=512 conv=sparse count=6000',
    'bs=1M oflag=direct',
  ]) {
    await run('dd', [`if=${source}`, `of=${target}`, 'status=none', ...words.split(' ')])
    const isWhole = !words.includes('count')
    const end = isWhole ? SIZE : 6000 * 512
    bytes.copy(expected, SECOND, 0, end)
    t.equal(statSync(target).size, SIZE)
    t.equal(await call(HERE, 'sha256', target), await call(HERE, 'sha256', source), words)
  }
  t.match(await call(HERE, 'truncating', target, 'ftruncate', 8192), {
    ...{ empty: 0, written: 30_000, after: SIZE },
  })
  // The bytes before and after the partition stay, and both names show the same ones within it.
  const whole = readFileSync(mounted.file('disk.raw'))
  t.ok(whole.subarray(0, SECOND).equals(expected.subarray(0, SECOND)))
  t.ok(whole.subarray(SECOND + SIZE).equals(expected.subarray(SECOND + SIZE)))
  t.ok(whole.subarray(SECOND, SECOND + SIZE).equals(readFileSync(target)))
  await unmounted(t, mounted, file)
  t.ok((await rawOf(file)).equals(whole))
})

t.test('owners, modes, and files that cannot be written', skip, async t => {
  const file = await image(t, TWO)
  await run('qemu-img', ['snapshot', '-c', 'old', file])
  const mounted = await mount(t, file, { args: ARGS })
  const modes = () =>
    run('stat', ['-c', '%a', ...['disk.raw', 'disk.p1.raw', 'disk.p2.raw'].map(mounted.file)])
  t.equal(await modes(), '666\n666\n666\n')
  await run('chmod', ['600', mounted.file('disk.p2.raw')])
  t.equal(await modes(), '666\n666\n600\n', 'each has its own')
  t.throws(() => openSync(mounted.file('disk@old.p1.raw'), 'r+'), { code: 'EROFS' })
  const readOnly = await mount(t, await image(t, TWO), { args: ['-o', 'ro,partitions'] })
  t.throws(() => openSync(readOnly.file('disk.p1.raw'), 'r+'), { code: 'EROFS' })
})

t.test('libfuse cannot tell the kernel what has changed', { ...skip, ...noLibfuse() }, async t => {
  const words = ['mount', ...NO_LOG, ...ARGS, await image(t, TWO), mountFolder(t)]
  const refused = await vimgfs(overLibfuse(HERE), words)
  t.match(refused, {
    code: 1,
    stderr: /^vimgfs: through libfuse, partitions can only be read.*\n$/,
  })
})

for (const { type, make, check } of [
  { type: 'ext4', make: ['mkfs.ext4', '-q', '-F'], check: ['e2fsck', '-fn'] },
  { type: 'xfs', make: ['mkfs.xfs', '-q', '-f'], check: ['xfs_repair', '-n'] },
] as const) {
  const options = { ...skip, ...needs(make[0], check[0]), ...needsRoot() }
  t.test(`${type} on a partition`, options, async t => {
    const size = type === 'xfs' ? 310 : 30
    const file = await image(t, `label: gpt\nstart=2048, size=${size}M\nsize=4M\n`, {
      sizeBytes: (size + 10) * MIB,
    })
    const mounted = await mount(t, file, { args: ARGS })
    const name = mounted.file('disk.p1.raw')
    await run(make[0], [...make.slice(1), name])
    const { device, detach } = await loop(t, name)
    const inside = await mountDevice(t, device, type)
    const written = noise(3 * MIB, 5)
    for (let i = 0; i < 5; i++) writeFileSync(join(inside.folder, `file${i}`), written)
    await run('rm', [join(inside.folder, 'file3')])
    await run('fstrim', [inside.folder])
    await inside.unmount()
    await detach()
    await run(check[0], [...check.slice(1), name])
    // The same through the whole disk.
    const whole = await loop(t, mounted.file('disk.raw'), { offsetBytes: MIB, readOnly: true })
    const again = await mountDevice(
      t,
      whole.device,
      type,
      type === 'xfs' ? ['ro', 'norecovery'] : ['ro'],
    )
    for (const i of [0, 1, 2, 4]) t.ok(readFileSync(join(again.folder, `file${i}`)).equals(written))
    await again.unmount()
    await whole.detach()
    await unmounted(t, mounted, file)
  })
}

t.test(
  'an ordinary user makes and checks a file system',
  { ...skip, ...needs('mkfs.ext4') },
  async t => {
    const file = await image(t, 'label: gpt\nstart=2048, size=16M\n')
    const place = await ordinaryUser(t)
    const mounted = await mount(t, file, { place, args: ARGS })
    const name = mounted.file('disk.p1.raw')
    await runIn(place, 'mkfs.vfat', [name])
    t.match(await runIn(place, 'fsck.vfat', ['-n', name]), /0 files/)
    await runIn(place, 'mkfs.ext4', ['-q', '-F', name])
    const text = join(sharedFolder(t), 'text')
    writeFileSync(text, 'some text\n')
    await runIn(place, 'debugfs', ['-w', '-R', `write ${text} text`, name])
    t.match(await runIn(place, 'debugfs', ['-R', 'cat text', name]), 'some text\n')
    t.equal((await attemptIn(place, 'e2fsck', ['-fn', name])).code, 0)
    await unmounted(t, mounted, file)
  },
)
