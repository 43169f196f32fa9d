/** `-o partitions`: each partition of a disk, of its snapshots and of its backing files is a file of the mount. */
import {
  closeSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { noise } from '../fixtures/model.js'
import { loop, mountDevice } from '../support/loop.js'
import { everyPlace, mount, noFuse, READ_ONLY, runIn, sharedFolder } from '../support/mount.js'
import { attempt, needs, needsRoot, run } from '../support/run.js'

const MIB = 2 ** 20
/** Where an MBR has the start of its second partition. */
const SECOND_START_AT = 446 + 16 + 8
const ARGS = ['-o', 'ro,partitions']
const skip = { ...needs('qemu-img', 'qemu-io', 'sfdisk'), ...noFuse() }

interface Part {
  number: number
  start: number
  size: number
}

/** Makes a raw disk with a partition table and a pattern all over it. */
async function rawDisk(file: string, sizeBytes: number, script: string): Promise<void> {
  const fd = openSync(file, 'w+')
  for (let at = 0; at < sizeBytes; at += MIB)
    writeSync(fd, noise(64 * 1024, at / MIB + 1), 0, undefined, at)
  // Not a boot sector of a file system.
  writeSync(fd, Buffer.alloc(64 * 1024), 0, undefined, 0)
  ftruncateSync(fd, sizeBytes)
  closeSync(fd)
  await run('sfdisk', ['--quiet', '--wipe=never', file], { input: script })
}

/** A disk with a snapshot whose table is another one, on a smaller backing file that has the first partition. */
async function image(t: Test): Promise<string> {
  const folder = sharedFolder(t)
  await rawDisk(
    join(folder, 'base.raw'),
    12 * MIB,
    'label: dos\nstart=2048, size=4096\nstart=8192, size=12288\n',
  )
  const cwd = { cwd: folder }
  const words = ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base.raw', 'disk.qcow2', '20M']
  await run('qemu-img', words, cwd)
  await run('qemu-io', ['-c', 'write -q -P 5 5M 2M', 'disk.qcow2'], cwd)
  await run('qemu-img', ['snapshot', '-c', 'one', 'disk.qcow2'], cwd)
  // The second partition grows, past the end of the backing file. The first one is gone.
  await rawDisk(join(folder, 'new.raw'), 20 * MIB, 'label: dos\n2: start=8192, size=32768\n')
  const table = readFileSync(join(folder, 'new.raw')).subarray(0, 512)
  writeFileSync(join(folder, 'table'), table)
  await run(
    'qemu-io',
    ['-c', 'write -q -s table 0 512', '-c', 'write -q -P 6 13M 1M', 'disk.qcow2'],
    cwd,
  )
  await run('qemu-img', ['snapshot', '-c', 'one.p1', 'disk.qcow2'], cwd)
  return join(folder, 'disk.qcow2')
}

t.test('partitions of a disk, a snapshot and a backing file', skip, async t => {
  const file = await image(t)
  for (const place of await everyPlace(t)) {
    await t.test(place.name, async t => {
      const mounted = await mount(t, file, { place, args: ARGS })
      const read = (name: string) =>
        runIn(place, 'base64', ['-w0', mounted.file(name)]).then(text =>
          Buffer.from(text, 'base64'),
        )
      const names = (await runIn(place, 'ls', [mounted.folder])).trim().split('\n').sort()
      t.same(names, [
        'disk.p2.raw',
        'disk.raw',
        'disk@base.p1.raw',
        'disk@base.p2.raw',
        'disk@base.raw',
        'disk@one.p1.raw',
        'disk@one.p1~2.p2.raw',
        'disk@one.p1~2.raw',
        'disk@one.p2.raw',
        'disk@one.raw',
      ])
      const { disks } = JSON.parse((await read('.vimgfs/partitions.json')).toString())
      t.equal(disks.length, 4)
      for (const { file, table, partitions } of disks) {
        t.equal(table, 'dos')
        const whole = await read(file)
        for (const { number, start, size } of partitions as Part[]) {
          const name = file.replace(/raw$/, `p${number}.raw`)
          const found = await read(name)
          t.equal(found.length, size, name)
          t.ok(found.equals(whole.subarray(start, start + size)), name)
        }
      }
    })
  }
})

t.test('a partition shows nothing past its end', skip, async t => {
  const mounted = await mount(t, await image(t), { args: ARGS })
  const name = mounted.file('disk@one.p1.raw')
  const fd = openSync(name, 'r')
  t.teardown(() => closeSync(fd))
  const bytes = Buffer.alloc(MIB)
  t.equal(readSync(fd, bytes, 0, MIB, 2 * MIB - 100), 100)
  t.equal(readSync(fd, bytes, 0, MIB, 2 * MIB), 0)
  t.throws(() => openSync(name, 'r+'), { code: 'EROFS' })
  const { stdout } = await attempt('sh', [
    '-c',
    `cp --sparse=auto ${mounted.file('disk.p2.raw')} ${mounted.folder}/../copy; stat -c %s ${mounted.folder}/../copy`,
  ])
  t.equal(stdout.trim(), `${16 * MIB}`, 'holes lead nowhere past the end either')
})

t.test(
  'a file system in a partition of a snapshot',
  { ...skip, ...needs('mkfs.ext4'), ...needsRoot() },
  async t => {
    const folder = sharedFolder(t)
    const raw = join(folder, 'new.raw')
    await rawDisk(raw, 24 * MIB, 'label: gpt\nstart=2048, size=40960\n')
    await run('mkfs.ext4', ['-q', '-F', '-E', `offset=${MIB}`, raw, '20M'])
    await run('qemu-img', ['convert', '-O', 'qcow2', raw, join(folder, 'disk.qcow2')])
    await run('qemu-img', ['snapshot', '-c', 'old', join(folder, 'disk.qcow2')])
    await run('qemu-io', ['-c', 'write -q -P 0 0 24M', join(folder, 'disk.qcow2')])
    const mounted = await mount(t, join(folder, 'disk.qcow2'), { args: ARGS })
    t.same(readdirSync(mounted.folder).sort(), ['disk.raw', 'disk@old.p1.raw', 'disk@old.raw'])
    const { device, detach } = await loop(t, mounted.file('disk@old.p1.raw'), { readOnly: true })
    const inside = await mountDevice(t, device, 'ext4', ['ro'])
    t.ok(readdirSync(inside.folder).includes('lost+found'))
    await inside.unmount()
    await detach()
  },
)

t.test('damage of a table fails no mount', skip, async t => {
  const folder = sharedFolder(t)
  const raw = join(folder, 'disk.raw')
  await rawDisk(
    raw,
    8 * MIB,
    'label: dos\nstart=2048, size=2048\nstart=6144, size=2048\n3: start=10240, size=100\n',
  )
  const fd = openSync(raw, 'r+')
  writeSync(fd, Uint32Array.of(3072), 0, 4, SECOND_START_AT)
  closeSync(fd)
  const mounted = await mount(t, raw, { args: [...ARGS, '--format', 'raw'] })
  t.same(readdirSync(mounted.folder).sort(), ['disk.p3.raw', 'disk.raw'])
  t.match(mounted.log(), /partitions 1 and 2 overlap/)
})

t.test('without the option', skip, async t => {
  const plain = await mount(t, await image(t), { args: READ_ONLY })
  t.same(readdirSync(join(plain.folder, '.vimgfs')).sort(), ['stats.json', 'status.json'])
  t.notOk(
    readdirSync(plain.folder).some(name => /\.p\d/.test(name) && !name.includes('one.p1.raw')),
  )
})
