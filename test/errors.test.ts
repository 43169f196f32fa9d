/** What a user sees of an error, and what a program gets. */
import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import t from 'tap'
import {
  type ErrorCode,
  errnoOf,
  ImageError,
  inWords,
  isExpected,
  MountError,
  oneLine,
  printable,
  SystemError,
  UsageError,
} from '../src/errors.js'

const { EACCES, EINVAL, EIO, ENOENT, EOPNOTSUPP, EROFS } = constants.errno

const codes: [ErrorCode, number][] = [
  ['NOT_AN_IMAGE', EINVAL],
  ['UNSUPPORTED', EOPNOTSUPP],
  ['CORRUPT', EIO],
  ['REFUSED', EACCES],
  ['MISSING', ENOENT],
  ['READ_ONLY', EROFS],
]
for (const [code, errno] of codes) {
  t.test(code, async t => t.equal(errnoOf(new ImageError(code, 'x')), errno))
}

t.test('other errors', async t => {
  t.equal(errnoOf(new SystemError('read', EACCES)), EACCES)
  t.equal(errnoOf(new TypeError('a bug')), EIO)
  t.equal(errnoOf(undefined), EIO)
  try {
    readFileSync('/nowhere')
  } catch (error) {
    t.equal(errnoOf(error), ENOENT, 'those of Node, which are negative')
    t.ok(isExpected(error))
  }
})

t.test('a bug is not expected', async t => {
  t.ok(isExpected(new ImageError('CORRUPT', 'x')))
  t.ok(isExpected(new UsageError('x')))
  t.ok(isExpected(new MountError('x')))
  t.ok(isExpected(new SystemError('read', EIO)))
  t.notOk(isExpected(new TypeError('x')))
  t.notOk(isExpected('x'))
})

t.test('one line: the problem, its place, and the way out', async t => {
  const error = new ImageError('CORRUPT', 'a\nb', { path: '/x\x1b[2J/y', hint: 'go on\r' })
  t.equal(oneLine(error), '/x\\x1b[2J/y: a\\x0ab; go on\\x0d')
  t.equal(oneLine(new UsageError('no such option')), 'no such option')
  t.equal(new SystemError('read', EIO, '/x').message, 'read /x: EIO')
})

t.test('too many open files: the limit, whichever call met it', async t => {
  const cases = [
    ['EMFILE', constants.errno.EMFILE, /ulimit -n/],
    ['ENFILE', constants.errno.ENFILE, /fs\.file-max/],
  ] as const
  for (const [code, errno, limit] of cases) {
    const system = new SystemError('open', errno, '/x')
    const ofNode = Object.assign(new Error(`${code}: open '/x'`), { code, syscall: 'open' })
    for (const error of [system, ofNode]) {
      t.ok(isExpected(error))
      t.match(inWords(error), limit)
      t.match(oneLine(error), limit)
    }
  }
})

t.test('printable', async t => {
  t.equal(printable('ü\x7f\x9f\0'), 'ü\\x7f\\x9f\\x00')
  t.equal(printable('x'.repeat(3000)), `${'x'.repeat(2000)}…`)
})

t.test('errors of a file system, in words', async t => {
  const { ENOSPC, EFBIG } = constants.errno
  t.equal(
    oneLine(new SystemError('write', ENOSPC, '/x/disk')),
    '/x/disk: write failed: no space is left there; make room, or use another folder',
  )
  t.match(
    oneLine(new SystemError('ftruncate', EFBIG, '/x/disk')),
    /would be larger .*; use another/,
  )
  t.equal(oneLine(new SystemError('write', EINVAL, '/x/disk')), 'write /x/disk: EINVAL')
})
