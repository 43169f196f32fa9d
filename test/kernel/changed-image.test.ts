/** Somebody changes an image while it is mounted for reading: the mount answers errors, never a mixture. */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  attemptIn,
  HERE,
  type Mount,
  mount,
  noFuse,
  noLibfuse,
  overLibfuse,
  type Place,
  READ_ONLY,
  sharedFolder,
  until,
  vimgfs,
} from '../support/mount.js'
import { needs, run } from '../support/run.js'

const skip = { ...needs('qemu-img', 'qemu-io'), ...noFuse() }

/** An image that is open without locks, as on a file system that has none. */
const unlocked = (image: string) => [
  '--image-opts',
  `driver=qcow2,file.driver=file,file.filename=${image},file.locking=off`,
]

type Change = (image: string) => Promise<unknown>

const CHANGES: Record<string, Change> = {
  'a cluster is written into it': image =>
    run('dd', [
      'if=/dev/urandom',
      `of=${image}`,
      'bs=64k',
      'count=1',
      'seek=5',
      'conv=notrunc',
      'status=none',
    ]),
  'another image is copied over it': async image => {
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', `${image}.new`, '2M'])
    await run('cp', [`${image}.new`, image])
  },
  'a copy of it takes its path': async image => {
    await run('cp', ['-a', image, `${image}.new`])
    await run('mv', [`${image}.new`, image])
  },
  'a snapshot is taken without locks': image =>
    run('qemu-img', ['snapshot', '-c', 'later', ...unlocked(image)]),
}

async function mounted(t: Test, place: Place): Promise<{ image: string; at: Mount }> {
  const image = join(sharedFolder(t), 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '1M'])
  await run('qemu-io', ['-c', 'write -q -P 1 0 1M', image])
  await run('qemu-img', ['snapshot', '-c', 'first', image])
  const at = await mount(t, image, { place, args: READ_ONLY })
  return { image, at }
}

const read = (at: Mount, name: string, ...flags: string[]) =>
  attemptIn(at.place, 'dd', [`if=${at.file(name)}`, 'of=/dev/null', 'bs=64k', 'count=1', ...flags])

const statusOf = async ({ place, file }: Mount) =>
  JSON.parse((await attemptIn(place, 'cat', [file('.vimgfs/status.json')])).stdout)

for (const place of [HERE, overLibfuse(HERE)]) {
  const unless = place.transport ? { ...skip, ...noLibfuse() } : skip
  // Only noticing differs between the changes, and the transports share that.
  const changes = Object.entries(CHANGES).slice(0, place.transport ? 1 : undefined)
  for (const [what, change] of changes) {
    t.test(`${what}: ${place.name}`, unless, async t => {
      const { image, at } = await mounted(t, place)
      const names = readdirSync(at.folder)
      // The kernel has them in its cache now.
      for (const name of names) t.equal((await read(at, name)).code, 0)
      t.match(await statusOf(at), { changed: false })
      await change(image)
      for (const name of names) {
        t.ok(await until(async () => (await read(at, name)).code !== 0), `${name} ends`)
        for (const flags of [[], ['iflag=direct']]) {
          t.match((await read(at, name, ...flags)).stderr, 'Input/output error')
        }
      }
      t.same(readdirSync(at.folder), names, 'listing works')
      t.equal((await attemptIn(place, 'stat', [at.file('disk.raw')])).code, 0)
      t.match(await statusOf(at), { changed: true, removed: what.includes('its path') })
      t.equal(at.log().match(/another program has changed the image/g)?.length, 1, 'one line')
      t.notMatch(at.log(), /"msg":"(READ|OPEN)/, 'and no damage')
      t.equal((await vimgfs(place, ['umount', at.folder])).code, 0)
    })
  }
}
