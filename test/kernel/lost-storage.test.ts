/** The file system below an image goes away: the mount stays, answers errors, and can be unmounted. */
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  attemptIn,
  hasEnded,
  HERE,
  isMounted,
  isRunning,
  kill,
  mount,
  noFuse,
  noLibfuse,
  overLibfuse,
  type Place,
  runIn,
  sharedFolder,
  until,
  vimgfs,
} from '../support/mount.js'
import { run } from '../support/run.js'

const skip = noFuse()

for (const place of [HERE, overLibfuse(HERE)]) {
  const unless = place.transport ? noLibfuse() : skip
  for (const access of ['ro', 'rw'] as const) {
    t.test(`${access}, ${place.name}`, unless, t => loseStorage(t, place, access))
  }
}

async function loseStorage(t: Test, place: Place, access: 'ro' | 'rw'): Promise<void> {
  // An image as the disk of another one: the other one's server is the file system that dies.
  const folder = sharedFolder(t)
  const [inner, holder] = [join(folder, 'inner.qcow2'), join(folder, 'holder.qcow2')]
  await run('qemu-img', [
    ...['create', '-q', '-f', 'qcow2', '-o', 'preallocation=falloc', inner, '16M'],
  ])
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', holder, '32M'])
  const below = await mount(t, holder)
  const copy = [`if=${inner}`, `of=${below.file('holder.raw')}`, 'bs=64k', 'conv=notrunc,fsync']
  await run('dd', copy)
  const image = below.file('holder.raw')
  const options = ['--format', 'qcow2', '-o', `${access},commit=1`]
  const above = await mount(t, image, { place, args: options })
  const disk = above.file('holder.raw')
  const write = ['if=/dev/urandom', `of=${disk}`, 'bs=64k', 'count=4', 'conv=notrunc']
  if (access === 'rw') await runIn(place, 'dd', write)

  // What the kernel has in its cache could be read on.
  await run('dd', [`if=${image}`, 'iflag=nocache', 'count=0'])
  kill(below.pid, 'SIGKILL')
  t.ok(await hasEnded(t, below.pid))
  const read = await attemptIn(place, 'dd', [`if=${disk}`, 'of=/dev/null', 'iflag=direct', 'bs=1M'])
  t.match(read.stderr, 'Input/output error')
  if (access === 'rw') {
    const { stderr } = await attemptIn(place, 'dd', write)
    t.match(stderr, /Read-only file system|Input\/output error/)
    t.ok(await until(() => above.log().includes('read-only')), 'the log says it')
  }
  t.match(await runIn(place, 'ls', [above.folder]), 'holder.raw')
  const status = await runIn(place, 'cat', [above.file('.vimgfs/status.json')])
  t.equal(JSON.parse(status).failure === null, access === 'ro')
  t.ok(isRunning(above.pid), 'it goes on')
  t.notMatch(above.log(), '"level":60')

  const { code, stderr } = await vimgfs(place, ['umount', above.folder])
  t.equal(code, access === 'ro' ? 0 : 1)
  if (access === 'rw')
    t.match(stderr, 'it is unmounted, but not all that was written could be kept')
  t.notOk(await isMounted(place, above.folder))
  t.ok(await hasEnded(t, above.pid))
}
