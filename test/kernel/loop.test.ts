/** A file system inside a disk, mounted through a loop device: what root does with a mount. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  HERE,
  mount,
  namespace,
  noLibfuse,
  overLibfuse,
  type Place,
  READ_ONLY,
  runIn,
  sharedFolder,
  sampleImage,
} from '../support/mount.js'
import { attempt, needs, needsRoot, run } from '../support/run.js'

const MIB = 2 ** 20
const skip = { ...needs('losetup', 'mke2fs', 'qemu-img'), ...needsRoot() }

/** A disk with an ext4 of `source`'s files, compressed. */
async function makeDisk(folder: string, source: string): Promise<string> {
  mkdirSync(join(source, 'deep', 'er'), { recursive: true })
  writeFileSync(join(source, 'small'), 'a line\n')
  const words = Array.from({ length: 600_000 }, (_, index) => `word ${index}`)
  writeFileSync(join(source, 'deep', 'large'), words.join('\n'))
  for (let i = 0; i < 200; i++)
    writeFileSync(join(source, 'deep', 'er', `file ${i}`), `${i}\n`.repeat(i))
  const [raw, image] = [join(folder, 'raw'), join(folder, 'disk.qcow2')]
  await run('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', source, raw, '64M'])
  await run('qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', raw, image])
  return image
}

/** Mounts `file` read-only through a loop device until the test ends. */
async function loopMount(t: Test, place: Place, file: string, direct: boolean): Promise<string> {
  const folder = join(sharedFolder(t), 'inside')
  mkdirSync(folder)
  const args = ['--find', '--show', '--read-only', `--direct-io=${direct ? 'on' : 'off'}`, file]
  const device = (await runIn(place, 'losetup', args)).trim()
  t.teardown(() => attempt('losetup', ['--detach', device]))
  const state = await runIn(place, 'losetup', ['--noheadings', '--output', 'DIO', device])
  t.equal(state.trim(), direct ? '1' : '0', 'as it was asked for')
  await runIn(place, 'mount', ['-t', 'ext4', '-o', 'ro', device, folder])
  t.teardown(() => runIn(place, 'umount', [folder]))
  return folder
}

t.test('buffered and direct', skip, async t => {
  const folder = sharedFolder(t)
  const source = join(folder, 'source')
  const image = await makeDisk(folder, source)
  const { root, user } = await namespace(t, { fuseConf: 'user_allow_other\n' })
  const ways = noLibfuse().skip
    ? [[HERE, user] as const]
    : [[HERE, user] as const, [overLibfuse(HERE), overLibfuse(user)] as const]
  for (const [first, second] of ways)
    for (const direct of [false, true]) {
      await t.test(`${first.name}, ${direct ? 'direct' : 'buffered'}`, async t => {
        const { file } = await mount(t, image, { place: first, args: READ_ONLY })
        const inside = await loopMount(t, HERE, file('disk.raw'), direct)
        await run('diff', ['-r', '--exclude=lost+found', source, inside])
      })
      await t.test(`${second.name} with allow_root, ${direct ? 'direct' : 'buffered'}`, async t => {
        const { file } = await mount(t, image, { place: second, args: ['-o', 'ro,allow_root'] })
        const inside = await loopMount(t, root, file('disk.raw'), direct)
        await runIn(root, 'diff', ['-r', '--exclude=lost+found', source, inside])
      })
    }
})

t.test('the states of the sample', skip, async t => {
  const { file } = await mount(t, sampleImage(t), { args: READ_ONLY })
  const states = {
    'disk.raw': { motd: 'Upgraded', release: 'Sample 2.0\n' },
    'disk@before-upgrade.raw': { motd: 'Sam has moved in', release: 'Sample 1.0\n' },
    'disk@fresh-install.raw': { motd: 'Nobody has used it yet', release: 'Sample 1.0\n' },
  }
  for (const [name, { motd, release }] of Object.entries(states)) {
    const inside = await loopMount(t, HERE, file(name), false)
    t.match(await run('cat', [join(inside, 'etc/motd')]), motd, name)
    t.equal(await run('cat', [join(inside, 'etc/release')]), release)
  }
})

t.test('a disk of that size', skip, async t => {
  const { file } = await mount(t, sampleImage(t), { args: READ_ONLY })
  const device = (
    await run('losetup', ['--find', '--show', '--read-only', file('disk.raw')])
  ).trim()
  t.teardown(() => run('losetup', ['--detach', device]))
  t.equal(Number(await run('blockdev', ['--getsize64', device])), 16 * MIB)
})
