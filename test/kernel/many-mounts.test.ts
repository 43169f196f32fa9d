/** The commands on all mounts: list, stats, and umount of several. */
import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  attemptIn,
  isMounted,
  MAIN,
  NO_LOG,
  namespace,
  sharedFolder,
  sampleImage,
} from '../support/mount.js'
import { needsRoot } from '../support/run.js'

const OTHER_UID = 12_345

t.test('of root and of an ordinary user', { ...needsRoot() }, async t => {
  const { root, user } = await namespace(t, { uid: OTHER_UID })
  const folder = sharedFolder(t)
  const [one, two, three] = ['one', 'two', 'three'].map(name => {
    const image = join(folder, `${name}.qcow2`)
    copyFileSync(sampleImage(t), image)
    return image
  }) as [string, string, string]
  const made = await attemptIn(root, 'sh', [
    '-c',
    `cd ${folder} && mkdir a b c && chmod 777 a b c && chmod 666 *.qcow2`,
  ])
  t.equal(made.code, 0, made.stderr)
  const [a, b, c] = ['a', 'b', 'c'].map(name => join(folder, name)) as [string, string, string]
  const command = (place = root, ...args: string[]) =>
    attemptIn(place, process.execPath, [MAIN, ...args])
  t.teardown(async () => {
    for (const at of [a, b, c]) await attemptIn(root, 'umount', ['--lazy', at])
  })
  for (const [place, ...args] of [
    [root, one, a],
    [root, '-r', '-o', 'fsname=other', two, b],
    [user, three, c],
  ] as const) {
    const { code, stderr } = await command(place, 'mount', ...NO_LOG, ...args)
    t.equal(code, 0, stderr)
  }

  const list = async (place = root): Promise<Record<string, unknown>[]> =>
    JSON.parse((await command(place, 'list', '--json')).stdout)
  t.match(await list(), [
    { mountpoint: a, image: one, format: 'qcow2', mode: 'rw', state: 'ok', user: 0 },
    { mountpoint: b, image: two, format: 'qcow2', mode: 'ro', state: 'ok', user: 0 },
    { mountpoint: c, image: three, format: 'qcow2', mode: 'rw', state: 'ok', user: OTHER_UID },
  ])
  t.match(await list(user), [{ mountpoint: c, image: three }], 'a user sees what is the user’s')
  t.equal((await list(user)).length, 1)
  const table = (await command(root, 'list')).stdout.trim().split('\n')
  t.match(table[0], /^MOUNTPOINT +IMAGE +FORMAT +MODE +SINCE +PID +STATE +USER$/)
  t.match(table[1], new RegExp(`^${a} +${one} +qcow2 +rw +20..-..-.. ..:.. +[0-9]+ +ok +0$`))

  await t.test('a stopped server does not answer', async t => {
    const [{ pid }] = (await list()).filter(({ mountpoint }) => mountpoint === b) as [
      { pid: number },
    ]
    process.kill(pid, 'SIGSTOP')
    try {
      t.match(await list(), [{ state: 'ok' }, { state: 'no answer', mode: 'ro' }, { state: 'ok' }])
    } finally {
      process.kill(pid, 'SIGCONT')
    }
  })

  await t.test('statistics', async t => {
    await attemptIn(root, 'dd', [
      ...['if=/dev/urandom', `of=${a}/one.raw`, 'bs=64k', 'count=2', 'conv=notrunc'],
    ])
    const stats = JSON.parse((await command(root, 'stats', '--json', a)).stdout)
    t.equal(stats.stats.bytesWritten, 2 * 65536)
    t.ok(stats.perSecond.bytesWritten > 0)
    const metrics = (await command(root, 'stats', '--openmetrics', a)).stdout
    t.match(metrics, `vimgfs_written_bytes_total{mountpoint="${a}"} 131072\n`)
    t.match(metrics, /\n# EOF\n$/)
    t.match((await command(root, 'stats', c)).stdout, /^writes +0 +0\.0$/m, "a user's, for root")
    t.match((await command(user, 'stats', a)).stderr, /its statistics cannot be read/)
  })

  await t.test('umount', async t => {
    t.match((await command(user, 'umount', '--all-users')).stderr, /for root only/)
    const others = await command(user, 'umount', one)
    t.match(others.stderr, /vimgfs has not mounted this image here/)
    const several = await command(root, 'umount', b, '/no/such', three)
    t.equal(several.code, 1)
    t.equal(several.stderr, 'vimgfs: /no/such: nothing is mounted there\n')
    t.same(await Promise.all([a, b, c].map(at => isMounted(root, at))), [true, false, false])
    await command(user, 'mount', ...NO_LOG, three, c)
    t.equal((await command(user, 'umount', '-a')).code, 0)
    t.same(await Promise.all([a, c].map(at => isMounted(root, at))), [true, false])
    await command(user, 'mount', ...NO_LOG, three, c)
    await command(root, 'mount', ...NO_LOG, '-o', 'fsname=other', two, b)
    t.equal(
      (await command(root, 'umount', two)).code,
      0,
      'an image that is mounted by another name',
    )
    t.equal((await command(root, 'umount', '--all-users')).stderr, '')
    t.same(await list(), [])
    t.equal((await command(root, 'umount', '--all')).code, 0, 'nothing is left to do')
  })
})
