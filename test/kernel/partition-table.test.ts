/** `-o partitions`: the files follow the partition table when a program changes it through the disk's file. */
import {
  closeSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { noise } from '../fixtures/model.js'
import { loop } from '../support/loop.js'
import { HERE, type Mount, mount, noFuse, sharedFolder, vimgfs } from '../support/mount.js'
import { needs, needsRoot, run } from '../support/run.js'

const { ESTALE } = constants.errno
const MIB = 2 ** 20
const SIZE = 24 * MIB
const skip = { ...needs('qemu-img', 'sfdisk'), ...noFuse() }

async function mounted(t: Test, script: string): Promise<Mount & { image: string }> {
  const raw = join(sharedFolder(t), 'disk.raw')
  const fd = openSync(raw, 'w')
  ftruncateSync(fd, SIZE)
  closeSync(fd)
  await run('sfdisk', ['--quiet', raw], { input: script })
  const image = join(sharedFolder(t), 'disk.qcow2')
  await run('qemu-img', ['convert', '-O', 'qcow2', raw, image])
  return { ...(await mount(t, image, { args: ['-o', 'partitions'] })), image }
}

/** Lists the folder, changes the table of `device` by sfdisk, and lists the folder again, all in one shell. */
async function changed(
  { folder, file }: Mount,
  script: string,
  device = file('disk.raw'),
  options = '',
): Promise<string[]> {
  const command = `ls ${folder} >&2; ls -l ${folder} >&2; sfdisk --quiet --no-reread --no-tell-kernel ${options} ${device}; ls ${folder}`
  const text = await run('sh', ['-c', command], { input: script })
  return text.trim().split('\n')
}

/** Node has no code for some errors. Returns 0 if `act` succeeds. */
function errnoOf(act: () => unknown): number {
  try {
    act()
    return 0
  } catch (error) {
    return -((error as NodeJS.ErrnoException).errno ?? 0)
  }
}

const listed = (mount: Mount): { number: number; start: number }[] =>
  JSON.parse(readFileSync(mount.file('.vimgfs/partitions.json'), 'utf8')).disks[0].partitions

t.test('sfdisk on the disk', skip, async t => {
  const disk = await mounted(t, 'label: gpt\nstart=2048, size=8192\nstart=12288, size=8192\n')
  const bytes = noise(4096, 3)
  writeFileSync(disk.file('disk.p1.raw'), bytes, { flag: 'r+' })
  const stays = openSync(disk.file('disk.p1.raw'), 'r+')
  const goes = openSync(disk.file('disk.p2.raw'), 'r+')
  const got = Buffer.alloc(4096)
  readSync(goes, got, 0, 4096, 0)
  t.same(
    await changed(
      disk,
      'label: gpt\nstart=2048, size=8192\n2: start=14336, size=8192\n3: size=1M\n',
    ),
    ['disk.p1.raw', 'disk.p2.raw', 'disk.p3.raw', 'disk.raw'],
  )
  t.match(listed(disk), [{ number: 1 }, { number: 2, start: 14336 * 512 }, { number: 3 }])
  t.equal(readSync(stays, got, 0, 4096, 0), 4096)
  t.ok(got.equals(bytes), 'the handle of one that stays goes on')
  t.equal(writeSync(stays, bytes, 0, 100, 512), 100)
  for (const use of [
    () => readSync(goes, got, 0, 4096, 0),
    () => writeSync(goes, got, 0, 4096, 0),
    () => ftruncateSync(goes, 0),
    () => fsyncSync(goes),
  ]) {
    t.equal(errnoOf(use), ESTALE)
  }
  closeSync(stays)
  closeSync(goes)
  writeFileSync(disk.file('disk.p2.raw'), bytes, { flag: 'r+' })
  const whole = readFileSync(disk.file('disk.raw'))
  t.ok(
    whole
      .subarray(14336 * 512)
      .subarray(0, 4096)
      .equals(bytes),
    'the new one shows its place',
  )
  t.ok(
    whole
      .subarray(12288 * 512)
      .subarray(0, 4096)
      .equals(Buffer.alloc(4096)),
  )
  // The label alone is a change of the list, but not of the files.
  const kept = openSync(disk.file('disk.p3.raw'), 'r')
  const named =
    'label: gpt\nstart=2048, size=8192\n2: start=14336, size=8192\n3: size=1M, name=data\n'
  await changed(disk, named)
  t.match(listed(disk)[2], { label: 'data' })
  t.equal(readSync(kept, got, 0, 4096, 0), 4096)
  closeSync(kept)
  t.same(await changed(disk, '', disk.file('disk.raw'), '--delete'), ['disk.raw'])
  t.equal((await vimgfs(HERE, ['umount', disk.folder])).code, 0)
  await run('qemu-img', ['check', '-q', disk.image])
})

t.test('logical partitions, and a table of another kind', skip, async t => {
  const first = 'label: dos\n4: type=5, start=2048, size=40000\n5: size=2000\n'
  const disk = await mounted(t, first)
  const two = ['disk.p5.raw', 'disk.p6.raw', 'disk.raw']
  t.same(await changed(disk, `${first}6: size=3000\n`), two)
  const three = [...two.slice(0, 2), 'disk.p7.raw', 'disk.raw']
  t.same(await changed(disk, `${first}6: size=3000\n7: size=1000\n`), three)
  t.same(await changed(disk, 'label: gpt\n5: size=1M\n'), ['disk.p5.raw', 'disk.raw'])
})

t.test('fsync is enough, and a loop device is a way, too', { ...skip, ...needsRoot() }, async t => {
  const disk = await mounted(t, 'label: dos\nstart=2048, size=8192\n')
  const fd = openSync(disk.file('disk.raw'), 'r+')
  const record = Buffer.alloc(512)
  readSync(fd, record, 0, 512, 0)
  // The second entry is a copy of the first one, after it.
  record.copy(record, 462, 446, 462)
  record.writeUInt32LE(16384, 470)
  writeSync(fd, record, 0, 512, 0)
  fsyncSync(fd)
  t.same(readdirSync(disk.folder).sort(), ['disk.p1.raw', 'disk.p2.raw', 'disk.raw'])
  closeSync(fd)
  const { device, detach } = await loop(t, disk.file('disk.raw'))
  const files = await changed(disk, 'start=30000, size=100\n', device, '--append')
  t.same(files, ['disk.p1.raw', 'disk.p2.raw', 'disk.p3.raw', 'disk.raw'])
  await detach()
})
