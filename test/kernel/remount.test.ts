/** Unmounting and mounting again: who still has the image or the mount, and what the commands say of it. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import t, { type Test } from 'tap'
import {
  letGo,
  everyPlace,
  hasEnded,
  HERE,
  isMounted,
  kill,
  MAIN,
  mount,
  mountFolder,
  NO_LOG,
  noFuse,
  type Place,
  READ_ONLY,
  runIn,
  sampleImage,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import * as libc from '../../src/io/libc.js'
import { loop, mountDevice } from '../support/loop.js'
import { attempt, needs, needsRoot, run } from '../support/run.js'

const skip = noFuse()

const oneLine = (t: Test, text: string, pattern: RegExp) => {
  t.match(text, pattern)
  t.match(text, /^vimgfs: [^\n]*\n$/, 'one line')
}

/** An image that `place`'s user may write. */
async function writableImage(t: Test, place: Place): Promise<string> {
  const image = join(sharedFolder(t), 'disk.qcow2')
  copyFileSync(sampleImage(t), image)
  if (place.uid !== process.getuid?.()) await run('chown', [String(place.uid), image])
  return image
}

/** Stops `pid`, which goes on when the test ends at the latest. */
function stop(t: Test, pid: number): void {
  process.kill(pid, 'SIGSTOP')
  t.teardown(() => kill(pid, 'SIGCONT'))
}

const mountWords = (image: string, folder: string, ...args: string[]) => [
  'mount',
  ...NO_LOG,
  ...args,
  image,
  folder,
]

const unmounting = (place: Place, folder: string): [string, string[]] =>
  place.uid === 0 ? ['umount', [folder]] : ['fusermount3', ['-u', folder]]

t.test('by root and by an ordinary user, by both transports', skip, async t => {
  for (const place of await everyPlace(t)) {
    await t.test(place.name, async t => {
      await atOnce(t, place)
      if (!place.transport) await remounting(t, place)
    })
  }
})

async function atOnce(t: Test, place: Place): Promise<void> {
  await t.test('right after unmounting, by others than vimgfs umount', async t => {
    const image = await writableImage(t, place)
    const folder = mountFolder(t, place)
    for (const text of ['a', 'b', 'c']) {
      const { file } = await mount(t, image, { place, folder })
      await runIn(place, 'sh', ['-c', `printf ${text} | dd of=${file('disk.raw')} conv=notrunc`])
      await runIn(place, ...unmounting(place, folder))
    }
    const checked = await vimgfs(place, ['check', '--repair', 'all', image])
    t.equal(checked.code, 0, checked.stderr)
  })
}

async function remounting(t: Test, place: Place): Promise<void> {
  await t.test('already mounted: where, and an exit code of its own', async t => {
    const image = await writableImage(t, place)
    const { folder, pid } = await mount(t, image, { place })
    const elsewhere = mountFolder(t, place)
    for (const [target, options] of [
      [folder, []],
      [elsewhere, []],
      [elsewhere, READ_ONLY],
      [elsewhere, ['-f']],
    ] as const) {
      const again = await vimgfs(place, mountWords(image, target, ...options))
      t.equal(again.code, 3, again.stderr)
      oneLine(
        t,
        again.stderr,
        new RegExp(`vimgfs \\(process ${pid}\\) writes it; it is mounted on`),
      )
      t.match(again.stderr, folder)
    }
    t.notOk(await isMounted(place, elsewhere))
    t.equal((await vimgfs(place, ['umount', folder])).code, 0)

    await mount(t, image, { place, folder, args: READ_ONLY })
    const same = await vimgfs(place, mountWords(image, folder, ...READ_ONLY))
    t.equal(same.code, 3)
    oneLine(t, same.stderr, /disk\.qcow2 is mounted there already; unmount it with vimgfs umount/)
    const wider = await vimgfs(place, mountWords(image, elsewhere, '-o', 'rw'))
    t.equal(wider.code, 1, 'who wants to write has no use for it')
    oneLine(t, wider.stderr, new RegExp(`read-only on ${folder}, reads it`))
    const other = await writableImage(t, place)
    const taken = await vimgfs(place, mountWords(other, folder))
    t.equal(taken.code, 1, 'another image')
  })

  await t.test('stopped, with something to lose: umount says so and leaves it', async t => {
    const image = await writableImage(t, place)
    const { folder, pid } = await mount(t, image, { place })
    stop(t, pid)
    const { code, stderr } = await vimgfs(place, ['umount', folder])
    t.equal(code, 1)
    t.match(
      stderr,
      new RegExp(`mnt: its server \\(process ${pid}\\) is stopped.*kill -CONT ${pid}`),
    )
    t.ok(await isMounted(place, folder))
    kill(pid, 'SIGCONT')
    t.equal((await vimgfs(place, ['umount', folder])).code, 0)
  })
}

t.test('stopped, read-only: unmounted, but its end is waited for', skip, async t => {
  const { folder, pid } = await mount(t, sampleImage(t), { args: READ_ONLY })
  stop(t, pid)
  const { code, stderr } = await vimgfs(HERE, ['umount', folder])
  t.equal(code, 1)
  t.match(stderr, new RegExp(`its server \\(process ${pid}\\) is stopped; continue it`))
  t.notOk(await isMounted(HERE, folder))
  kill(pid, 'SIGCONT')
  t.ok(await hasEnded(t, pid))
})

const asRoot = { ...skip, ...needsRoot() }

t.test('a server that has long to go is waited for, with a line', asRoot, async t => {
  for (const command of ['check', 'mount'] as const) {
    const image = sampleImage(t)
    const { folder, pid } = await mount(t, image)
    stop(t, pid)
    // umount(8) would ask the server for the folder's attributes first.
    libc.unmount(folder, 0)
    const words = command === 'mount' ? mountWords(image, folder) : ['check', image]
    const stdio = ['ignore', 'ignore', 'pipe'] as const
    const child = spawn(process.execPath, [MAIN, ...words], { stdio: [...stdio] })
    t.teardown(() => child.kill('SIGKILL'))
    const exit = once(child, 'exit')
    const [line] = await once(child.stderr as Readable, 'data')
    t.match(String(line), new RegExp(`disk\\.qcow2: waiting for vimgfs \\(process ${pid}\\)`))
    kill(pid, 'SIGCONT')
    t.same((await exit)[0], 0, command)
    if (command === 'mount') t.equal((await vimgfs(HERE, ['umount', folder])).code, 0)
  }
})

t.test('another mount namespace has it, too', asRoot, async t => {
  for (const propagation of ['private', 'slave']) {
    const { folder, pid } = await mount(t, sampleImage(t))
    const words = ['--mount', `--propagation=${propagation}`]
    words.push('sh', '-c', `${letGo(folder)}; echo in; exec cat`)
    const other = spawn('unshare', words, { stdio: ['pipe', 'pipe', 'inherit'] })
    t.teardown(() => other.kill('SIGKILL'))
    await once(other.stdout, 'data')
    // Whether the other one sees an unmount made here depends on how / is mounted.
    const isLinked = propagation === 'slave' && (await isShared())
    const { code, stderr } = await vimgfs(HERE, ['umount', folder])
    if (!isLinked) {
      t.equal(code, 1)
      oneLine(
        t,
        stderr,
        new RegExp(`cat \\(process ${other.pid}\\) has it in another mount namesp`),
      )
      t.ok(await isMounted(HERE, folder), 'nothing has changed')
      other.stdin.end()
      await once(other, 'exit')
      t.equal((await vimgfs(HERE, ['umount', folder])).code, 0)
    } else t.equal(code, 0, stderr)
    t.ok(await hasEnded(t, pid))
  }
})

const isShared = async (): Promise<boolean> =>
  (await run('findmnt', ['-n', '-o', 'PROPAGATION', '-T', '/tmp'])).includes('shared')

t.test('a bind mount of it, or of a file of it', asRoot, async t => {
  const { folder, file } = await mount(t, sampleImage(t))
  const target = join(sharedFolder(t), 'bound')
  await run('touch', [target])
  await run('mount', ['--bind', file('disk.raw'), target])
  t.teardown(() => attempt('umount', [target]))
  const { code, stderr } = await vimgfs(HERE, ['umount', folder])
  t.equal(code, 1)
  oneLine(t, stderr, new RegExp(`mounted on ${target}, too`))
  await run('umount', [target])
  t.equal((await vimgfs(HERE, ['umount', folder])).code, 0)
})

const inUse = { ...asRoot, ...needs('losetup', 'mke2fs', 'qemu-img') }

t.test('in use: the loop device and the mounts on it', inUse, async t => {
  const folder = sharedFolder(t)
  const image = join(folder, 'disk.img')
  await run('qemu-img', ['create', '-q', '-f', 'raw', image, '16M'])
  const mounted = await mount(t, image, { args: ['--format', 'raw'] })
  const { device, detach } = await loop(t, mounted.file('disk.raw'))
  const refused = async () => {
    const { code, stderr } = await vimgfs(HERE, ['umount', mounted.folder])
    t.equal(code, 1)
    oneLine(t, stderr, /mnt: it is in use by .*fuser.*--lazy/)
    return stderr
  }
  t.match(await refused(), `by ${device} (disk.raw) (fuser`)
  await run('mke2fs', ['-q', device])
  const inside = await mountDevice(t, device, 'ext4')
  t.match(
    await refused(),
    `${device} (disk.raw): ${device} is mounted on ${inside.folder} (fuser -vm ${mounted.folder} shows by whom); end that with umount ${inside.folder} && losetup -d ${device}, or`,
  )
  await inside.unmount()
  await detach()
  t.equal((await vimgfs(HERE, ['umount', mounted.folder])).code, 0)
})

t.test('in use: partitions, and device-mapper devices on them', inUse, async t => {
  const folder = sharedFolder(t)
  const image = join(folder, 'disk.img')
  await run('qemu-img', ['create', '-q', '-f', 'raw', image, '16M'])
  await run('sfdisk', ['-q', image], { input: 'start=2048,size=8192\nstart=10240,size=8192\n' })
  const mounted = await mount(t, image, { args: ['--format', 'raw'] })
  const device = (await run('losetup', ['-f', '--show', '-P', mounted.file('disk.raw')])).trim()
  t.teardown(() => attempt('losetup', ['-d', device]))
  if (!readFileSync('/proc/partitions', 'utf8').includes(`${device.slice(5)}p2`)) {
    return t.comment('this kernel has no partitions of loop devices')
  }
  await run('mke2fs', ['-q', `${device}p1`])
  const inside = await mountDevice(t, `${device}p1`, 'ext4')
  const name = `vimgfs-test-${process.pid}`
  const table = `0 8192 linear ${device}p2 0`
  const mapped = await attempt('dmsetup', ['create', name, '--table', table])
  t.teardown(() => attempt('dmsetup', ['remove', name]))
  const { code, stderr } = await vimgfs(HERE, ['umount', mounted.folder])
  t.equal(code, 1)
  t.match(stderr, `${device}p1 is mounted on ${inside.folder}`)
  if (mapped.code === 0) {
    t.match(stderr, `${device}p2 is part of /dev/mapper/${name}`)
    t.match(stderr, `&& dmsetup remove ${name} && losetup -d ${device}`)
    await run('dmsetup', ['remove', name])
  } else t.comment(`no device-mapper: ${mapped.stderr}`)
  await inside.unmount()
  await run('losetup', ['-d', device])
  t.equal((await vimgfs(HERE, ['umount', mounted.folder])).code, 0)
})

t.test('in use: a process', skip, async t => {
  const { folder } = await mount(t, sampleImage(t), { args: READ_ONLY })
  const child = spawn('cat', [], { cwd: folder, stdio: ['pipe', 'ignore', 'inherit'] })
  t.teardown(() => child.kill('SIGKILL'))
  await once(child, 'spawn')
  const { stderr } = await vimgfs(HERE, ['umount', folder])
  oneLine(t, stderr, new RegExp(`it is in use by cat \\(process ${child.pid}\\) .fuser`))
  child.stdin.end()
  await once(child, 'exit')
  t.equal((await vimgfs(HERE, ['umount', folder])).code, 0)
})
