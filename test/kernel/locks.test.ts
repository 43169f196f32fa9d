/** No program writes an image that another one uses: QEMU and vimgfs in all orders. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chownSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  HERE,
  isRoot,
  mount,
  mountFolder,
  NO_LOG,
  noFuse,
  ordinaryUser,
  type Place,
  READ_ONLY,
  runIn,
  sharedFolder,
  until,
  vimgfs,
} from '../support/mount.js'
import { attempt, needs, run } from '../support/run.js'

const skip = { ...needs('qemu-img', 'qemu-io', 'qemu-storage-daemon'), ...noFuse() }
const FORCE_SHARE = ['-o', 'ro,force-share']

async function makeImage(folder: string, format = 'qcow2', ...options: string[]): Promise<string> {
  const file = join(folder, `disk.${format}`)
  await run('qemu-img', ['create', '-q', '-f', format, ...options, file, '4M'])
  return file
}

let mounts = 0

/** Mounts `image`, which must be refused with one line that names the holder and matches. */
async function refused(
  t: Test,
  image: string,
  args: readonly string[],
  message: RegExp,
  place: Place = HERE,
  expected = 1,
): Promise<void> {
  // Alternate between background and foreground.
  for (const how of [mounts++ % 2 === 0 ? [] : ['-f']]) {
    const folder = mountFolder(t, place)
    const { code, stdout, stderr } = await vimgfs(place, [
      ...['mount', ...NO_LOG, ...how, ...args],
      ...[image, folder],
    ])
    t.equal(code, expected)
    t.equal(stdout, '')
    t.match(stderr, /^vimgfs: [^\n]*\n$/, 'one line')
    t.match(stderr, message)
  }
}

const umount = async (t: Test, folder: string) =>
  t.equal((await vimgfs(HERE, ['umount', folder])).code, 0)

/** A program that has an image open until it is ended, or the test ends. */
async function holder(t: Test, command: string, args: string[], isReady: () => Promise<boolean>) {
  const child = spawn(command, args, { stdio: 'ignore' })
  const ended = once(child, 'close')
  const end = async () => {
    child.kill('SIGTERM')
    await ended
  }
  t.teardown(end)
  t.ok(await until(isReady), `${command} has it open`)
  return { pid: child.pid as number, end }
}

/** The byte that QEMU locks to write: 100 and the number of the permission (block/file-posix.c). */
const WRITE_LOCK_AT = 101

/** Asks the kernel's list of locks: opening the image instead could disturb the program that this waits for. */
const isLocked = (file: string) => async () => {
  const inode = `:${statSync(file).ino}`
  return readFileSync('/proc/locks', 'utf8')
    .split('\n')
    .map(line => line.trim().split(/\s+/))
    .some(words => {
      const [place = '', start, end] = words.slice(-3)
      return place.endsWith(inode) && Number(start) <= WRITE_LOCK_AT && Number(end) >= WRITE_LOCK_AT
    })
}

t.test('a running qemu-storage-daemon', skip, async t => {
  const folder = sharedFolder(t)
  const image = await makeImage(folder)
  const { pid, end } = await holder(
    t,
    'qemu-storage-daemon',
    [
      ...['--blockdev', `file,node-name=f,filename=${image}`],
      ...['--blockdev', 'qcow2,node-name=q,file=f'],
      ...['--nbd-server', `addr.type=unix,addr.path=${join(folder, 'nbd')}`],
      ...['--export', 'nbd,id=e,node-name=q,writable=on'],
    ],
    isLocked(image),
  )
  const held = new RegExp(
    `disk\\.qcow2: it is in use: qemu-storage-daemon \\(process ${pid}\\) writes it; end that, or read it as it is with -o ro,force-share`,
  )
  for (const args of [[], READ_ONLY, ['-o', 'rw']]) await refused(t, image, args, held)
  const shared = await mount(t, image, { args: FORCE_SHARE })
  t.match(shared.printed.stderr, /another program has it open for writing/)
  await runIn(HERE, 'cmp', ['-n', '4194304', shared.file('disk.raw'), '/dev/zero'])
  await umount(t, shared.folder)
  const info = await vimgfs(HERE, ['info', image])
  t.equal(info.code, 0, 'what it is may be asked all the same')
  await end()
  await mount(t, image)
})

t.test('mounted for writing: QEMU and another mount are refused', skip, async t => {
  for (const format of ['qcow2', 'raw']) {
    const image = await makeImage(sharedFolder(t), format)
    const { folder, pid } = await mount(t, image)
    // Asking for a raw image's size does not need to read it.
    const commands = format === 'raw' ? [] : [['info'], ['check'], ['snapshot', '-l']]
    for (const command of [...commands, ['convert', '-O', 'raw', '/dev/null']]) {
      const [name = '', ...options] = command
      const target = name === 'convert' ? options.splice(2) : []
      const { code, stderr } = await attempt('qemu-img', [name, ...options, image, ...target])
      t.equal(code, 1, name)
      t.match(stderr, /Failed to get .* lock/)
    }
    t.match((await attempt('qemu-io', ['-f', format, '-c', 'write 0 512', image])).stderr, /lock/)
    t.equal((await attempt('qemu-img', ['info', '-U', image])).code, 0)
    const held = new RegExp(`in use: vimgfs \\(process ${pid}\\) writes it; .*-o ro,force-share`)
    for (const args of [[], READ_ONLY]) await refused(t, image, args, held, HERE, 3)
    t.equal((await vimgfs(HERE, ['info', image])).code, 0)
    await umount(t, folder)
    t.equal((await attempt('qemu-img', ['info', image])).code, 0, 'afterwards it is free')
  }
})

t.test('mounted for reading: others may read, but not write', skip, async t => {
  const image = await makeImage(sharedFolder(t))
  const first = await mount(t, image, { args: READ_ONLY })
  const second = await mount(t, image, { args: READ_ONLY })
  t.equal((await attempt('qemu-img', ['info', image])).code, 0)
  t.match((await attempt('qemu-io', ['-c', 'write 0 512', image])).stderr, /"write" lock/)
  await refused(
    t,
    image,
    [],
    /in use: vimgfs \(process \d+\).* reads it; end that, or mount it with -o ro\n/,
  )
  await umount(t, first.folder)
  await umount(t, second.folder)
  const shared = await mount(t, image, { args: FORCE_SHARE })
  t.equal(
    (await attempt('qemu-io', ['-c', 'write -q 0 512', image])).code,
    0,
    'force-share locks nothing',
  )
  await umount(t, shared.folder)
})

t.test('lower layers cannot be written, and can be read by many', skip, async t => {
  const folder = sharedFolder(t)
  const base = await makeImage(folder, 'raw')
  const [one, two] = ['one', 'two'].map(name => join(folder, `${name}.qcow2`)) as [string, string]
  for (const top of [one, two]) {
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', top])
  }
  const first = await mount(t, one)
  const second = await mount(t, two)
  t.match((await attempt('qemu-io', ['-f', 'raw', '-c', 'write 0 512', base])).stderr, /lock/)
  await refused(t, base, ['--format', 'raw'], /disk\.raw: it is in use: vimgfs .* reads it/)
  await umount(t, first.folder)
  await umount(t, second.folder)
  const held = await mount(t, base, { args: ['--format', 'raw', '--force'] })
  await refused(t, one, [], /disk\.raw: it is in use: vimgfs .* writes it/)
  await umount(t, held.folder)
})

t.test('an external data file', skip, async t => {
  const folder = sharedFolder(t)
  const data = join(folder, 'data')
  const image = await makeImage(folder, 'qcow2', '-o', `data_file=${data},data_file_raw=on`)
  const mounted = await mount(t, image)
  t.match((await attempt('qemu-io', ['-f', 'raw', '-c', 'write 0 512', data])).stderr, /lock/)
  await umount(t, mounted.folder)
  const held = await mount(t, data, { args: ['--format', 'raw', '--force'] })
  await refused(t, image, [], /data: it is in use: vimgfs .* writes it/)
  await umount(t, held.folder)
})

t.test(
  'a holder whom one may not see',
  { ...skip, ...(isRoot ? {} : { skip: 'needs root' }) },
  async t => {
    const user = await ordinaryUser(t)
    const image = await makeImage(sharedFolder(t))
    chownSync(image, user.uid, user.uid)
    await mount(t, image)
    const message =
      /it is in use: another program writes it; find it with fuser [^ ]*disk\.qcow2 or lsof, and end that/
    await refused(t, image, [], message, user)
  },
)
