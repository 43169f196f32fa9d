/** Devices that stand on a mount's files, by lists that the kernel of this machine cannot show. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t from 'tap'
import { numberText, type Seen, standingOn } from '../../src/control/standing-on.js'
import { tempFolder } from '../support/run.js'

/** loop0 over the disk has a partition, on which device mapper stands, and md on that; loop1 is over a file of what is mounted. */
const SYSFS: Record<string, string> = {
  'block/loop0/loop/backing_file': '/mnt/x/disk.raw',
  'block/loop1/loop/backing_file': '/mnt/root/file',
  'block/loop2/loop/backing_file': '/mnt/x/disk@one.raw',
  'class/block/loop0/dev': '7:0',
  'class/block/loop0/loop0p1/partition': '1',
  'class/block/loop0/loop0p2/partition': '2',
  'class/block/loop0p1/dev': '259:1',
  'class/block/loop0p1/holders/dm-0/x': '',
  'class/block/loop0p2/dev': '259:2',
  'class/block/loop1/dev': '7:1',
  'class/block/loop2/dev': '7:2',
  'class/block/dm-0/dev': '253:0',
  'class/block/dm-0/holders/md0/x': '',
  'class/block/md0/dev': '9:0',
}

const seen = (device: string, mountpoint: string, options = 'rw', type = 'ext4'): Seen => ({
  path: mountpoint,
  mount: {
    ...{ id: mountpoint, parent: '1', isPrivate: true, device, mountpoint, type },
    ...{ source: 'none', flags: options, options },
  },
})

t.test('partitions, device mapper, md, and files of what stands there', async t => {
  const sys = tempFolder(t)
  for (const [name, text] of Object.entries(SYSFS)) {
    mkdirSync(dirname(join(sys, name)), { recursive: true })
    writeFileSync(join(sys, name), text)
  }
  const mounts = [
    seen('0:42', '/mnt/x', 'rw', 'fuse.vimgfs'),
    seen('9:0', '/mnt/root'),
    seen('259:2', '/mnt/read-only', 'ro,seclabel'),
    seen('7:1', '/mnt/inner'),
    seen('7:2', '/mnt/old'),
    seen('8:1', '/'),
    seen('9:0', '/mnt/again'),
  ]
  const { loops, mounts: found } = standingOn('0:42', ['disk.raw'], mounts, sys)
  t.same(loops, ['/dev/loop0'])
  t.same(
    found.map(({ mountpoint }) => mountpoint),
    ['/mnt/inner', '/mnt/root'],
    'what stands on another one comes first',
  )
  t.same(standingOn('0:43', ['disk.raw'], mounts, sys), { loops: [], mounts: [] })
})

t.test('device numbers', async t => {
  t.equal(numberText(0x700), '7:0')
  t.equal(numberText(0x10301), '259:1')
  t.equal(numberText(0x11110370), '259:70000')
})
