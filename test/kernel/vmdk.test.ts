/** A machine's disk with its snapshots, mounted: each file is what qemu-img reads of its disk file. */
import { randomFillSync } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { release } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { vmsdOf } from '../fixtures/vmsd.js'
import { qemuIo, randomWrites } from '../peers/qemu.js'
import {
  HERE,
  isRoot,
  mount,
  mountFolder,
  NO_LOG,
  noFuse,
  ordinaryUser,
  type Place,
  READ_ONLY,
  runIn,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { needs, run } from '../support/run.js'
import { sha256 } from './images.js'

const M = 2 ** 20
const SIZE = 8 * M
const GRAIN = 64 * 1024
const CREATED = 1_669_648_388_745_123
const skip = { ...needs('qemu-img', 'qemu-io', 'getfattr'), ...noFuse() }

/** A flat base, three deltas in a row, and one more that stands on the first of them. */
async function makeMachine(folder: string): Promise<void> {
  const create = (...args: string[]) =>
    run('qemu-img', ['create', '-q', '-f', 'vmdk', ...args], { cwd: folder })
  const write = (name: string, seed: number) => {
    const kinds = ['write', 'partial'] as const
    const writes = randomWrites(seed, SIZE, { cluster: GRAIN, count: 12, kinds })
    return qemuIo(join(folder, name), writes, ['-f', 'vmdk'])
  }
  await create('-o', 'subformat=monolithicFlat', 'disk.vmdk', String(SIZE))
  await write('disk.vmdk', 1)
  let below = 'disk.vmdk'
  for (const [seed, name] of [
    'disk-000001.vmdk',
    'disk-000002.vmdk',
    'disk-000003.vmdk',
  ].entries()) {
    await create('-b', below, '-F', 'vmdk', name)
    await write(name, 2 + seed)
    below = name
  }
  await create('-b', 'disk-000001.vmdk', '-F', 'vmdk', 'disk-000004.vmdk')
  await write('disk-000004.vmdk', 9)
  const disks = (name: string) => ({ 'scsi0:1': 'other.vmdk', 'scsi0:0': name })
  const vmsd = vmsdOf(
    [
      {
        uid: 1,
        name: 'fresh',
        description: 'as |22installed|22',
        created: CREATED,
        disks: disks('disk.vmdk'),
      },
      { uid: 4, parent: 1, name: 'tried/other', disks: disks('disk-000004.vmdk') },
      { uid: 2, parent: 1, name: 'before upgrade', disks: disks('disk-000001.vmdk') },
      { uid: 3, parent: 2, name: 'before upgrade', disks: disks('disk-000002.vmdk') },
    ],
    3,
  )
  writeFileSync(join(folder, 'machine.vmsd'), vmsd)
}

const FILES = {
  'disk-000003.raw': 'disk-000003.vmdk',
  'disk-000003@fresh.raw': 'disk.vmdk',
  'disk-000003@tried%2Fother.raw': 'disk-000004.vmdk',
  'disk-000003@before upgrade~2.raw': 'disk-000001.vmdk',
  'disk-000003@before upgrade~3.raw': 'disk-000002.vmdk',
}

async function sameFiles(t: Test, folder: string, mnt: string, place: Place): Promise<void> {
  t.strictSame(
    (await runIn(place, 'ls', ['-A', mnt])).trim().split('\n').sort(),
    Object.keys(FILES).sort(),
  )
  for (const [name, image] of Object.entries(FILES)) {
    const raw = join(folder, 'raw')
    await run('qemu-img', ['convert', '-f', 'vmdk', '-O', 'raw', join(folder, image), raw])
    const [sum] = (await runIn(place, 'sha256sum', [join(mnt, name)])).split(' ')
    t.equal(sum, sha256(readFileSync(raw)), name)
    rmSync(raw)
  }
}

t.test('a disk of a machine, with its snapshots', skip, async t => {
  const folder = sharedFolder(t)
  await makeMachine(folder)
  for (const place of isRoot ? [HERE, await ordinaryUser(t)] : [HERE]) {
    await t.test(place.name, async t => {
      const args = READ_ONLY
      const { folder: mnt } = await mount(t, join(folder, 'disk-000003.vmdk'), { place, args })
      await sameFiles(t, folder, mnt, place)
      const fresh = join(mnt, 'disk-000003@fresh.raw')
      const times = await runIn(place, 'stat', ['-c', '%Y %a %W', fresh])
      const created = Math.floor(CREATED / 1e6)
      // Linux 6.6 and later ask for the time of birth.
      const [major = 0, minor = 0] = release().split('.').map(Number)
      const born = major > 6 || (major === 6 && minor >= 6) ? created : '[0-9]+'
      t.match(times, new RegExp(`^${created} 4[0-7]+ ${born}$`, 'm'))
      const attributes = await runIn(place, 'getfattr', ['-d', '--absolute-names', fresh])
      t.match(attributes, 'user.vimgfs.snapshot-name="fresh"')
      t.match(attributes, 'user.vimgfs.create-type="monolithicFlat"')
      t.match(attributes, 'user.vimgfs.snapshot-date="2022-11-28T15:13:08.745Z"')
    })
  }
})

t.test('without a list the files give the names', skip, async t => {
  const folder = sharedFolder(t)
  await makeMachine(folder)
  rmSync(join(folder, 'machine.vmsd'))
  const { folder: mnt } = await mount(t, join(folder, 'disk-000003.vmdk'), { args: READ_ONLY })
  t.strictSame(readdirSync(mnt).sort(), [
    'disk-000003.raw',
    'disk-000003@disk-000001.raw',
    'disk-000003@disk-000002.raw',
    'disk-000003@disk.raw',
  ])
})

t.test('a snapshot whose disk is gone is named, and the others are there', skip, async t => {
  const folder = sharedFolder(t)
  await makeMachine(folder)
  rmSync(join(folder, 'disk-000004.vmdk'))
  const { folder: mnt, printed } = await mount(t, join(folder, 'disk-000003.vmdk'), {
    args: READ_ONLY,
  })
  t.match(printed.stderr, /the snapshot "tried\/other" is not shown: .*no such file/)
  t.equal(readdirSync(mnt).length, 4)
})

t.test('the disk is written, and nothing that it stands on', skip, async t => {
  const folder = sharedFolder(t)
  await makeMachine(folder)
  const image = join(folder, 'disk-000003.vmdk')
  const frozen = readdirSync(folder).filter(name => !name.startsWith('disk-000003'))
  const before = new Map(frozen.map(name => [name, readFileSync(join(folder, name))]))
  const old = descriptorOf(image)
  const raw = join(folder, 'expected')
  await run('qemu-img', ['convert', '-f', 'vmdk', '-O', 'raw', image, raw])
  const expected = readFileSync(raw)

  const { folder: mnt, printed } = await mount(t, image, {})
  t.equal(printed.stderr, '')
  t.match(printed.stdout, ', read-write')
  const disk = join(mnt, 'disk-000003.raw')
  for (const [at, length] of [
    [0, 3 * GRAIN],
    [4 * M + 1234, 300_000],
    [SIZE - 700, 700],
  ] as const) {
    const content = randomFillSync(Buffer.alloc(length))
    content.copy(expected, at)
    writeFileSync(join(folder, 'part'), content)
    const place = ['oflag=seek_bytes', `seek=${at}`, 'conv=notrunc', 'bs=64k', 'status=none']
    await runIn(HERE, 'dd', [`if=${join(folder, 'part')}`, `of=${disk}`, ...place])
  }
  await runIn(HERE, 'fallocate', ['-p', '-o', '1M', '-l', '1M', disk])
  expected.fill(0, M, 2 * M)
  t.ok(readFileSync(disk).equals(expected), 'read back')
  t.equal((await vimgfs(HERE, ['umount', mnt])).code, 0)

  rmSync(join(folder, 'part'))
  await run('qemu-img', ['check', '-q', '-f', 'vmdk', image])
  await run('qemu-img', ['convert', '-f', 'vmdk', '-O', 'raw', image, raw])
  t.ok(readFileSync(raw).equals(expected), 'as qemu-img reads it')
  for (const [name, bytes] of before) t.ok(readFileSync(join(folder, name)).equals(bytes), name)
  const now = descriptorOf(image)
  t.not(now.CID, old.CID, 'its content ID has changed')
  t.equal(now.parentCID, old.parentCID)
  rmSync(raw)
  const again = await mount(t, image, { args: READ_ONLY })
  await sameFiles(t, folder, again.folder, HERE)
})

t.test('a disk that others stand on is not written', skip, async t => {
  const folder = sharedFolder(t)
  await makeMachine(folder)
  const base = join(folder, 'disk.vmdk')
  const protects = async (image: string, pattern: RegExp) => {
    const { folder: mnt, printed } = await mount(t, image)
    t.match(printed.stderr, pattern)
    t.match(printed.stderr, /\(--force writes it\), mounted read-only\n$/)
    t.match(printed.stdout, ', read-only')
    t.equal((await vimgfs(HERE, ['umount', mnt])).code, 0)
    const args = ['mount', ...NO_LOG, '-o', 'rw', image, mountFolder(t)]
    const { code, stderr } = await vimgfs(HERE, args)
    t.equal(code, 1, 'with -o rw')
    t.match(stderr, pattern)
    t.match(stderr, /^vimgfs: [^\n]* \(mount -o ro\)\n$/, 'one line')
  }
  await protects(
    base,
    /disk\.vmdk: the snapshot "fresh" and the disk "disk-000001\.vmdk" would be broken by writing/,
  )
  rmSync(join(folder, 'machine.vmsd'))
  await protects(base, /the disk "disk-000001\.vmdk" would be broken/)
  await protects(
    join(folder, 'disk-000001.vmdk'),
    /the disk "disk-000002\.vmdk" and the disk "disk-000004\.vmdk" would be broken/,
  )
  const { folder: mnt, printed } = await mount(t, base, { args: READ_ONLY })
  t.equal(printed.stderr, '', 'reading is fine')
  t.equal((await vimgfs(HERE, ['umount', mnt])).code, 0)
  const forced = await mount(t, base, { args: ['--force'] })
  await runIn(HERE, 'sh', ['-c', `printf x | dd of=${forced.file('disk.raw')} conv=notrunc`])
  t.equal((await vimgfs(HERE, ['umount', forced.folder])).code, 0)
  const child = ['mount', ...NO_LOG, join(folder, 'disk-000001.vmdk'), mountFolder(t)]
  const { code, stderr } = await vimgfs(HERE, child)
  t.equal(code, 1)
  t.match(stderr, /has been changed since/)
})

t.test('a stream is read by several', skip, async t => {
  const folder = sharedFolder(t)
  const [disk, image] = [join(folder, 'disk.vmdk'), join(folder, 'stream.vmdk')]
  await run('qemu-img', ['create', '-q', '-f', 'vmdk', disk, '4M'])
  const o = ['-f', 'vmdk', '-O', 'vmdk', '-o', 'subformat=streamOptimized']
  await run('qemu-img', ['convert', ...o, disk, image])
  for (let i = 0; i < 2; i++) {
    const { printed } = await mount(t, image, {})
    t.match(printed.stderr, /stream-optimized: [^\n]*, mounted read-only\n/)
    t.match(printed.stdout, ', read-only')
  }
})

t.test('an image in use by a VMware program', skip, async t => {
  const folder = sharedFolder(t)
  const image = join(folder, 'disk.vmdk')
  await run('qemu-img', ['create', '-q', '-f', 'vmdk', image, '4M'])
  mkdirSync(`${image}.lck`)
  const member = join(`${image}.lck`, 'M12345.lck')
  const lockOf = (pid: number) => {
    writeFileSync(member, `AAAAAAAAAAAAAAAA ${pid}-0(vmware-vmx) 1 X 0 lc=self`.padEnd(512, '\0'))
  }
  lockOf(process.pid)
  const { code, stderr } = await vimgfs(HERE, ['mount', ...NO_LOG, image, mountFolder(t)])
  t.equal(code, 1)
  t.match(stderr, /^vimgfs: [^\n]*in use by vmware-vmx \(process \d+\)[^\n]*M12345\.lck[^\n]*\n$/)
  const reading = await mount(t, image, { args: READ_ONLY })
  t.match(reading.printed.stderr, /in use by vmware-vmx .*; what is read may be out of date/)
  t.equal((await vimgfs(HERE, ['umount', reading.folder])).code, 0)
  // No process has such a number; in a container nobody knows whether one outside has.
  lockOf(2 ** 22 + 1)
  if (readlinkSync('/proc/self/ns/pid') !== 'pid:[4026531836]') {
    const unknown = await vimgfs(HERE, ['mount', ...NO_LOG, image, mountFolder(t)])
    t.equal(unknown.code, 1)
    return
  }
  const { printed } = await mount(t, image, {})
  t.match(printed.stderr, /M12345\.lck was left behind by vmware-vmx/)
  t.match(printed.stdout, ', read-write')
})

/** The keys of the descriptor in an image, or of one in a file of its own. */
const descriptorOf = (image: string): Record<string, string> =>
  Object.fromEntries(
    Array.from(readFileSync(image, 'latin1').matchAll(/^(\w+)=(.*)$/gm), ([, key, value]) => [
      key,
      value,
    ]),
  )
