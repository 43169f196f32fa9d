/** Commands on images that are mounted, by their paths and by their mount points, as each user and by each transport. */
import { chownSync, existsSync, linkSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  attemptIn,
  everyPlace,
  HERE,
  isRoot,
  mount,
  noFuse,
  ordinaryUser,
  type Place,
  READ_ONLY,
  runIn,
  sampleImage,
  vimgfs,
} from '../support/mount.js'
import { needs, needsRoot, run } from '../support/run.js'

/** Returns a copy of the sample that belongs to the user of `place`. */
function ownImage(t: Test, place: Place): string {
  const image = sampleImage(t)
  if (isRoot) chownSync(image, place.uid, place.uid)
  return image
}

const qemu = needs('qemu-img')

for (const place of await everyPlace(t)) {
  t.test(
    `snapshots come and go while mounted, as ${place.name}`,
    { ...noFuse(), ...qemu },
    async t => {
      const image = ownImage(t, place)
      const [hard, soft] = [join(image, '..', 'hard'), join(image, '..', 'soft')]
      linkSync(image, hard)
      symlinkSync(image, soft)
      const { folder, file } = await mount(t, image, { place })
      const done = async (...args: string[]) => {
        const { code, stdout, stderr } = await vimgfs(place, args)
        t.same({ code, stderr }, { code: 0, stderr: '' }, args.join(' '))
        return stdout
      }
      const names = async () => (await runIn(place, 'ls', [folder])).trim().split('\n')
      const write = (text: string) =>
        runIn(place, 'dd', [`of=${file('disk.raw')}`, 'conv=notrunc', 'status=none'], {
          input: text,
        })
      const start = async (name: string) =>
        (await runIn(place, 'head', ['-c', '5', file(name)])).toString()

      await write('first')
      t.equal(await done('snapshot', 'create', image, 'one'), '')
      t.ok((await names()).includes('disk@one.raw'))
      await write('later')
      t.equal(await start('disk@one.raw'), 'first')
      for (const [name, tag] of [
        [folder, 'two'],
        [hard, 'three'],
        [soft, 'four'],
      ] as const) {
        t.equal(await done('snapshot', '-c', tag, name), '')
        t.equal(await start(`disk@${tag}.raw`), 'later')
      }
      t.match(await vimgfs(place, ['snapshot', 'create', folder, 'two']), {
        code: 1,
        stdout: '',
        stderr:
          /^vimgfs: [^\n]*disk\.qcow2: it has a snapshot "two" already; choose another tag\n$/,
      })
      await write('again')
      t.equal(await done('snapshot', 'create', '--replace', folder, 'two'), '')
      t.equal(await start('disk@two.raw'), 'again')
      t.equal(await done('snapshot', 'rename', image, 'one', 'first'), '')
      t.equal(await start('disk@first.raw'), 'first')
      t.equal(await done('snapshot', 'rename', folder, 'first', 'one'), '')
      t.notOk((await names()).includes('disk@first.raw'))
      t.equal(await start('disk@one.raw'), 'first')
      const list = await done('snapshot', 'list', '--output=json', image)
      t.same(
        JSON.parse(list).snapshots.map(({ name }: { name: string }) => name),
        ['fresh-install', 'before-upgrade', 'one', 'three', 'four', 'two'],
      )
      t.match(
        await done('snapshot', 'delete', '--dry-run', image, 'three'),
        /^would delete .*"three"/,
      )
      t.equal(await done('snapshot', 'delete', image, 'three', 'four'), '')
      t.notOk((await names()).some(name => /three|four/.test(name)))
      t.equal(await done('snapshot', 'delete', '-q', '--older-than', '300d', image), '')
      t.same(await names(), ['disk.raw', 'disk@one.raw', 'disk@two.raw'])
      t.match(await done('check', image), /^[^\n]*disk\.qcow2: no errors found\n/)
      t.match(JSON.parse(await done('check', '--output=json', folder)), { 'check-errors': 0 })
      await write('other')
      t.match(
        await done('snapshot', 'revert', folder, 'one'),
        /^the state before is kept as snapshot "before-revert-[-0-9]+"\n$/,
      )
      t.equal(await start('disk.raw'), 'first')
      t.match(await done('resize', folder, '+1M'), /: 17 MiB \(before: 16 MiB\)\n$/)
      const size = () => runIn(place, 'stat', ['-c', '%s', file('disk.raw')])
      t.equal(await size(), `${17 * 2 ** 20}\n`)
      t.same(JSON.parse(await done('resize', '--output=json', image, '18M')), {
        filename: image,
        before: 17 * 2 ** 20,
        after: 18 * 2 ** 20,
        lost: 0,
      })
      t.match(await vimgfs(place, ['resize', '--shrink', image, '1M']), {
        code: 1,
        stderr: /^vimgfs: [^\n]*while it is mounted it cannot become smaller; unmount it[^\n]*\n$/,
      })
      await done('umount', folder)
      await run('qemu-img', ['check', '-q', image])
      const info = JSON.parse(await run('qemu-img', ['info', '--output=json', image]))
      t.equal(info['virtual-size'], 18 * 2 ** 20)
      t.equal(info.snapshots.length, 3)
    },
  )
}

t.test('what is refused is one line', noFuse(), async t => {
  const image = ownImage(t, HERE)
  const { folder } = await mount(t, image, { args: READ_ONLY })
  const refused = async (args: string[], stderr: RegExp, code = 1) =>
    t.match(await vimgfs(HERE, args), { code, stdout: '', stderr }, args.join(' '))
  const unmount = /^vimgfs: [^\n]*mounted on [^\n]*; unmount it[^\n]*\n$/
  await refused(['snapshot', 'create', image, 'x'], unmount)
  await refused(
    ['snapshot', 'create', folder, 'x'],
    /^vimgfs: [^\n]*for reading only; unmount it[^\n]*\n$/,
  )
  await refused(['resize', folder, '+1M'], /^vimgfs: [^\n]*for reading only; unmount it[^\n]*\n$/)
  await refused(['check', '--repair', 'all', image], /^vimgfs: [^\n]*in use[^\n]*\n$/)
  t.match(await vimgfs(HERE, ['check', image]), { code: 0 })
  t.match(await vimgfs(HERE, ['check', folder]), { code: 0 })
  await refused(
    ['resize', '--upgrade', folder, '+1M'],
    /^vimgfs: --upgrade is not for [^\n]*\n$/,
    2,
  )
})

t.test(
  'a mount without file locks (force-share) leaves the image to commands at rest',
  noFuse(),
  async t => {
    const image = ownImage(t, HERE)
    await mount(t, image, { args: ['-o', 'ro,force-share'] })
    t.match(await vimgfs(HERE, ['snapshot', 'create', image, 'x']), { code: 0, stderr: '' })
  },
)

t.test('root reaches the mount of a user, and believes no other claim', needsRoot(), async t => {
  const user = await ordinaryUser(t)
  const image = ownImage(t, user)
  const { folder, file } = await mount(t, image, { place: user })
  t.match(await vimgfs(HERE, ['snapshot', 'create', image, 'by-root']), {
    code: 0,
    stderr: /^vimgfs: [^\n]*is mounted in another mount namespace[^\n]*\n$/,
  })
  t.equal(
    (await runIn(user, 'stat', ['-c', '%s', file('disk@by-root.raw')])).trim(),
    `${16 * 2 ** 20}`,
  )
  t.match(
    await vimgfs({ ...user, prefix: user.prefix.slice(0, user.prefix.indexOf('setpriv')) }, [
      ...['snapshot', 'delete', folder, 'by-root'],
    ]),
    { code: 0, stderr: '' },
  )

  // A user who claims an image that he has not open.
  const other = sampleImage(t)
  const script = join(image, '..', 'claim.mjs')
  writeFileSync(script, CLAIM)
  const stat = (await run('stat', ['-c', '%d %i', other])).trim().split(' ').map(Number)
  const [device = 0, inode] = stat
  const name = `${device.toString(16)}-${inode}.PID.00000000.sock`
  const claimed = attemptIn(user, process.execPath, [script, '/tmp/vimgfs-65534', name, other])
  while (!existsSync(`${script}.ready`)) await new Promise(resolve => setTimeout(resolve, 20))
  t.match(await vimgfs(HERE, ['snapshot', 'create', other, 'mine']), {
    code: 0,
    stdout: '',
    stderr: '',
  })
  t.match(await vimgfs(HERE, ['snapshot', 'list', other]), { stdout: /mine/ })
  writeFileSync(`${script}.end`, '')
  t.match((await claimed).stdout, /asked 0/)
})

/** Answers every request with success, and says how many there were. */
const CLAIM = `import fs from 'node:fs'
import net from 'node:net'
const [folder, name, image] = process.argv.slice(2)
const path = folder + '/' + name.replace('PID', process.pid)
fs.mkdirSync(folder, { recursive: true, mode: 0o700 })
let asked = 0
const greeting = { protocol: 1, version: '0', pid: process.pid, image, mountpoint: '/mnt', device: '0:1', isWritable: true, diskFiles: [] }
net.createServer(socket => {
  socket.on('error', () => {})
  socket.on('data', () => { asked++; socket.end('{"result":null}\\n') })
  socket.write(JSON.stringify(greeting) + '\\n')
}).listen(path, () => fs.writeFileSync(process.argv[1] + '.ready', ''))
setInterval(() => {
  if (!fs.existsSync(process.argv[1] + '.end')) return
  fs.unlinkSync(path)
  console.log('asked', asked)
  process.exit()
}, 20)
`
