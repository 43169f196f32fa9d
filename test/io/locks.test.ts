/** QEMU's locks, byte by byte, between open file descriptions of one process. */
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { tmpdir } from 'node:os'
import t, { type Test } from 'tap'
import * as libc from '../../src/io/libc.js'
import { isWrittenByOthers, lockImage } from '../../src/io/locks.js'

function image(t: Test) {
  const folder = mkdtempSync(join(tmpdir(), 'vimgfs-test-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const file = join(folder, 'disk')
  writeFileSync(file, 'disk')
  const fds: number[] = []
  t.teardown(() => {
    for (const fd of fds) closeSync(fd)
  })
  const open = (flags: 'r' | 'r+' = 'r+') => {
    const fd = openSync(file, flags)
    fds.push(fd)
    return fd
  }
  return { file, open }
}

/** The bytes from 0 to 300 that others than `fd` have locked. */
const locked = (fd: number): number[] =>
  Array.from({ length: 300 }, (_, at) => at).filter(at => libc.isLockedByOthers(fd, at))

t.test('what is locked', async t => {
  for (const [purpose, flags, bytes] of [
    ['write', 'r+', [100, 101, 103, 201, 203]],
    ['read', 'r', [100, 201, 203]],
  ] as const) {
    const { file, open } = image(t)
    const fd = open(flags)
    t.equal(lockImage(fd, file, purpose), undefined)
    t.same(locked(open()), bytes, purpose)
    t.same(locked(fd), [], 'nothing that is in its own way')
    t.equal(isWrittenByOthers(open()), purpose === 'write')
  }
})

t.test('which locks conflict', async t => {
  for (const [first, second, isRefused] of [
    ['read', 'read', false],
    ['read', 'write', true],
    ['write', 'read', true],
    ['write', 'write', true],
  ] as const) {
    const { file, open } = image(t)
    lockImage(open(), file, first)
    const attempt = () => lockImage(open(), file, second)
    if (!isRefused) t.equal(attempt(), undefined)
    else t.throws(attempt, { name: 'ImageError', code: 'REFUSED', context: { path: file } })
  }
})

t.test('what others may hold', async t => {
  // 102: it is rewritten with what it holds; 204: nobody changes the graph. Neither is in our way.
  for (const [at, purpose, isRefused] of [
    [102, 'write', false],
    [202, 'write', false],
    [204, 'write', false],
    [200, 'read', true],
    [101, 'read', true],
    [103, 'read', true],
    [201, 'read', false],
    [201, 'write', true],
    [203, 'write', true],
  ] as const) {
    const { file, open } = image(t)
    t.equal(libc.lockShared(open(), at), 0)
    const attempt = () => lockImage(open(), file, purpose)
    if (isRefused) t.throws(attempt, { code: 'REFUSED' }, `${at} for ${purpose}`)
    else t.doesNotThrow(attempt, `${at} for ${purpose}`)
  }
})

t.test('locks go with their descriptor', async t => {
  const { file, open } = image(t)
  const fd = openSync(file, 'r+')
  lockImage(fd, file, 'write')
  closeSync(fd)
  t.same(locked(open()), [])
})

t.test('a file system without locks: a warning', async t => {
  for (const [errno, name] of [
    [37, 'ENOLCK'],
    [22, 'EINVAL'],
    [95, 'ENOTSUP'],
  ] as const) {
    const locks: typeof import('../../src/io/locks.js') = await t.mockImport(
      '../../src/io/locks.js',
      { '../../src/io/libc.js': { ...libc, lockShared: () => -1, errno: () => errno } },
    )
    const { file, open } = image(t)
    t.match(
      locks.lockImage(open(), file, 'write'),
      `${file}: its file system has no locks (${name})`,
    )
  }
})
