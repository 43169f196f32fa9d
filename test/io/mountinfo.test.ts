import fs, { mkdirSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { findMount, listMounts, realMountpoint } from '../../src/io/mountinfo.js'
import { tempFolder } from '../support/run.js'

/** The module, told that this is /proc/self/mountinfo. */
async function withMounts(
  t: Test,
  lines: string[],
): Promise<typeof import('../../src/io/mountinfo.js')> {
  const readFileSync = () => lines.map(line => `${line}\n`).join('')
  return t.mockImport('../../src/io/mountinfo.js', {
    'node:fs': { ...fs, default: { ...fs, readFileSync } },
  })
}

t.test('lines', async t => {
  const mounts = await withMounts(t, [
    '22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw',
    '95 22 0:44 / /mnt/x ro,nosuid - fuse.vimgfs /images/disk.qcow2 ro,user_id=0',
    // Two optional fields, a folder of the source, and characters written in octal.
    '96 22 0:45 /sub /mnt/a\\040b\\011c\\012d\\134e rw shared:2 master:1 - fuse.vimgfs one\\040two rw',
    '97 22 0:46 / /mnt/über\\040-\\040uns rw - tmpfs  rw',
  ])
  t.same(
    mounts
      .listMounts()
      .map(({ device, mountpoint, type, source, options }) =>
        [device, mountpoint, type, source, options].join('|'),
      ),
    [
      '254:0|/|ext4|/dev/vda|rw',
      '0:44|/mnt/x|fuse.vimgfs|/images/disk.qcow2|ro,user_id=0',
      '0:45|/mnt/a b\tc\nd\\e|fuse.vimgfs|one two|rw',
      '0:46|/mnt/über - uns|tmpfs||rw',
    ],
  )
})

t.test('of several mounts on one folder the last is on top', async t => {
  const { mountAt } = await withMounts(t, [
    '95 22 0:44 / /mnt/x ro - fuse.vimgfs first ro',
    '96 95 0:45 / /mnt/x ro - fuse.vimgfs second ro',
    '97 22 0:46 / /mnt/x/y ro - tmpfs third ro',
  ])
  t.match(mountAt('/mnt/x'), { source: 'second', device: '0:45' })
  t.equal(mountAt('/mnt'), undefined)
  t.equal(mountAt('/mnt/x/'), undefined, 'a path as realMountpoint makes it')
})

t.test('a mount itself is never accessed: its server may hang', async t => {
  const folder = fs.realpathSync(tempFolder(t))
  const { realMountpoint } = await withMounts(t, [
    `95 22 0:44 / ${folder}/gone ro - fuse.vimgfs x ro`,
  ])
  t.equal(realMountpoint(join(folder, 'gone')), join(folder, 'gone'), 'it does not exist')
})

t.test('names of one folder', async t => {
  const folder = fs.realpathSync(tempFolder(t))
  mkdirSync(join(folder, 'real'))
  symlinkSync('real', join(folder, 'link'))
  symlinkSync('.', join(folder, 'here'))
  for (const name of ['real', 'real/', 'link', 'here/link/', 'link/../real']) {
    t.equal(realMountpoint(`${folder}/${name}`), join(folder, 'real'), name)
  }
  t.equal(realMountpoint(`${folder}/missing`), join(folder, 'missing'))
})

t.test('this machine', async t => {
  t.ok(
    listMounts().every(
      ({ device, mountpoint }) => /^\d+:\d+$/.test(device) && mountpoint.startsWith('/'),
    ),
  )
  t.ok(findMount('/proc'))
  t.equal(findMount('/proc')?.type, 'proc')
  t.equal(findMount(tempFolder(t)), undefined)
})
