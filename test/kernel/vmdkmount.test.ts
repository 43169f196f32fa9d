/** libvmdk, a reader independent of QEMU, reads what vimgfs and QEMU have written. */
import { mkdirSync, readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { HERE, mount, noFuse, runIn, sharedFolder } from '../support/mount.js'
import { attempt, needs, needsRoot, run } from '../support/run.js'
import { sha256, unmount } from '../real/disks.js'

const SIZE = '20M'
const skip = { ...noFuse(), ...needs('vmdkmount', 'qemu-img', 'fallocate'), ...needsRoot() }

const qemuImg = (image: string, ...args: string[]) => run('qemu-img', args, { cwd: dirname(image) })
const create = (image: string, ...args: string[]) =>
  qemuImg(image, 'create', '-q', '-f', 'vmdk', ...args)

/** libvmdk does not know monolithicFlat. */
const SUBFORMATS = [
  'monolithicSparse',
  'monolithicSparse,zeroed_grain=on',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentFlat',
]

/** The disk by vimgfs, once it was written here and there; resolves to its sum. */
async function written(t: Test, image: string): Promise<string> {
  const mounted = await mount(t, image)
  const disk = mounted.file('disk.raw')
  for (const place of [
    'bs=64k count=7 seek=31',
    'bs=777 count=1 seek=5000',
    'bs=1M count=2 seek=9',
  ]) {
    const to = [`of=${disk}`, 'conv=notrunc', 'status=none']
    await runIn(HERE, 'dd', ['if=/dev/urandom', ...place.split(' '), ...to])
  }
  await runIn(HERE, 'fallocate', ['-p', '-o', '2100000', '-l', '200000', disk])
  const sum = await sha256(disk)
  await unmount(mounted)
  return sum
}

/** The sums of the disk and of what it stands on, the lowest first. */
async function byLibvmdk(t: Test, image: string): Promise<string[]> {
  const folder = join(sharedFolder(t), 'libvmdk')
  mkdirSync(folder)
  await run('vmdkmount', [image, folder])
  t.teardown(() => attempt('umount', ['--lazy', folder]))
  const sums = await Promise.all(readdirSync(folder).map(name => sha256(join(folder, name))))
  await run('umount', [folder])
  return sums
}

for (const subformat of SUBFORMATS) {
  t.test(subformat, skip, async t => {
    const image = join(sharedFolder(t), 'disk.vmdk')
    await create(image, '-o', `subformat=${subformat}`, image, SIZE)
    const sum = await written(t, image)
    t.same(await byLibvmdk(t, image), [sum])
  })
}

t.test('a disk on another, and both as a stream', skip, async t => {
  const folder = sharedFolder(t)
  const [base, image, stream] = ['base', 'disk', 'stream'].map(name => join(folder, `${name}.vmdk`))
  await create(base!, base!, SIZE)
  await run('qemu-io', ['-f', 'vmdk', '-c', 'write -q -P 5 0 3M', base!])
  await create(image!, '-b', 'base.vmdk', '-F', 'vmdk', image!)
  const sum = await written(t, image!)
  const mounted = await mount(t, image!)
  const below = await sha256(mounted.file('disk@base.raw'))
  await unmount(mounted)
  t.same(await byLibvmdk(t, image!), [below, sum])
  const o = ['-O', 'vmdk', '-o', 'subformat=streamOptimized']
  await qemuImg(image!, 'convert', '-f', 'vmdk', ...o, image!, stream!)
  const streamed = await mount(t, stream!, { args: ['-o', 'ro'] })
  t.equal(await sha256(streamed.file('stream.raw')), sum)
  await unmount(streamed)
  t.same(await byLibvmdk(t, stream!), [sum])
})
