/** Snapshots of images that are mounted, or that a virtual machine has open; and those of an ordinary user. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  HERE,
  mount,
  noFuse,
  ordinaryUser,
  READ_ONLY,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { needs, run } from '../support/run.js'

const skip = { ...needs('qemu-img', 'qemu-io', 'qemu-storage-daemon'), ...noFuse() }

async function makeImage(folder: string): Promise<string> {
  const file = join(folder, 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', file, '4M'])
  return file
}

const CHANGES = [
  ['create', 'x'],
  ['delete', 'x'],
  ['revert', 'x'],
]

t.test('an image that a mount only reads is refused, and the mount is named', skip, async t => {
  const image = await makeImage(sharedFolder(t))
  const mounted = await mount(t, image, { args: READ_ONLY })
  const before = readFileSync(image)
  for (const [action = '', tag = ''] of CHANGES) {
    const { code, stderr } = await vimgfs(HERE, ['snapshot', action, image, tag])
    t.equal(code, 1)
    t.match(stderr, `it is mounted on ${mounted.folder}; unmount it first: vimgfs umount`)
  }
  t.ok(readFileSync(image).equals(before))
  t.match(await vimgfs(HERE, ['snapshot', 'list', image]), { code: 0 })
})

t.test('an image of a machine is refused, and the machine is named', skip, async t => {
  const image = await makeImage(sharedFolder(t))
  const node = `driver=qcow2,node-name=disk,file.driver=file,file.filename=${image}`
  const daemon = spawn('qemu-storage-daemon', [
    ...['--blockdev', node],
    ...['--nbd-server', `addr.type=unix,addr.path=${image}.socket`],
    ...['--export', 'type=nbd,id=e,node-name=disk,writable=on'],
    ...['--chardev', 'stdio,id=m', '--monitor', 'chardev=m'],
  ])
  t.teardown(() => daemon.kill())
  // It greets when it has opened all.
  await once(daemon.stdout, 'data')
  const { code, stderr } = await vimgfs(HERE, ['snapshot', 'create', image, 'x'])
  t.equal(code, 1)
  t.match(stderr, /in use: qemu-storage-daemon .* writes it; try again once that has ended\n$/)
})

t.test('an ordinary user needs no FUSE', needs('qemu-img'), async t => {
  const folder = sharedFolder(t)
  const place = await ordinaryUser(t)
  const image = join(folder, 'disk.qcow2')
  const { code } = await vimgfs(place, ['snapshot', 'list', image])
  t.equal(code, 1, 'there is none yet')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '4M'])
  await run('chmod', ['666', image])
  t.match(await vimgfs(place, ['snapshot', 'create', image, 'x']), { code: 0, stderr: '' })
  t.match((await vimgfs(place, ['snapshot', 'list', image])).stdout, /^1 +x /m)
  await run('chmod', ['644', image])
  const refused = await vimgfs(place, ['snapshot', 'delete', image, 'x'])
  t.match(refused, { code: 1, stderr: /permission denied/ })
})
