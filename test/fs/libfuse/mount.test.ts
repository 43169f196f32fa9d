/** libfuse's command line, and how to get the package. */
import t from 'tap'
import { type LibfuseRequest, libfuseOptions } from '../../../src/fs/libfuse/mount.js'
import { installCommand } from '../../../src/fs/libfuse/package.js'

const REQUEST: LibfuseRequest = {
  ...{ mountpoint: '/mnt/x', fsname: '/disk.qcow2', isWritable: false, flags: 6 },
  ...{ allowOther: false, allowRoot: false, defaultPermissions: false, isShared: false },
}
const optionsOf = (request: Partial<LibfuseRequest>, isRoot = true): string[] =>
  libfuseOptions({ ...REQUEST, ...request }, isRoot)
    .replace(/^-o/, '')
    .split(/(?<!\\),/)

t.test('options', async t => {
  const plain = optionsOf({})
  for (const option of ['ro', 'subtype=vimgfs', 'big_writes', 'fsname=/disk.qcow2', 'nonempty'])
    t.ok(plain.includes(option), option)
  for (const option of ['rw', 'allow_other', 'allow_root', 'default_permissions'])
    t.notOk(plain.includes(option), option)
  t.ok(optionsOf({ isWritable: true }).includes('rw'))
  const times = ['entry_timeout=0', 'attr_timeout=0', 'direct_io']
  for (const option of times) {
    t.ok(optionsOf({ isShared: true }).includes(option), 'nothing is kept of what others write')
    t.notOk(plain.includes(option), option)
  }
  t.notOk(optionsOf({}, false).includes('nonempty'), "fuse3's fusermount does not know it")
})

t.test('users who may access the mount', async t => {
  const others = optionsOf({ allowOther: true, defaultPermissions: true })
  t.ok(others.includes('allow_other') && others.includes('default_permissions'))
  const root = optionsOf({ allowOther: true, allowRoot: true, defaultPermissions: true })
  t.ok(root.includes('allow_root') && root.includes('default_permissions'))
  t.notOk(root.includes('allow_other'), 'libfuse takes one of them')
})

t.test('names that need care', async t => {
  t.ok(optionsOf({ fsname: 'a,rw\\b' }).includes('fsname=a\\,rw\\\\b'))
  for (const character of ['x', 'ü', ',']) {
    const text = libfuseOptions({ ...REQUEST, fsname: `/${character.repeat(1000)}/disk` }, true)
    t.ok(Buffer.byteLength(text) > 1010 && Buffer.byteLength(text) <= 1023, character)
    t.match(text, /,fsname=….*\/disk$/)
  }
})

t.test('the command that installs the package', async t => {
  const name = 'fuse-native@2.2.6'
  for (const [folder, command] of [
    ['/usr/lib/node_modules/vimgfs', `npm install --global ${name}`],
    ['/home/me/app/node_modules/vimgfs/', `npm install --prefix /home/me/app ${name}`],
    ['/home/me/vimgfs/', `npm install --no-save --prefix /home/me/vimgfs ${name}`],
  ] as const)
    t.equal(installCommand(folder), command)
})
