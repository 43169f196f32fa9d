/** Commands on mounted images: how they find the server, and who may ask it. */
import { existsSync, linkSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  attemptIn,
  everyPlace,
  HERE,
  hasEnded,
  kill,
  mount,
  noFuse,
  ordinaryUser,
  READ_ONLY,
  runIn,
  sampleImage,
  vimgfs,
} from '../support/mount.js'
import { needsRoot } from '../support/run.js'

const socketOf = async ({ place, file }: Awaited<ReturnType<typeof mount>>): Promise<string> =>
  JSON.parse(await runIn(place, 'cat', [file('.vimgfs/status.json')])).socket

for (const place of await everyPlace(t)) {
  t.test(`the list of a mount point is that of the image, as ${place.name}`, noFuse(), async t => {
    const image = sampleImage(t)
    const [hard, soft] = [join(image, '..', 'hard'), join(image, '..', 'soft')]
    linkSync(image, hard)
    symlinkSync(image, soft)
    const kinds = [[], ['--output=json'], ['--layers']]
    const atRest = await Promise.all(
      kinds.map(args => vimgfs(HERE, ['snapshot', 'list', ...args, image])),
    )
    const mounted = await mount(t, image, { place })
    for (const [i, args] of kinds.entries()) {
      for (const name of [image, mounted.folder, hard, soft]) {
        const { stdout, ...rest } = await vimgfs(place, ['snapshot', 'list', ...args, name])
        t.same(rest, { code: 0, stderr: '' })
        // Its own name is as it was given.
        t.equal(stdout.replaceAll(name, image), atRest[i]?.stdout)
      }
    }
    const socket = await socketOf(mounted)
    await runIn(place, 'test', ['-S', socket])
    await vimgfs(place, ['umount', mounted.folder])
    t.equal((await attemptIn(place, 'test', ['-e', socket])).code, 1, 'it goes with the mount')
    t.equal(mounted.log().includes('there is no socket'), false)
  })
}

t.test('only the owner and root reach a server', needsRoot(), async t => {
  const user = await ordinaryUser(t)
  const root = { ...HERE, prefix: user.prefix.slice(0, user.prefix.indexOf('setpriv')) }
  const image = sampleImage(t)
  const mounted = await mount(t, image, { place: user })
  t.match(await vimgfs(root, ['snapshot', 'list', mounted.folder]), { code: 0 })
  const other = {
    ...user,
    prefix: user.prefix.map(word => word.replace('=65534', '=65533')),
  }
  t.match(await vimgfs(other, ['snapshot', 'list', mounted.folder]), {
    code: 1,
    stderr:
      /^vimgfs: \/[^\n]*: another user has mounted it; only that user and root may do this\n$/,
  })
})

t.test('a killed server leaves a socket, which the next one removes', noFuse(), async t => {
  const image = sampleImage(t)
  const first = await mount(t, image, { args: READ_ONLY })
  const socket = await socketOf(first)
  kill(first.pid, 'SIGKILL')
  // From now on the server of any other test may remove it, too.
  await hasEnded(t, first.pid)
  const { code, stderr } = await vimgfs(HERE, ['snapshot', 'list', first.folder])
  t.equal(code, 1)
  t.match(stderr, /^vimgfs: [^\n]*its server takes no commands[^\n]*\n$/)
  await mount(t, image, { args: READ_ONLY })
  t.notOk(existsSync(socket))
})

t.test('several servers of one image do not disturb each other', noFuse(), async t => {
  const image = sampleImage(t)
  symlinkSync(image, join(image, '..', 'soft'))
  const one = await mount(t, image, { args: READ_ONLY })
  const two = await mount(t, join(image, '..', 'soft'), { args: READ_ONLY })
  t.not(await socketOf(one), await socketOf(two))
  await vimgfs(HERE, ['umount', one.folder])
  t.match(await vimgfs(HERE, ['snapshot', 'list', two.folder]), { code: 0 })
})
