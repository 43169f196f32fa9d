/** Obstacles to a mount: one line names the obstacle and the way out, and nothing is left behind. */
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import {
  HERE,
  isMounted,
  isRoot,
  mount,
  mountFolder,
  NO_LOG,
  namespace,
  noFuse,
  ordinaryUser,
  type Place,
  READ_ONLY,
  runIn,
  serversOf,
  sharedFolder,
  until,
  launched,
  sampleImage,
} from '../support/mount.js'
import { needsRoot } from '../support/run.js'

const SAMPLE = sampleImage(t)

async function mountsOn(place: Place, folder: string): Promise<string[]> {
  const mounts = await runIn(place, '/bin/cat', ['/proc/self/mounts'])
  return mounts.split('\n').filter(line => line.includes(` ${folder} `))
}

let mounts = 0

/** Mounts the sample on `folder`, which must fail with one line that matches. */
async function refused(
  t: Test,
  place: Place,
  folder: string,
  message: RegExp,
  args: string[] = [],
): Promise<void> {
  // Both check alike, and one process in front costs half.
  for (const how of [mounts++ % 4 === 0 ? [] : ['-f']]) {
    const before = await mountsOn(place, folder)
    const { code, stdout, stderr } = await launched(place, [
      'mount',
      ...NO_LOG,
      ...how,
      ...READ_ONLY,
      ...args,
      SAMPLE,
      folder,
    ])
    t.equal(code, 1, `${place.name} ${how}`)
    t.equal(stdout, '')
    t.match(stderr, message)
    t.match(stderr, /^vimgfs: [^\n]*\n$/, 'one line')
    t.same(await mountsOn(place, folder), before, 'nothing is mounted')
    t.ok(await until(() => serversOf(folder).length === 0), 'no server is left')
  }
}

t.test('a mount point whose name Node cannot say', noFuse(), async t => {
  // Node replaces bytes that are not UTF-8 by this character.
  await refused(t, HERE, mountFolder(t, HERE, 'm\ufffd'), /this name, or its folder, is not UTF-8/)
})

t.test('mount points', noFuse(), async t => {
  for (const place of isRoot ? [HERE, await ordinaryUser(t)] : [HERE]) {
    const folder = sharedFolder(t)
    writeFileSync(join(folder, 'file'), '')
    symlinkSync('missing', join(folder, 'dangling'))
    await refused(
      t,
      place,
      join(folder, 'missing'),
      /missing: it does not exist; make it with mkdir /,
    )
    await refused(t, place, join(folder, 'dangling'), /does not exist/)
    await refused(t, place, join(folder, 'file'), /file: it is not a folder; name an empty folder/)
    await refused(
      t,
      place,
      join(folder, 'file', 'x'),
      /cannot be used as a mount point: a part of the path is not a folder/,
    )
    await refused(
      t,
      place,
      '/proc',
      /\/proc: proc \(proc\) is mounted there already; unmount it with umount/,
    )

    const busy = await mount(t, SAMPLE, { place, args: READ_ONLY })
    const pattern = /disk\.qcow2 is mounted there already; unmount it with vimgfs umount/
    for (const how of [[], ['-f']]) {
      const { code, stderr } = await launched(place, [
        'mount',
        ...NO_LOG,
        ...READ_ONLY,
        ...how,
        SAMPLE,
        busy.folder,
      ])
      t.equal(code, 3, 'so that a script can accept it')
      t.match(stderr, pattern)
      t.match(stderr, /^[^\n]*\n$/)
    }
    t.same(serversOf(busy.folder), [busy.pid], 'the first is still there')
  }
})

t.test('folders of others', needsRoot(), async t => {
  const place = await ordinaryUser(t)
  const folder = sharedFolder(t)
  mkdirSync(join(folder, 'readable'))
  mkdirSync(join(folder, 'closed'), { mode: 0o700 })
  mkdirSync(join(folder, 'closed', 'inner'))
  mkdirSync(join(folder, 'sticky'))
  chmodSync(join(folder, 'sticky'), 0o1777)
  await refused(
    t,
    place,
    join(folder, 'readable'),
    /you may not write to it; mount on a folder of your own/,
  )
  await refused(
    t,
    place,
    join(folder, 'closed', 'inner'),
    /cannot be used as a mount point: permission denied/,
  )
  await refused(t, place, join(folder, 'sticky'), /sticky: .*not owned by user/)
})

t.test('no /dev/fuse', needsRoot(), async t => {
  const { root, user } = await namespace(t, { deviceMode: 'missing' })
  for (const place of [root, user]) {
    await refused(
      t,
      place,
      mountFolder(t, place),
      /\/dev\/fuse cannot be opened: no such file; .*modprobe fuse/,
    )
  }
})

t.test('/dev/fuse is closed', needsRoot(), async t => {
  const { user } = await namespace(t, { deviceMode: 0o600 })
  await refused(t, user, mountFolder(t, user), /\/dev\/fuse is closed to you; ask root for access/)
})

t.test('no fusermount3', needsRoot(), async t => {
  const { user } = await namespace(t)
  const place = { ...user, prefix: [...user.prefix, 'PATH=/nowhere'] }
  const message =
    /you may not mount and fusermount3 is not installed; install it with apt-get install fuse3/
  await refused(t, place, mountFolder(t, place), message)
})

t.test('allow_root and allow_other without user_allow_other', needsRoot(), async t => {
  const { user } = await namespace(t, { fuseConf: '# user_allow_other\n' })
  for (const option of ['allow_root', 'allow_other']) {
    const message = /need the line user_allow_other in \/etc\/fuse\.conf; ask root to add it/
    await refused(t, user, mountFolder(t, user), message, ['-o', option])
  }
})

t.test('a log that cannot be written', noFuse(), async t => {
  const folder = mountFolder(t)
  const link = join(folder, '..', 'link')
  symlinkSync('/dev/full', link)
  for (const [file, why] of [
    ['/no/such/log', /log: the log cannot be written: its folder does not exist/],
    [link, /link: the log cannot be written: it is a symbolic link/],
    ['/tmp', /tmp: the log cannot be written: it is a folder/],
  ] as const) {
    await refused(t, HERE, folder, why, ['--log-file', file])
  }
})

t.test('names that need care', noFuse(), async t => {
  for (const name of ['-dash with space - ü', 'line\nbreak', 'back\\slash, com,ma']) {
    for (const place of isRoot ? [HERE, await ordinaryUser(t)] : [HERE]) {
      const target = mountFolder(t, place, name)
      const args = [
        'mount',
        ...NO_LOG,
        ...READ_ONLY,
        '-o',
        `fsname=${name.replace(/[\\,]/g, c => `\\${c}`)}`,
        SAMPLE,
        target,
      ]
      const { code, stderr } = await launched(place, args)
      t.equal(code, 0, `${JSON.stringify(name)} by ${place.name}: ${stderr}`)
      t.match(await runIn(place, 'ls', [target]), 'disk.raw')
      const escape = (c: string) => `\\${c.charCodeAt(0).toString(8).padStart(3, '0')}`
      const escaped = name.replace(/[ \n\\]/g, escape)
      t.match(
        await runIn(place, 'cat', ['/proc/self/mounts']),
        `${escaped} ${dirname(target)}/${escaped} `,
      )
      t.equal((await launched(place, ['umount', target])).code, 0)
      t.notOk(await isMounted(place, target))
    }
  }
})
