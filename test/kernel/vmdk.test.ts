/** A machine's disk with its snapshots, mounted: each file is what qemu-img reads of its disk file. */
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { vmsdOf } from '../fixtures/vmsd.js'
import { qemuIo, randomWrites } from '../peers/qemu.js'
import {
  HERE,
  isRoot,
  mount,
  noFuse,
  ordinaryUser,
  type Place,
  READ_ONLY,
  runIn,
  sharedFolder,
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
      const times = await runIn(place, 'stat', ['-c', '%Y %a', fresh])
      t.match(times, new RegExp(`^${Math.floor(CREATED / 1e6)} 4`))
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

t.test('read and write as it is by default', skip, async t => {
  const folder = sharedFolder(t)
  await makeMachine(folder)
  const image = join(folder, 'disk-000003.vmdk')
  const before = readFileSync(image)
  const { folder: mnt, printed } = await mount(t, image, {})
  t.match(printed.stderr, /vmdk images are not written yet, mounted read-only/)
  t.equal(statSync(join(mnt, 'disk-000003.raw')).mode & 0o222, 0)
  t.ok(readFileSync(image).equals(before))
})
