/** Mount options, and who may use the mount. */
import { chmodSync, copyFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { run } from '../../src/cli/mount.js'
import { runHere } from '../support/command.js'
import {
  attemptIn,
  call,
  HERE,
  isRoot,
  mount,
  mountFolder,
  namespace,
  noFuse,
  ordinaryUser,
  READ_ONLY,
  runIn,
  sharedFolder,
  vimgfs,
  sampleImage,
} from '../support/mount.js'
import { needsRoot } from '../support/run.js'

const SAMPLE = sampleImage(t)

t.test('owners and modes of the files', noFuse(), async t => {
  const image = join(sharedFolder(t), 'disk.qcow2')
  copyFileSync(SAMPLE, image)
  // The options, the image's mode → the modes of files and folders.
  const cases: { o?: string; imageMode: number; file: number; disk: number; folder: number }[] = [
    { imageMode: 0o644, file: 0o444, disk: 0o644, folder: 0o555 },
    { imageMode: 0o600, file: 0o400, disk: 0o600, folder: 0o500 },
    { imageMode: 0o660, file: 0o440, disk: 0o660, folder: 0o550 },
    { o: 'umask=0', imageMode: 0o600, file: 0o444, disk: 0o666, folder: 0o555 },
    { o: 'umask=022', imageMode: 0o600, file: 0o444, disk: 0o644, folder: 0o555 },
    { o: 'umask=0077', imageMode: 0o644, file: 0o400, disk: 0o600, folder: 0o500 },
    { o: 'umask=27,uid=12,gid=34', imageMode: 0o644, file: 0o440, disk: 0o640, folder: 0o550 },
  ]
  for (const { o, imageMode, file, disk, folder } of cases) {
    await t.test(`${o ?? 'no options'}, image ${imageMode.toString(8)}`, async t => {
      chmodSync(image, imageMode)
      const mode = async (path: string) => Number((await call(HERE, 'stat', path)).mode) & 0o7777
      const written = await mount(t, image, { args: o === undefined ? [] : ['-o', o] })
      t.equal(await mode(written.file('disk.raw')), disk)
      t.equal(await mode(written.file('disk@fresh-install.raw')), file, 'no snapshot is written')
      t.equal(await mode(written.folder), folder)
      await vimgfs(HERE, ['umount', written.folder])

      const mounted = await mount(t, image, {
        args: o === undefined ? READ_ONLY : ['-o', `ro,${o}`],
      })
      t.equal(await mode(mounted.file('disk.raw')), file)
      t.equal(await mode(mounted.file('disk@fresh-install.raw')), file)
      t.equal(await mode(mounted.folder), folder)
      const [uid, gid] = o?.includes('uid')
        ? ['12', '34']
        : [HERE.uid, process.getgid!()].map(String)
      t.match(await call(HERE, 'stat', mounted.file('disk.raw')), { uid, gid })
      t.match(await call(HERE, 'stat', mounted.folder), { uid, gid })
    })
  }
})

t.test('options given to the kernel', noFuse(), async t => {
  const optionsOf = async (folder: string) => {
    const mounts = await runIn(HERE, 'cat', ['/proc/self/mounts'])
    return mounts.split('\n').find(line => line.includes(` ${folder} `)) ?? ''
  }
  const plain = await mount(t, SAMPLE, { args: READ_ONLY })
  const line = await optionsOf(plain.folder)
  t.match(line, `${SAMPLE} ${plain.folder} fuse.vimgfs ro,nosuid,nodev,`)
  t.notMatch(line, /allow_other|default_permissions/)
  t.match(line, ',max_read=262144 ')

  const named = await mount(t, SAMPLE, {
    args: ['-o', 'ro,default_permissions', '-ofsname=my disk'],
  })
  t.match(await optionsOf(named.folder), /^my\\040disk .*,default_permissions/)

  const image = join(sharedFolder(t), 'disk.qcow2')
  copyFileSync(SAMPLE, image)
  for (const args of [[], ['-o', 'rw']]) {
    const { folder } = await mount(t, image, { args })
    t.match(await optionsOf(folder), ` ${folder} fuse.vimgfs rw,nosuid,nodev,`)
    t.equal((await vimgfs(HERE, ['umount', folder])).code, 0)
  }
})

t.test("root's mount is closed to others unless allowed", needsRoot(), async t => {
  const other = await ordinaryUser(t)
  const image = join(sharedFolder(t), 'disk.qcow2')
  copyFileSync(SAMPLE, image)
  const reading = (folder: string) => attemptIn(other, 'head', ['-c2', join(folder, 'disk.raw')])

  const outside = await vimgfsIn(t, other, image, READ_ONLY)
  t.match((await reading(outside)).stderr, 'Permission denied')
  const open = await vimgfsIn(t, other, image, ['-o', 'ro,allow_other'])
  t.equal((await reading(open)).code, 0)
  const rootOnly = await vimgfsIn(t, other, image, ['-o', 'ro,allow_root'])
  t.match((await reading(rootOnly)).stderr, 'Permission denied')
  chmodSync(image, 0o600)
  const closed = await vimgfsIn(t, other, image, ['-o', 'ro,allow_other'])
  t.match((await reading(closed)).stderr, 'Permission denied', "the image's own mode is asked")
  t.equal((await attemptIn(other, 'ls', [closed])).code, 2)
})

/** Mounts as root in the namespace of `other`, who sees it then. */
async function vimgfsIn(
  t: Parameters<typeof mount>[0],
  other: Awaited<ReturnType<typeof ordinaryUser>>,
  image: string,
  args: readonly string[],
): Promise<string> {
  const prefix = other.prefix.filter(word => !/^(setpriv|--re[ug]id|--clear-groups)/.test(word))
  const { folder } = await mount(t, image, { place: { name: 'root', uid: 0, prefix }, args })
  return folder
}

t.test("an ordinary user's mount and root", needsRoot(), async t => {
  const { root, user } = await namespace(t, { fuseConf: 'user_allow_other\n' })
  const third = { ...user, prefix: user.prefix.map(word => word.replace('=65534', '=65533')) }
  const reading = (place: typeof root, folder: string) =>
    attemptIn(place, 'head', ['-c2', join(folder, 'disk.raw')])

  await t.test('closed to root', async t => {
    const { folder, printed } = await mount(t, SAMPLE, { place: user, args: READ_ONLY })
    t.match((await reading(root, folder)).stderr, 'Permission denied')
    t.match(printed.stdout, /Only you can use it: .*loop mount.*-o allow_root or -o allow_other/)
    t.equal((await reading(user, folder)).code, 0)
  })
  await t.test('allow_root', async t => {
    const { folder, printed } = await mount(t, SAMPLE, {
      place: user,
      args: ['-o', 'ro,allow_root'],
    })
    t.equal((await reading(root, folder)).code, 0)
    t.equal((await reading(user, folder)).code, 0)
    t.match((await reading(third, folder)).stderr, 'Permission denied')
    t.not((await attemptIn(third, 'ls', [folder])).code, 0)
    t.match(printed.stdout, 'You and root can use it.')
  })
  await t.test('allow_other', async t => {
    const { folder, printed } = await mount(t, SAMPLE, {
      place: user,
      args: ['-o', 'ro,allow_other'],
    })
    for (const place of [root, user, third]) t.equal((await reading(place, folder)).code, 0)
    t.notMatch(printed.stdout, 'Only you')
  })
  await t.test('root unmounts it', async t => {
    for (const args of [READ_ONLY, ['-o', 'ro,allow_root']]) {
      const { folder } = await mount(t, SAMPLE, { place: user, args })
      t.equal((await vimgfs(root, ['umount', folder])).code, 0)
    }
  })
  await t.test('another user does not', async t => {
    const { folder } = await mount(t, SAMPLE, { place: user, args: READ_ONLY })
    const { code, stderr } = await vimgfs(third, ['umount', folder])
    t.equal(code, 1)
    t.match(stderr, /^vimgfs: [^\n]*\n$/)
    t.equal((await reading(user, folder)).code, 0)
  })
})

t.test('wrong options: exit code 2, and nothing is started', async t => {
  const folder = isRoot ? '/no/such/folder' : mountFolder(t)
  const cases = {
    '-ofrobnicate': /unknown mount option "frobnicate"/,
    '-oallow_root,allow_other': /exclude each other/,
    '-oforce-share': /force-share is for reading only: -o ro,force-share/,
    '-ocommit=-1': /-o commit=-1: it takes seconds/,
    '-ouid=me': /-o uid=me: it takes a number/,
    '--threads=0': /--threads takes a number from 1 to 64, not "0"/,
    '--threads=many': /--threads takes a number/,
    '--metadata-cache=-1': /--metadata-cache takes a size such as 32M/,
    '--format=vdi': /--format takes raw, cow, qcow, qcow2, vmdk, .*not "vdi"/,
    '--max-chain=0': /--max-chain takes a number from 1 to 500/,
    '--log-level=loud': /--log-level takes trace, /,
    '--frobnicate': /Unknown option '--frobnicate'.*vimgfs help mount/,
  }
  for (const [option, message] of Object.entries(cases)) {
    const ways = [[], ['-f']].map(how => () => runHere(run, [...how, option, SAMPLE, folder], '/'))
    if (option === '--threads=0') ways.push(() => vimgfs(HERE, ['mount', option, SAMPLE, folder]))
    for (const way of ways) {
      const { code, stdout, stderr } = await way()
      t.equal(code, 2, option)
      t.equal(stdout, '')
      t.match(stderr, message)
      t.match(stderr, /^vimgfs: [^\n]*\n$/)
    }
  }
})

t.test('threads and caches of any size read the same', noFuse(), async t => {
  const plain = await mount(t, SAMPLE, { args: READ_ONLY })
  const expected = await runIn(HERE, 'sha256sum', ['-z', plain.file('disk.raw')])
  for (const args of [
    ['--threads', '1'],
    ['--threads', '9', '--metadata-cache', '0'],
    ['--metadata-cache', '1'],
    ['--metadata-cache', '1G', '--quiet'],
  ]) {
    const { file, printed } = await mount(t, SAMPLE, { args: [...READ_ONLY, ...args] })
    const sum = await runIn(HERE, 'sha256sum', ['-z', file('disk.raw')])
    t.equal(sum.slice(0, 64), expected.slice(0, 64), args.join(' '))
    t.equal(printed.stdout === '', args.includes('--quiet'))
    t.equal(printed.stderr, '')
  }
})
