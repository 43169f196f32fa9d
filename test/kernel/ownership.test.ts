/** Programs set the owner, group and mode of the disk's file. */
import { chmodSync, chownSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { HERE, mount, noLibfuse, overLibfuse, runIn, sharedFolder } from '../support/mount.js'
import { needs, needsRoot, run } from '../support/run.js'

const SIZE = 2 ** 20
const NOBODY = 65534
const skip = { ...needs('qemu-img', 'rsync'), ...needsRoot() }

for (const place of noLibfuse().skip ? [HERE] : [HERE, overLibfuse(HERE)]) {
  t.test(`${place.name}: cp -p and rsync -a set them for the life of the mount`, skip, async t => {
    const folder = sharedFolder(t)
    const image = join(folder, 'disk.qcow2')
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, String(SIZE)])
    const before = statSync(image)
    const { file } = await mount(t, image, { place })
    const disk = file('disk.raw')
    const source = join(folder, 'source')
    writeFileSync(source, Buffer.alloc(SIZE, 's'))
    for (const [mode, command] of [
      [0o606, ['cp', '-p']],
      [0o640, ['rsync', '-aI', '--inplace']],
    ] as const) {
      chmodSync(source, mode)
      chownSync(source, NOBODY, mode === 0o640 ? 0 : NOBODY)
      await runIn(place, command[0], [...command.slice(1), source, disk])
      const { uid, gid, mode: now } = statSync(disk)
      const { uid: owner, gid: group } = statSync(source)
      t.same([uid, gid, now & 0o7777], [owner, group, mode], command[0])
      await runIn(place, 'cmp', [source, disk])
    }
    const after = statSync(image)
    t.same([after.uid, after.gid, after.mode], [before.uid, before.gid, before.mode], 'the image')
  })
}
