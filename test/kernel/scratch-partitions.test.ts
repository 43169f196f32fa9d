/** `-o scratch,partitions`: each disk's and snapshot's partitions can be written, show its scratch copy, and follow its table. */
import {
  closeSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { constants } from 'node:os'
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
  overLibfuse,
  sharedFolder,
  vimgfs,
  withoutNotices,
} from '../support/mount.js'
import { needs, needsRoot, run } from '../support/run.js'
import { sha256 } from './images.js'

const { ESTALE } = constants.errno
const MIB = 2 ** 20
const SECTOR = 512
/** Of shared-bytes.mjs. */
const UNITS = 256
const HAMMER = fileURLToPath(new URL('shared-bytes.mjs', import.meta.url))
const ARGS = ['-o', 'scratch,partitions']
const skip = { ...needs('qemu-img', 'sfdisk'), ...noFuse() }
const TWO = 'label: dos\nstart=2048, size=8192\nstart=12288, size=8192\n'

/** Makes a qcow2 image full of noise, with partitions and the snapshot "one", whose bytes are those of the disk. */
async function image(t: Test, script = TWO, sizeBytes = 12 * MIB): Promise<string> {
  const raw = join(sharedFolder(t), 'made')
  const fd = openSync(raw, 'w')
  for (let at = 0; at < 12 * MIB; at += MIB) writeSync(fd, noise(MIB, at / MIB + 1))
  writeSync(fd, Buffer.alloc(SECTOR), 0, SECTOR, 0)
  // Units that no process has written yet are zeros.
  writeSync(fd, Buffer.alloc(UNITS * SECTOR), 0, UNITS * SECTOR, MIB)
  ftruncateSync(fd, sizeBytes)
  closeSync(fd)
  await run('sfdisk', ['--quiet', '--wipe=never', raw], { input: script })
  const file = join(sharedFolder(t), 'disk.qcow2')
  await run('qemu-img', ['convert', '-O', 'qcow2', raw, file])
  await run('qemu-img', ['snapshot', '-c', 'one', file])
  return file
}

const state = (file: string) => ({
  time: statSync(file, { bigint: true }).mtimeNs,
  sha: sha256(readFileSync(file)),
})

async function unmounted(t: Test, { folder }: Mount): Promise<void> {
  const { code, stderr } = await vimgfs(HERE, ['umount', folder])
  t.same([code, withoutNotices(stderr)], [0, ''])
}

t.test('several processes write a disk, a snapshot and their partitions', skip, async t => {
  const PROCESSES = 2
  const file = await image(t)
  const before = state(file)
  const mounted = await mount(t, file, { args: ARGS })
  const disks = ['disk', 'disk@one'].map((stem, index) => {
    const table = join(sharedFolder(t), 'table')
    writeFileSync(table, Buffer.alloc(8 * UNITS))
    return { files: [`${stem}.raw`, `${stem}.p1.raw`].map(mounted.file), table, seed: 3 + index }
  })
  const devices = process.getuid?.() === 0 ? new Map<string, string>() : undefined
  const attached = []
  if (devices) {
    for (const each of disks.flatMap(({ files }) => files)) {
      const made = await loop(t, each)
      devices.set(each, made.device)
      attached.push(made)
    }
  }
  const done = disks.flatMap(({ files, table, seed }) =>
    Array.from({ length: PROCESSES }, (_, index) => {
      const loops = devices && files.map(each => devices.get(each))
      const shared = { files, loops, table, start: MIB, units: UNITS, processes: PROCESSES }
      const options = { ...shared, seed, steps: 700, process: index }
      return run(process.execPath, [HAMMER, JSON.stringify(options)])
    }),
  )
  for (const { status, reason } of (await Promise.allSettled(done)) as PromiseRejectedResult[]) {
    t.equal(status, 'fulfilled', reason?.message)
  }
  for (const each of attached) await each.detach()
  for (const { files, table } of disks) {
    const [disk, partition] = files.map(each => readFileSync(each)) as [Buffer, Buffer]
    t.ok(disk.subarray(MIB, 5 * MIB).equals(partition), 'both show the same bytes')
    const versions = readFileSync(table)
    const wrong = []
    for (let unit = 0; unit < UNITS; unit++) {
      const version = versions.readInt32LE(8 * unit + 4)
      const value = version % 7 === 0 ? 0 : version * 65_536 + unit
      const expected = Buffer.from(new Uint32Array(SECTOR / 4).fill(value).buffer)
      if (!partition.subarray(unit * SECTOR, (unit + 1) * SECTOR).equals(expected)) wrong.push(unit)
    }
    t.same(wrong, [], 'units of the disk')
  }
  await unmounted(t, mounted)
  t.same(state(file), before, 'the image keeps every byte and its time')
})

t.test('a partition of a snapshot reaches nothing else, and nobody else sees it', skip, async t => {
  const file = await image(t)
  const mounted = await mount(t, file, { args: ARGS })
  const name = mounted.file('disk@one.p1.raw')
  const expected = readFileSync(mounted.file('disk.raw'))
  const others = () =>
    ['disk.raw', 'disk.p1.raw'].map(each => sha256(readFileSync(mounted.file(each))))
  const before = others()
  const modes = ['disk.raw', 'disk.p1.raw', 'disk@one.p2.raw'].map(
    each => statSync(mounted.file(each)).mode & 0o777,
  )
  t.same(modes, [0o644, 0o644, 0o644])
  const { mtimeMs } = statSync(name)
  const fd = openSync(mounted.file('disk@one.raw'), 'r+')
  writeSync(fd, 'x', MIB + 6000)
  closeSync(fd)
  t.not(statSync(name).mtimeMs, mtimeMs, 'its time follows')
  expected.write('x', MIB + 6000)
  // Pages that the kernel has mapped before the copy begins go when it is written.
  t.same(await call(HERE, 'mapBeside', name, 5000, mounted.file('disk@one.raw'), MIB + 5000), [
    [77, 77],
    [78, 78],
  ])
  expected[MIB + 5000] = 77
  expected[MIB + 5001] = 78
  const size = 4 * MIB
  t.match(await call(HERE, 'ends', name, size), {
    ...{ inside: 10_000, over: 5000, at: 'ENOSPC', behind: 'ENOSPC', size },
  })
  expected.fill('e', MIB + size - 10_000, MIB + size)
  await run('fallocate', ['--punch-hole', '--offset', '8192', '--length', '4096', name])
  expected.fill(0, MIB + 8192, MIB + 12288)
  t.ok(readFileSync(mounted.file('disk@one.raw')).equals(expected))
  t.ok(readFileSync(name).equals(expected.subarray(MIB, MIB + size)))
  t.same(others(), before)
  await unmounted(t, mounted)
})

t.test('sfdisk on a snapshot', skip, async t => {
  const file = await image(t)
  const before = state(file)
  const mounted = await mount(t, file, { args: ARGS })
  const listed = () => readdirSync(mounted.folder).filter(name => name.includes('.p'))
  t.same(listed(), ['disk.p1.raw', 'disk.p2.raw', 'disk@one.p1.raw', 'disk@one.p2.raw'])
  const stays = openSync(mounted.file('disk@one.p1.raw'), 'r+')
  const goes = openSync(mounted.file('disk@one.p2.raw'), 'r+')
  writeSync(stays, 'kept', 0)
  const script = 'label: dos\nstart=2048, size=8192\nstart=14336, size=2048\nsize=1M\n'
  const device = mounted.file('disk@one.raw')
  await run('sfdisk', ['--quiet', '--wipe=never', '--no-reread', '--no-tell-kernel', device], {
    input: script,
  })
  const one = ['disk@one.p1.raw', 'disk@one.p2.raw', 'disk@one.p3.raw']
  t.same(listed(), ['disk.p1.raw', 'disk.p2.raw', ...one], 'the disk itself keeps its own')
  const bytes = Buffer.alloc(4)
  readSync(stays, bytes, 0, 4, 0)
  t.equal(bytes.toString(), 'kept')
  try {
    readSync(goes, bytes, 0, 4, 0)
    t.fail('it is gone')
  } catch (error) {
    t.equal((error as NodeJS.ErrnoException).errno, -ESTALE)
  }
  writeFileSync(mounted.file('disk@one.p2.raw'), 'new one', { flag: 'r+' })
  const whole = readFileSync(device)
  t.equal(
    whole
      .subarray(14336 * SECTOR)
      .subarray(0, 7)
      .toString(),
    'new one',
  )
  closeSync(stays)
  closeSync(goes)
  const { disks } = JSON.parse(readFileSync(mounted.file('.vimgfs/partitions.json'), 'utf8'))
  t.match(disks, [
    { partitions: { length: 2 } },
    { file: 'disk@one.raw', partitions: { length: 3 } },
  ])
  await unmounted(t, mounted)
  t.same(state(file), before)
})

t.test('scratch=FILE keeps a partition table, too', skip, async t => {
  const file = await image(t)
  const args = ['-o', `scratch=${join(sharedFolder(t), 'kept.qcow2')},partitions`]
  const mounted = await mount(t, file, { args })
  await run('sfdisk', ['--quiet', '--no-reread', '--no-tell-kernel', mounted.file('disk.raw')], {
    input: 'label: gpt\nsize=1M\nsize=2M\nsize=3M\n',
  })
  writeFileSync(mounted.file('disk.p3.raw'), 'third', { flag: 'r+' })
  await unmounted(t, mounted)
  const again = await mount(t, file, { args })
  t.equal(statSync(again.file('disk.p3.raw')).size, 3 * MIB)
  t.equal(readFileSync(again.file('disk.p3.raw')).subarray(0, 5).toString(), 'third')
  t.equal(statSync(again.file('disk@one.p2.raw')).size, 4 * MIB)
  await unmounted(t, again)
})

const EXT4 = { ...skip, ...needs('mkfs.ext4', 'e2fsck', 'debugfs'), ...needsRoot() }

t.test(
  'a snapshot of a file system in use is checked and mounted by its partition',
  EXT4,
  async t => {
    const file = await image(t, 'label: gpt\nstart=2048, size=30M\n', 40 * MIB)
    const disk = await mount(t, file, { args: ['-o', 'partitions'] })
    const partition = disk.file('disk.p1.raw')
    await run('mkfs.ext4', ['-q', '-F', partition])
    const inUse = await loop(t, partition)
    const inside = await mountDevice(t, inUse.device, 'ext4')
    writeFileSync(join(inside.folder, 'note'), noise(MIB, 4))
    await run('sync', [join(inside.folder, 'note')])
    t.equal((await vimgfs(HERE, ['snapshot', 'create', file, 'live'])).code, 0)
    await inside.unmount()
    await inUse.detach()
    await unmounted(t, disk)

    const before = state(file)
    const scratch = await mount(t, file, { args: ARGS })
    const copy = scratch.file('disk@live.p1.raw')
    t.match(await attemptIn(HERE, 'e2fsck', ['-fp', copy]), { code: 1 }, 'it replays the journal')
    const again = await loop(t, copy)
    const shown = await mountDevice(t, again.device, 'ext4')
    t.ok(readFileSync(join(shown.folder, 'note')).equals(noise(MIB, 4)))
    writeFileSync(join(shown.folder, 'new'), noise(2 * MIB, 5))
    await shown.unmount()
    await again.detach()
    await run('e2fsck', ['-fn', copy])
    await unmounted(t, scratch)
    t.same(state(file), before)
  },
)

t.test('libfuse cannot tell the kernel what has changed', { ...skip, ...noLibfuse() }, async t => {
  const words = ['mount', ...NO_LOG, ...ARGS, await image(t), mountFolder(t)]
  t.match(await vimgfs(overLibfuse(HERE), words), {
    code: 1,
    stderr: /^vimgfs: through libfuse, partitions .* \(leave out scratch or partitions\).*\n$/,
  })
})
