/** An image that others stand on, mounted: it is not written, so they stay what they are. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  HERE,
  mount,
  mountFolder,
  NO_LOG,
  noFuse,
  READ_ONLY,
  runIn,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { attempt, needs, needsRoot, run } from '../support/run.js'

const skip = { ...needs('qemu-img', 'qemu-io', 'losetup'), ...noFuse() }

for (const format of ['raw', 'qcow2', 'qcow', 'vmdk']) {
  t.test(`a ${format} image that a qcow2 image stands on`, skip, async t => {
    const folder = sharedFolder(t)
    const base = join(folder, 'disk.img')
    await run('qemu-img', ['create', '-q', '-f', format, base, '4M'])
    await run('qemu-io', ['-f', format, '-c', 'write -q -P 7 0 1M', base])
    const o = ['-q', '-f', 'qcow2', '-b', 'disk.img', '-F', format]
    await run('qemu-img', ['create', ...o, 'disk.before-upgrade'], { cwd: folder })
    const before = readFileSync(base)
    const args = ['--format', format]
    const umount = async (mnt: string) => t.equal((await vimgfs(HERE, ['umount', mnt])).code, 0)

    const protectedOne = await mount(t, base, { args })
    const said =
      'disk.img: the disk "disk.before-upgrade" would be broken by writing it (--force writes it)'
    t.equal(protectedOne.printed.stderr, `vimgfs: ${join(folder, said)}, mounted read-only\n`)
    t.match(protectedOne.printed.stdout, ', read-only')
    t.equal(readFileSync(protectedOne.file('disk.raw'))[0], 7)
    await umount(protectedOne.folder)

    const refused = await vimgfs(HERE, ['mount', ...NO_LOG, ...args, '-orw', base, mountFolder(t)])
    t.equal(refused.code, 1)
    const hint = 'use the image that needs it, or only read this one (mount -o ro)'
    t.equal(refused.stderr, `vimgfs: ${join(folder, said)}; ${hint}\n`)

    const reading = await mount(t, base, { args: [...args, ...READ_ONLY] })
    t.equal(reading.printed.stderr, '')
    await umount(reading.folder)

    const overlay = await mount(t, join(folder, 'disk.before-upgrade'))
    t.match(overlay.printed.stdout, ', read-write')
    await umount(overlay.folder)
    t.ok(readFileSync(base).equals(before), 'not a byte has changed')

    const forced = await mount(t, base, { args: [...args, '--force'] })
    t.match(forced.printed.stdout, ', read-write')
    await runIn(HERE, 'sh', ['-c', `printf x | dd of=${forced.file('disk.raw')} conv=notrunc`])
    await umount(forced.folder)
    t.notOk(readFileSync(base).equals(before))
  })
}

t.test('a block device has no folder that is searched', { ...skip, ...needsRoot() }, async t => {
  const folder = sharedFolder(t)
  const base = join(folder, 'disk.raw')
  await run('qemu-img', ['create', '-q', '-f', 'raw', base, '4M'])
  const device = (await run('losetup', ['-f', '--show', base])).trim()
  t.teardown(() => attempt('losetup', ['-d', device]))
  const o = ['-q', '-f', 'qcow2', '-b', device, '-F', 'raw']
  await run('qemu-img', ['create', ...o, join(folder, 'overlay.qcow2')])
  const mounted = await mount(t, device, { args: ['--format', 'raw'] })
  t.match(mounted.printed.stdout, ', read-write')
  t.equal((await vimgfs(HERE, ['umount', mounted.folder])).code, 0)
})
