/** Permissions of other users in a mount with allow_other: those that all files of the image give them. */
import { chmodSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  attemptIn,
  call,
  HERE,
  mount,
  noLibfuse,
  ordinaryUser,
  overLibfuse,
  type Place,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { needs, needsRoot, run } from '../support/run.js'

const SIZE = 2 ** 20
const skip = { ...needs('qemu-img'), ...needsRoot() }

/** Makes an image in `folder`; resolves to its name, and to that of the file that is closed to others. */
const KINDS: { title: string; make: (folder: string) => Promise<[string, string]> }[] = [
  {
    title: 'a backing file',
    make: async folder => {
      writeFileSync(join(folder, 'base.raw'), Buffer.alloc(SIZE, 'S'))
      const words = ['create', '-q', '-f', 'qcow2', '-b', 'base.raw', '-F', 'raw', 'disk.qcow2']
      await run('qemu-img', words, { cwd: folder })
      return ['disk.qcow2', 'base.raw']
    },
  },
  {
    title: 'a data file',
    make: async folder => {
      const words = ['-o', `data_file=${folder}/data.raw`, 'disk.qcow2', '1M']
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', ...words], { cwd: folder })
      return ['disk.qcow2', 'data.raw']
    },
  },
  {
    title: 'an extent',
    make: async folder => {
      const words = ['-o', 'subformat=monolithicFlat', 'disk.vmdk', '1M']
      await run('qemu-img', ['create', '-q', '-f', 'vmdk', ...words], { cwd: folder })
      return ['disk.vmdk', 'disk-flat.vmdk']
    },
  },
]

for (const { title, make } of KINDS) {
  t.test(title, skip, async t => {
    const other = await ordinaryUser(t)
    const prefix = other.prefix.filter(word => !/^(setpriv|--re[ug]id|--clear-groups)/.test(word))
    const root: Place = { name: 'root', uid: 0, prefix }
    const byLibfuse = title === KINDS[0]?.title && !noLibfuse().skip
    for (const place of byLibfuse ? [root, overLibfuse(root)] : [root]) {
      await t.test(place.name, async t => {
        const folder = sharedFolder(t)
        const [image, closed] = await make(folder)
        chmodSync(join(folder, image), 0o666)
        for (const mode of [0o600, 0o644, 0o666]) {
          chmodSync(join(folder, closed), mode)
          const { file, folder: mounted } = await mount(t, join(folder, image), {
            place,
            args: ['-o', 'allow_other'],
          })
          const disk = file('disk.raw')
          const opens = async (words: string[]) => (await attemptIn(other, 'dd', words)).code === 0
          const reads = await opens([`if=${disk}`, 'of=/dev/null', 'count=1'])
          const writes = await opens(['if=/dev/zero', `of=${disk}`, 'count=1', 'conv=notrunc'])
          const expected = { reads: (mode & 4) !== 0, writes: (mode & 2) !== 0 }
          t.same({ reads, writes }, expected, mode.toString(8))
          t.equal(Number((await call(place, 'stat', disk)).mode) & 0o777, mode)
          t.equal((await vimgfs(place, ['umount', mounted])).code, 0)
        }
      })
    }
  })
}

t.test('the file of a layer has the modes of its image and of the layers below', skip, async t => {
  const folder = sharedFolder(t)
  writeFileSync(join(folder, 'low.raw'), Buffer.alloc(SIZE))
  const create = (below: string, format: string, name: string) =>
    run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', below, '-F', format, name], {
      cwd: folder,
    })
  await create('low.raw', 'raw', 'middle.qcow2')
  await create('middle.qcow2', 'qcow2', 'disk.qcow2')
  chmodSync(join(folder, 'low.raw'), 0o644)
  chmodSync(join(folder, 'middle.qcow2'), 0o640)
  chmodSync(join(folder, 'disk.qcow2'), 0o664)
  const { file, folder: mounted } = await mount(t, join(folder, 'disk.qcow2'))
  const mode = async (path: string) =>
    (Number((await call(HERE, 'stat', path)).mode) & 0o777).toString(8)
  t.equal(await mode(file('disk.raw')), '640')
  t.equal(await mode(file('disk@middle.raw')), '440')
  t.equal(await mode(file('disk@low.raw')), '444')
  t.equal(await mode(mounted), '555')
})
