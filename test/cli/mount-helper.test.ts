/** What mount(8), umount(8) and mount.fuse3 pass, and what becomes of it. */
import t from 'tap'
import { helperCall, runHelper } from '../../src/cli/mount-helper.js'
import { umountArguments } from '../../src/cli/umount-helper.js'
import { UsageError } from '../../src/errors.js'

const isRoot = process.geteuid?.() === 0
const rights = isRoot ? ['dev', 'suid'] : []
const PLAIN = { isFake: false, isSloppy: false, isVerbose: false, isUnnoted: false }

t.test('mount.fuse3', async t => {
  const cases: [string[], string[]][] = [
    [['/a', '/b'], []],
    [['/a', '/b', '-o', 'rw'], []],
    [
      ['/a', '/b', '-o', 'rw,dev,suid,allow_other'],
      [...rights, 'allow_other'],
    ],
    [
      ['/a', '/b', '-o', 'fsname=a\\,rw,x-y="rw,ro",ro'],
      ['fsname=a\\,rw', 'x-y="rw,ro"', 'ro'],
    ],
    [
      ['/a', '/b', '-o', 'rw,remount'],
      ['rw', 'remount'],
    ],
  ]
  for (const [args, options] of cases) {
    const call = helperCall('vimgfs', args)
    t.same(call, { image: '/a', folder: '/b', options, ...PLAIN }, args.join(' '))
  }
})

t.test('mount(8), by a link to the program', async t => {
  const names = { image: 'a', folder: '/b' }
  for (const name of ['/sbin/mount.vimgfs', '/sbin/mount.fuse.vimgfs']) {
    const cases: [string[], object][] = [
      [['a', '/b'], {}],
      [['a', '/b', '-f'], { isFake: true }],
      [['a', '/b', '-nf'], { isFake: true, isUnnoted: true }],
      [['a', '/b', '-r'], { options: ['ro'] }],
      [['-w', 'a', '/b'], { options: ['rw'] }],
      [['a', '/b', '-r', '-w'], { options: ['rw'] }],
      [['a', '/b', '-N', '/proc/1/ns/mnt', '-tvimgfs'], {}],
      [
        ['a', '/b', '-n', '-v', '-s', '-o', 'rw,noexec', '-t', 'fuse.vimgfs'],
        { options: ['noexec'], isSloppy: true, isVerbose: true, isUnnoted: true },
      ],
    ]
    for (const [args, expected] of cases) {
      const all = { ...names, options: [], ...PLAIN, ...expected }
      t.same(helperCall(name, args), all, args.join(' '))
    }
    for (const args of [['/a'], ['/a', '/b', '/c'], ['/a', '/b', '-x'], ['/a', '/b', '-o']]) {
      t.throws(() => helperCall(name, args), UsageError, args.join(' '))
    }
  }
})

t.test('what is a mistake, and no mount', async t => {
  for (const args of [
    ['umuont', '/b'],
    ['moutn', '-o', 'ro', '/a', '/b'],
    ['moutn', '/a', '/b'],
    ['./a', '-b/c', '-o', 'ro'],
    ['/a'],
    ['--frob', '/b'],
    ['/a', '/b', '/c'],
  ]) {
    t.equal(helperCall('/usr/bin/vimgfs', args), undefined, args.join(' '))
  }
})

t.test('what ends before anything is mounted', async t => {
  const call = { image: '/nowhere/a', folder: '/nowhere/b', options: [], ...PLAIN }
  t.equal(await runHelper({ ...call, isFake: true }), 0)
  t.equal(await runHelper({ ...call, options: ['ro', 'nofail'] }), 0)
})

t.test('umount(8)', async t => {
  t.same(umountArguments(['/b']), ['--', '/b'])
  t.same(umountArguments(['/b', '-fnrv', '-N', 'ns', '-t', 'fuse.vimgfs']), ['--', '/b'])
  t.same(umountArguments(['-lv', '/b']), ['--lazy', '--', '/b'])
  for (const args of [[], ['/a', '/b'], ['-x', '/a']]) t.throws(() => umountArguments(args))
})
