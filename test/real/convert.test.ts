/** Conversions on real file systems and devices: reflinks, block devices, images that are mounted. */
import {
  existsSync,
  readdirSync,
  readFileSync,
  statfsSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { run as convert } from '../../src/cli/convert.js'
import { noise } from '../fixtures/model.js'
import { runHere } from '../support/command.js'
import { loop, mountDevice } from '../support/loop.js'
import { mount } from '../support/mount.js'
import { attempt, needs, needsRoot, run, tempFolder } from '../support/run.js'

const MIB = 2 ** 20
const convertHere = (...args: string[]) => runHere(convert, args, '/')
const DONE = { code: 0, stdout: '', stderr: '' }

/** Makes a raw disk of data and holes. Its last block is not whole. */
function makeDisk(file: string): void {
  writeFileSync(file, noise(24 * MIB, 3))
  truncateSync(file, 40 * MIB)
  writeFileSync(file, noise(MIB + 512, 4), { flag: 'a' })
}

const FILE_SYSTEMS = [
  { type: 'xfs', make: ['mkfs.xfs', '-q', '-m', 'reflink=1'], mib: 320 },
  { type: 'btrfs', make: ['mkfs.btrfs', '-q'], mib: 160 },
]

for (const { type, make, mib } of FILE_SYSTEMS) {
  const skip = { ...needs(make[0] as string, 'qemu-img', 'losetup'), ...needsRoot() }
  t.test(`${type}: plain data are shared`, skip, async t => {
    const file = join(tempFolder(t), 'device')
    writeFileSync(file, '')
    truncateSync(file, mib * MIB)
    const [command = '', ...flags] = make
    await run(command, [...flags, file])
    const { device } = await loop(t, file)
    const { folder } = await mountDevice(t, device, type)
    const usedMib = async () => {
      await run('sync', ['-f', folder])
      const { blocks, bfree, bsize } = statfsSync(folder)
      return ((blocks - bfree) * bsize) / MIB
    }
    const source = join(folder, 'source.raw')
    makeDisk(source)
    const before = await usedMib()
    const image = join(folder, 'disk.qcow2')
    t.strictSame(await convertHere('-f', 'raw', '-O', 'qcow2', '--verify', source, image), DONE)
    t.match(await attempt('qemu-img', ['check', '-f', 'qcow2', image]), { code: 0 })
    const compared = ['compare', '-f', 'raw', '-F', 'qcow2', source, image]
    t.match(await attempt('qemu-img', compared), { code: 0 })
    const back = join(folder, 'back.raw')
    t.strictSame(await convertHere(image, back), DONE)
    t.ok(readFileSync(back).equals(readFileSync(source)))
    t.ok((await usedMib()) - before < 8, 'the three take little more space than one')
    // Clusters of 512 bytes share nothing, and are right all the same.
    const small = join(folder, 'small.qcow2')
    const options = ['-O', 'qcow2', '-o', 'cluster_size=512', '--verify']
    t.strictSame(await convertHere(...options, source, small), DONE)
    t.strictSame(await convertHere('--force', small, back), DONE)
    t.ok(readFileSync(back).equals(readFileSync(source)))
  })
}

t.test('into a block device', { ...needs('losetup'), ...needsRoot() }, async t => {
  const folder = tempFolder(t)
  const source = join(folder, 'source.raw')
  makeDisk(source)
  const wanted = readFileSync(source)
  const file = join(folder, 'device')
  writeFileSync(file, noise(48 * MIB, 7))
  const { device, detach } = await loop(t, file)
  t.match(await convertHere('-f', 'raw', source, device), {
    code: 1,
    stderr: /this is a block device; write into it with -n/,
  })
  t.strictSame(await convertHere('-f', 'raw', '-n', '-O', 'raw', '--verify', source, device), DONE)
  await detach()
  const found = readFileSync(file)
  t.ok(found.subarray(0, wanted.length).equals(wanted))
  t.ok(found.subarray(wanted.length).equals(noise(48 * MIB, 7).subarray(wanted.length)))
})

t.test('an image that is mounted', { ...needs('qemu-img'), ...needsRoot() }, async t => {
  const folder = tempFolder(t)
  const image = join(folder, 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '4M'])
  const other = join(folder, 'other.raw')
  writeFileSync(other, noise(MIB, 1))
  const mounted = await mount(t, image)
  const before = readFileSync(image)
  const where = new RegExp(`it is mounted on ${mounted.folder}; unmount it first: vimgfs umount`)
  for (const args of [['--force'], ['-n', '-O', 'qcow2']]) {
    await refused(t, [...args, '-f', 'raw', other, image], where)
  }
  await refused(t, [image, join(folder, 'target')], where)
  t.ok(readFileSync(image).equals(before))
  t.notOk(existsSync(join(folder, 'target')))
  t.strictSame(readdirSync(folder).sort(), ['disk.qcow2', 'other.raw'])
})

async function refused(t: Test, args: string[], message: RegExp): Promise<void> {
  t.match(await convertHere(...args), { code: 1, stdout: '', stderr: message })
}
