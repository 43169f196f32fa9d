/** `-o manage`: programs take, rename and delete snapshots by changing the folder of the mount. */
import { chownSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  attemptIn,
  everyPlace,
  HERE,
  isRoot,
  mount,
  noFuse,
  overLibfuse,
  type Place,
  runIn,
  sampleImage,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { needs, run } from '../support/run.js'

const MANAGE = ['-o', 'manage']

function ownImage(t: Test, place: Place): string {
  const image = sampleImage(t)
  if (isRoot) chownSync(image, place.uid, place.uid)
  return image
}

for (const place of await everyPlace(t)) {
  t.test(`touch, mv and rm, as ${place.name}`, { ...noFuse(), ...needs('qemu-img') }, async t => {
    const image = ownImage(t, place)
    const { folder, file } = await mount(t, image, { place, args: MANAGE })
    const names = async () => (await runIn(place, 'ls', [folder])).trim().split('\n')
    const start = (name: string) => runIn(place, 'head', ['-c', '5', file(name)])
    const write = (input: string) =>
      runIn(place, 'dd', [`of=${file('disk.raw')}`, 'conv=notrunc', 'status=none'], { input })
    // A program that waits for the folder's lock waits for ever.
    const limited = (...words: string[]) => attemptIn(place, 'timeout', ['60', ...words])
    const done = async (...words: string[]) =>
      t.match(await limited(...words), { code: 0, stderr: '' }, words.join(' '))
    const refused = async (why: RegExp, ...words: string[]) =>
      t.match(await limited(...words), { code: 1, stderr: why }, words.join(' '))

    await write('first')
    await names()
    await done('touch', file('disk@one.raw'))
    t.ok((await names()).includes('disk@one.raw'))
    await write('later')
    t.equal(await start('disk@one.raw'), 'first')
    await done('touch', file('disk@one.raw'))
    t.equal(await start('disk@one.raw'), 'first', 'touch of one that is there changes nothing')
    await done('touch', file('disk@a%2Fb c.raw'))
    const list = async () =>
      JSON.parse(
        (await vimgfs(place, ['snapshot', 'list', '--output=json', image])).stdout,
      ).snapshots.map(({ name }: { name: string }) => name)
    t.same(await list(), ['fresh-install', 'before-upgrade', 'one', 'a/b c'])

    await done('mv', file('disk@a%2Fb c.raw'), file('disk@two.raw'))
    t.same(await list(), ['fresh-install', 'before-upgrade', 'one', 'two'])
    t.equal(await start('disk@two.raw'), 'later')
    await refused(/File exists/, 'mv', '-f', file('disk@two.raw'), file('disk@one.raw'))
    t.equal(await start('disk@one.raw'), 'first')

    for (const name of ['note', 'disk@.raw', 'disk@x.vmstate', 'disk@x.p1.raw', 'disk@%41.raw']) {
      await refused(/Operation not permitted/, 'touch', file(name))
    }
    await refused(/Operation not permitted/, 'rm', '-f', file('disk.raw'))
    await refused(/Operation not permitted/, 'mv', file('disk.raw'), file('disk@x.raw'))
    await refused(/Read-only file system/, 'mkdir', file('disk@x.raw'))
    const holding = [
      'sh',
      '-c',
      `exec 5< ${file('disk@two.raw')}; exec rm -f ${file('disk@two.raw')}`,
    ]
    await refused(/Device or resource busy/, ...holding)

    await done('rm', '-f', file('disk@two.raw'), file('disk@fresh-install.raw'))
    t.same(await names(), ['disk.raw', 'disk@before-upgrade.raw', 'disk@one.raw'])
    await refused(/No such file/, 'cat', file('disk@two.raw'))
    await vimgfs(place, ['umount', folder])
    await run('qemu-img', ['check', '-q', image])
  })
}

for (const place of noFuse().skip ? [] : [HERE, overLibfuse(HERE)]) {
  t.test(`commands and programs change it at once, as ${place.name}`, noFuse(), async t => {
    const image = ownImage(t, place)
    const { folder, file } = await mount(t, image, { place, args: MANAGE })
    const script = 'for i in 1 2 3 4 5 6; do touch "$1@t$i.raw"; rm -f "$1@t$i.raw"; done; exit 0'
    const programs = ['a', 'b'].map(one =>
      attemptIn(place, 'timeout', ['200', 'sh', '-c', script, 'sh', file(`disk`), one]),
    )
    for (let i = 0; i < 4; i++) {
      t.match(await vimgfs(place, ['snapshot', 'create', image, `c${i}`]), { code: 0 })
      t.match(await vimgfs(place, ['resize', folder, '+64K']), { code: 0 })
      t.match(await vimgfs(place, ['snapshot', 'revert', image, `c${i}`]), { code: 0 })
    }
    for (const { code } of await Promise.all(programs)) t.equal(code, 0, 'it has not hung')
    t.match(await vimgfs(place, ['check', folder]), { code: 0 })
  })
}

t.test(
  'partitions follow, while others change the table',
  { ...noFuse(), ...needs('qemu-img', 'sfdisk') },
  async t => {
    const image = join(sharedFolder(t), 'disk.qcow2')
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '16M'])
    const { folder, file } = await mount(t, image, { args: ['-o', 'manage,partitions'] })
    const names = async () => (await run('ls', [folder])).trim().split('\n')
    const limited = (...words: string[]) => attemptIn(HERE, 'timeout', ['60', ...words])
    const done = async (...words: string[]) =>
      t.match(await limited(...words), { code: 0, stderr: '' }, words.join(' '))
    const sfdisk = ['sfdisk', '--quiet', '--no-reread', '--no-tell-kernel', file('disk.raw')]
    await run('sh', ['-c', `echo start=2048,size=4M | ${sfdisk.join(' ')}`])
    await run('dd', [`of=${file('disk.p1.raw')}`, 'conv=notrunc', 'status=none'], { input: 'old' })
    await done('touch', file('disk@one.raw'))
    t.same(await names(), ['disk.p1.raw', 'disk.raw', 'disk@one.p1.raw', 'disk@one.raw'])
    await run('dd', [`of=${file('disk.p1.raw')}`, 'conv=notrunc', 'status=none'], { input: 'new' })
    t.equal(await run('head', ['-c', '3', file('disk@one.p1.raw')]), 'old')
    t.match(await limited('rm', '-f', file('disk@one.p1.raw')), {
      stderr: /Operation not permitted/,
    })
    const one = file('disk@one.raw')
    const holding = `exec 5< ${file('disk@one.p1.raw')}; exec rm -f ${one}`
    t.match(await limited('sh', '-c', holding), { stderr: /Device or resource busy/ })
    await done('mv', one, file('disk@two.raw'))
    t.ok((await names()).includes('disk@two.p1.raw'))
    const changes = [
      'for i in 1 2 3 4 5 6',
      'do touch "$1@t$i.raw"',
      'rm "$1@t$i.raw" || exit 1',
      'done',
    ]
    const tables = [
      'for i in 1 2 3 4 5 6',
      `do echo "start=2048,size=$i"M | ${sfdisk.join(' ')}`,
      'done',
    ]
    const both = await Promise.all([
      limited('sh', '-c', changes.join('; '), 'sh', file('disk')),
      limited('sh', '-c', tables.join('; ')),
    ])
    t.match(both, [{ code: 0 }, { code: 0 }], 'nobody hangs')
    await done('rm', '-f', file('disk@two.raw'))
    t.same(await names(), ['disk.p1.raw', 'disk.raw'])
    t.equal((await run('stat', ['-c', '%s', file('disk.p1.raw')])).trim(), `${6 * 2 ** 20}`)
    t.match(await vimgfs(HERE, ['umount', folder]), { code: 0 })
    await run('qemu-img', ['check', '-q', image])
  },
)

t.test('without the option the folder stays as it is', noFuse(), async t => {
  const { file } = await mount(t, ownImage(t, HERE))
  t.match(await attemptIn(HERE, 'touch', [file('disk@one.raw')]), {
    code: 1,
    stderr: /Read-only file system/,
  })
  t.match(await attemptIn(HERE, 'rm', ['-f', file('disk@fresh-install.raw')]), { code: 1 })
  t.match(await vimgfs(HERE, ['mount', '-o', 'ro,manage', 'x', 'y']), {
    code: 2,
    stderr: /^vimgfs: manage changes the image: leave out ro and scratch, or manage\n$/,
  })
})
