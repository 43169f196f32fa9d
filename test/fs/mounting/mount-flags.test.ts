/** Flags of mount(2) as words for fusermount3 and libfuse 2. */
import t from 'tap'
import { changeFlags, DEFAULT_FLAGS, flagNames } from '../../../src/fs/mounting/mount-flags.js'

const after = (...options: string[]): number =>
  options.reduce((flags, option) => changeFlags(flags, option) ?? Number.NaN, DEFAULT_FLAGS)

t.test('the names of mount flags', async t => {
  t.same(flagNames(DEFAULT_FLAGS), ['rw', 'nosuid', 'nodev'])
  t.same(flagNames(after('dev', 'suid') | 1), ['ro', 'suid', 'dev'])
  t.same(flagNames(after('sync', 'dirsync', 'noexec', 'noatime')), [
    'rw',
    'nosuid',
    'nodev',
    'noexec',
    'sync',
    'dirsync',
    'noatime',
  ])
  t.same(flagNames(after('relatime', 'silent')), ['rw', 'nosuid', 'nodev'])
})

t.test('flags without a name', async t => {
  for (const option of ['strictatime', 'lazytime', 'nodiratime', 'nosymfollow']) {
    t.throws(() => flagNames(after(option)), {
      message: `-o ${option} needs root and the direct transport; leave it out`,
    })
  }
})

t.test('unknown flags', async t => {
  for (const option of ['', 'toString', 'suid=1', 'x-y']) {
    t.equal(changeFlags(0, option), undefined)
  }
})
