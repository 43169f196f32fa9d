/** What mount(8) and mount.fuse3 pass, as arguments of `vimgfs mount`. */
import t from 'tap'
import { mountArguments } from '../../src/cli/mount-helper.js'

const isRoot = process.geteuid?.() === 0
const rights = isRoot ? 'dev,suid,' : ''

t.test('mount.fuse3', async t => {
  const cases: [string[], string[]][] = [
    [
      ['/a', '/b'],
      ['-q', '--', '/a', '/b'],
    ],
    [
      ['/a', '/b', '-o', 'rw'],
      ['-q', '--', '/a', '/b'],
    ],
    [
      ['/a', '/b', '-o', 'rw,dev,suid,allow_other'],
      ['-q', '-o', `${rights}allow_other`, '--', '/a', '/b'],
    ],
    [
      ['./a', '-b/c', '-o', 'ro'],
      ['-q', '-o', 'ro', '--', './a', '-b/c'],
    ],
    [
      ['/a', '/b', '-o', 'fsname=a\\,rw,x-y="rw,ro",ro'],
      ['-q', '-o', 'fsname=a\\,rw,x-y="rw,ro",ro', '--', '/a', '/b'],
    ],
  ]
  for (const [args, expected] of cases) {
    if (args[1]?.startsWith('-')) t.equal(mountArguments('vimgfs', args), undefined, args.join(' '))
    else t.same(mountArguments('vimgfs', args), expected, args.join(' '))
  }
})

t.test('mount(8), by a link to the program', async t => {
  for (const name of ['/sbin/mount.vimgfs', '/sbin/mount.fuse.vimgfs']) {
    t.same(
      mountArguments(name, ['a', '/b', '-n', '-v', '-s', '-o', 'rw,noexec', '-t', 'fuse.vimgfs']),
      ['-q', '-o', 'noexec', '--', 'a', '/b'],
    )
    t.equal(mountArguments(name, ['/a', '/b', '-f']), 'nothing')
    t.equal(mountArguments(name, ['/a', '/b', '-nf']), 'nothing')
  }
})

t.test('what is a mistake, and no mount', async t => {
  for (const args of [
    ['umuont', '/b'],
    ['moutn', '-o', 'ro', '/a', '/b'],
    ['moutn', '/a', '/b'],
    ['/a'],
    ['--frob', '/b'],
    ['/a', '/b', '/c'],
  ]) {
    t.equal(mountArguments('/usr/bin/vimgfs', args), undefined, args.join(' '))
  }
})
