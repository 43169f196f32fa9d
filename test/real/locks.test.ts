/** QEMU and vimgfs keep each other off an image, and so do two of vimgfs; who only reads may share. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  HERE,
  isMounted,
  mount,
  mountFolder,
  NO_LOG,
  noFuse,
  sharedFolder,
  until,
  vimgfs,
} from '../support/mount.js'
import { attempt, needs, run } from '../support/run.js'
import { isSound, sha256, unmount } from './disks.js'

const skip = { ...noFuse(), ...needs('qemu-img', 'qemu-io', 'qemu-nbd', 'qemu-storage-daemon') }

async function makeDisk(t: Test): Promise<{ image: string; socket: string }> {
  const folder = sharedFolder(t)
  const image = join(folder, 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '16M'])
  await run('qemu-io', ['-f', 'qcow2', '-c', 'write -q -P 7 0 1M', image])
  return { image, socket: join(folder, 'socket') }
}

/** Starts what serves the image on `socket`, and waits for it; resolves to its end. */
async function serve(t: Test, command: string, args: string[], socket: string) {
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'inherit'] })
  const ended = once(child, 'close')
  t.teardown(() => child.kill('SIGKILL'))
  if (!(await until(() => existsSync(socket)))) throw new Error(`${command} does not serve`)
  return async () => {
    child.kill('SIGTERM')
    await ended
  }
}

const SERVERS = {
  'qemu-storage-daemon': (image: string, socket: string) => [
    ...['--blockdev', `driver=qcow2,node-name=disk,file.driver=file,file.filename=${image}`],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', 'type=nbd,id=export,node-name=disk,writable=on'],
  ],
  'qemu-nbd': (image: string, socket: string) => ['-f', 'qcow2', '-t', '-k', socket, image],
}

for (const [command, args] of Object.entries(SERVERS)) {
  t.test(`under ${command}`, skip, async t => {
    const { image, socket } = await makeDisk(t)
    const end = await serve(t, command, args(image, socket), socket)
    const folder = mountFolder(t)
    for (const options of [[], ['-o', 'rw'], ['-o', 'ro']]) {
      const refused = await vimgfs(HERE, ['mount', ...NO_LOG, ...options, image, folder])
      const title = options.join(' ') || 'by default'
      t.equal(refused.code, 1, `${title}: refused`)
      t.match(refused.stderr, image)
      t.match(refused.stderr, 'force-share')
      t.equal(refused.stderr.trimEnd().split('\n').length, 1, 'one line')
      t.notOk(await isMounted(HERE, folder))
    }
    const shared = await mount(t, image, { folder, args: ['-o', 'ro,force-share'] })
    t.match(await sha256(shared.file('disk.raw')), /^[0-9a-f]{64}$/, 'with force-share it is read')
    await unmount(shared)
    await end()
    await unmount(await mount(t, image, { folder }))
    await isSound(t, image, 'mounted once it is free')
  })
}

t.test('mounted by vimgfs', skip, async t => {
  const { image } = await makeDisk(t)
  const mounted = await mount(t, image)
  const refusals = [
    ['qemu-io', '-f', 'qcow2', '-c', 'write 0 64k', image],
    ['qemu-img', 'check', image],
    ['qemu-img', 'snapshot', '-c', 'one', image],
    ['qemu-img', 'resize', image, '32M'],
  ]
  for (const [command, ...args] of refusals) {
    const { code, stderr } = await attempt(command!, args)
    t.not(code, 0, `${command} ${args[0]}`)
    t.match(stderr, 'lock')
  }
  const again = await vimgfs(HERE, ['mount', ...NO_LOG, image, mountFolder(t)])
  t.equal(again.code, 3, 'another vimgfs: mounted already')
  t.match(again.stderr, 'force-share')
  t.equal(again.stderr.trimEnd().split('\n').length, 1, 'one line')
  t.match(await run('qemu-img', ['info', '--force-share', image]), '16 MiB')
  await unmount(mounted)
  await run('qemu-io', ['-f', 'qcow2', '-c', 'write -q 0 64k', image])
  t.pass('free once it is unmounted')
})

t.test('readers share', skip, async t => {
  const { image, socket } = await makeDisk(t)
  const args = ['-f', 'qcow2', '--read-only', '-t', '-k', socket, image]
  await serve(t, 'qemu-nbd', args, socket)
  await mount(t, image, { args: ['-o', 'ro'] })
  const { file } = await mount(t, image, { args: ['-o', 'ro'] })
  t.match(await sha256(file('disk.raw')), /^[0-9a-f]{64}$/)
  const writer = await vimgfs(HERE, ['mount', ...NO_LOG, '-o', 'rw', image, mountFolder(t)])
  t.equal(writer.code, 1, 'a writer is refused')
  await run('qemu-img', ['check', '-q', image])
})
