/** fuse-native's operations, called as the package calls them. */
import { constants } from 'node:os'
import t from 'tap'
import { SystemError } from '../../../src/errors.js'
import { LibfuseFs } from '../../../src/fs/libfuse/adapter.js'
import type { FuseStat, FuseStatfs } from '../../../src/fs/libfuse/package.js'
import { readStats, sharedStats, WorkerStats } from '../../../src/fs/status/stats.js'
import { DISK_BYTES, FakeDisk, writtenParts } from '../fake-disk.js'
import { STATS, STATUS, smallParts } from '../small-image.js'

const { EFBIG, EIO, ENODEV, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS } = constants.errno
const { O_RDONLY, O_RDWR, O_TRUNC } = { O_RDONLY: 0, O_RDWR: 2, O_TRUNC: 0o1000 }
const isRoot = process.geteuid?.() === 0
const S_IFREG = 0o100000

/** Only its size is as large as that. */
class LargeDisk extends FakeDisk {
  constructor(private readonly bytesOfAll: number) {
    super()
  }

  override get sizeBytes(): number {
    return this.bytesOfAll
  }
}

function serve(
  parts: ConstructorParameters<typeof LibfuseFs>[0],
  options: Partial<ConstructorParameters<typeof LibfuseFs>[1]> = {},
) {
  const errors: unknown[] = []
  const shared = sharedStats(1)
  const stats = new WorkerStats(shared, 0)
  const fs = new LibfuseFs(parts, {
    stats,
    onError: error => void errors.push(error),
    ...options,
  })
  const operations = fs.operations()
  return {
    fs,
    errors,
    operations,
    counted: () => readStats(shared, String),
    /** Calls an operation; what it answered, which must be once and at once. */
    ask<N extends keyof typeof operations>(name: N, ...args: unknown[]): any[] {
      const answers: unknown[][] = []
      const done = (...answer: unknown[]) => void answers.push(answer)
      ;(operations[name] as (...all: unknown[]) => void)(...args, done)
      if (answers.length !== 1) throw new Error(`${name}: ${answers.length} answers`)
      return answers[0] as unknown[]
    },
  }
}

t.test('attributes', async t => {
  const { ask } = serve(smallParts(t))
  const stat = (path: string): FuseStat => ask('getattr', path)[1]
  t.match(stat('/disk.raw'), { size: 5220, mode: S_IFREG | 0o440, uid: 1000, gid: 1001, nlink: 1 })
  t.equal(stat('/disk.raw').mtime, 1_700_000_000_500, 'milliseconds')
  t.equal(stat('/disk@first.raw').mtime, 1_600_000_000_250)
  t.equal(stat('/').nlink, 2)
  t.same(ask('getattr', '/nothing'), [-ENOENT, undefined])
  t.equal(ask('getattr', '/disk.raw/below')[0], -ENOENT)
})

t.test('sizes and numbers beyond 32 bits', async t => {
  for (const [sizeBytes, bsize] of [
    [5 * 2 ** 30, 4096],
    [16 * 2 ** 40 - 4096, 4096],
    [16 * 2 ** 40, 8192],
    [2 ** 50 + 1, 2 ** 19],
  ] as const) {
    const { parts, disk } = writtenParts(false, new LargeDisk(sizeBytes))
    const { ask } = serve(parts)
    const statfs: FuseStatfs = ask('statfs', '/')[1]
    t.match(statfs, { bsize, frsize: bsize, blocks: Math.ceil(sizeBytes / bsize) })
    t.ok(statfs.blocks < 2 ** 32)
    t.ok(statfs.bfree <= statfs.blocks)
    t.equal(statfs.bavail, statfs.bfree)
    t.equal(ask('getattr', '/disk.raw')[1].size, sizeBytes)
    const at = sizeBytes - 3
    t.same(ask('write', '/disk.raw', 1, Buffer.from('over'), 4, at), [3])
    t.same(disk.calls, [`write ${at} ove`])
  }
})

t.test('listings', async t => {
  const { ask } = serve(smallParts(t))
  const [result, names, stats] = ask('readdir', '/')
  t.equal(result, 0)
  t.same(names.slice(0, 4), ['.', '..', 'disk.raw', 'disk@first.raw'])
  t.match(stats[2], { ino: 16, mode: S_IFREG | 0o440 })
  t.equal(stats.length, names.length)
  t.same(ask('readdir', '/.vimgfs')[1], ['.', '..', 'stats.json', 'status.json'])
  t.equal(ask('readdir', '/disk.raw')[0], -ENOTDIR)
})

t.test('reading', async t => {
  const { ask, errors, counted } = serve(smallParts(t))
  const target = Buffer.alloc(8, '.')
  t.same(ask('read', '/disk.raw', 0, target, 8, 508), [8])
  t.equal(target.toString(), 'AAAABBBB')
  t.same(ask('read', '/disk.raw', 0, target, 8, 5218), [2], 'up to the end')
  t.same(ask('read', '/disk.raw', 0, target, 8, 2 ** 40), [0])
  t.same(errors, [])
  t.same(ask('read', '/disk@bad%2Fone.raw', 0, target, 8, 600), [-EIO], 'damage is an errno')
  t.equal(errors.length, 1)
  t.match(counted(), { requests: { 15: 4 }, errors: 1, bytesRead: 10 })
})

t.test('control files have a size, and are their texts with spaces after them', async t => {
  const { ask } = serve(smallParts(t))
  for (const [name, text] of [
    ['stats.json', STATS],
    ['status.json', STATUS],
  ] as const) {
    const path = `/.vimgfs/${name}`
    const { size } = ask('getattr', path)[1]
    t.ok(size > text.length + 2048)
    const [result, fh] = ask('open', path, O_RDONLY)
    t.equal(result, 0)
    const target = Buffer.alloc(size + 100)
    t.same(ask('read', path, fh, target, target.length, 0), [size])
    t.equal(target.toString('latin1', 0, size), `${text.padEnd(size - 1)}\n`)
    t.same(ask('read', path, fh, target, 10, size - 4), [4])
    t.equal(target.toString('latin1', 0, 4), '   \n')
    t.same(ask('read', path, fh, target, 10, size), [0])
    t.equal(ask('open', path, O_RDWR)[0], -EROFS)
  }
})

t.test('writing', async t => {
  const { parts, disk } = writtenParts()
  const { ask, counted } = serve(parts)
  t.same(ask('open', '/disk.raw', O_RDWR), [0, 1], 'the handle of who writes')
  t.same(ask('open', '/disk.raw', O_RDONLY), [0, 0])
  t.same(ask('write', '/disk.raw', 1, Buffer.from('bytes'), 5, 100), [5])
  t.same(ask('write', '/disk.raw', 1, Buffer.from('x'), 1, DISK_BYTES), [-ENOSPC])
  t.same(ask('flush', '/disk.raw', 0), [0])
  t.same(disk.calls, ['write 100 bytes'], 'who has only read flushes nothing')
  t.same(ask('flush', '/disk.raw', 1), [0])
  t.same(ask('release', '/disk.raw', 1), [0])
  t.same(ask('fsync', '/disk.raw', 1, 0), [0])
  t.same(disk.calls, ['write 100 bytes', 'flush', 'flush', 'flush'])
  t.match(counted(), { bytesWritten: 5, errors: 1 })
})

t.test('attributes that are set', async t => {
  const { parts, disk } = writtenParts()
  const { ask } = serve(parts)
  const { mode, uid, gid } = ask('getattr', '/disk.raw')[1]
  for (const [name, args, result] of [
    ['truncate', [0], -EPERM],
    ['ftruncate', [1, DISK_BYTES - 1], -EPERM],
    ['ftruncate', [1, DISK_BYTES], 0],
    ['ftruncate', [1, 0], 0],
    ['truncate', [DISK_BYTES + 1], -EPERM],
    ['chmod', [mode], 0],
    ['chown', [uid, gid], 0],
    ['chown', [2 ** 32 - 1, 2 ** 32 - 1], 0],
    ['chown', [uid + 1, 2 ** 32 - 1], isRoot ? 0 : -EPERM],
    ['chown', [2 ** 32 - 1, gid + 1], isRoot ? 0 : -EPERM],
    ['utimens', [0, 0], 0],
  ] as const) {
    t.same(ask(name, '/disk.raw', ...args), [result], `${name} ${args}`)
  }
  t.same(ask('chmod', '/.vimgfs', 0o777), [-EROFS])
  t.same(disk.calls, [])
})

t.test('a handle that truncates', async t => {
  const { parts, disk } = writtenParts()
  const { ask } = serve(parts)
  const [, fh] = ask('open', '/disk.raw', O_RDWR | O_TRUNC)
  const sizes = (...handle: number[]) =>
    ask(handle.length > 0 ? 'fgetattr' : 'getattr', '/disk.raw', ...handle)[1].size
  t.same([sizes(), sizes(fh), sizes(0)], [0, 0, DISK_BYTES])
  ask('write', '/disk.raw', fh, Buffer.from('bytes'), 5, 100)
  t.same([sizes(), sizes(fh), sizes(0)], [105, 105, DISK_BYTES])
  ask('ftruncate', '/disk.raw', fh, 200)
  t.same(disk.calls, ['zero 0 100', 'write 100 bytes', 'zero 105 95'])
  ask('release', '/disk.raw', fh)
  t.equal(sizes(), DISK_BYTES)
})

t.test('a handle that truncates is answered when pages can be dropped', async t => {
  for (const how of ['open', 'ftruncate'] as const) {
    const { parts } = writtenParts()
    let serves = () => {}
    const places: number[] = []
    const { ask, operations } = serve(parts, {
      onTruncated: place => {
        places.push(place)
        return new Promise(resolve => {
          serves = resolve
        })
      },
    })
    const answer = await new Promise<number>(resolve => {
      let isReady = false
      const done = (result: number) => resolve(isReady ? result : -1)
      if (how === 'open') operations.open('/disk.raw', O_RDWR | O_TRUNC, done)
      else operations.ftruncate('/disk.raw', ask('open', '/disk.raw', O_RDWR)[1], 0, done)
      isReady = true
      serves()
    })
    t.equal(answer, 0, how)
    t.same(places, [0])
  }
})

t.test('growing', async t => {
  const { parts } = writtenParts(true)
  const { ask } = serve(parts)
  t.same(ask('ftruncate', '/disk.raw', 1, DISK_BYTES + 512), [0])
  t.same(ask('write', '/disk.raw', 1, Buffer.from('x'), 1, 2 ** 62), [-EFBIG])
})

t.test('requests that change the tree', async t => {
  const { ask } = serve(writtenParts().parts)
  for (const [name, args] of [
    ['create', ['/new', 0o644]],
    ['mknod', ['/new', 0o644, 0]],
    ['mkdir', ['/new', 0o755]],
    ['unlink', ['/disk.raw']],
    ['rmdir', ['/.vimgfs']],
    ['rename', ['/disk.raw', '/new']],
    ['link', ['/disk.raw', '/new']],
    ['symlink', ['disk.raw', '/new']],
  ] as const) {
    t.same(ask(name, ...args), name === 'create' ? [-EROFS, 0] : [-EROFS], name)
  }
})

t.test('whatever is thrown is an errno', async t => {
  const { parts, disk } = writtenParts()
  const { ask, errors } = serve(parts)
  disk.error = new SystemError('pwrite', ENOSPC, 'disk')
  t.same(ask('write', '/disk.raw', 1, Buffer.from('x'), 1, 0), [-ENOSPC])
  disk.error = new TypeError('a bug')
  t.same(ask('write', '/disk.raw', 1, Buffer.from('x'), 1, 0), [-EIO])
  t.same(ask('fsync', '/disk.raw', 1, 0), [-EIO])
  t.equal(errors.length, 3)
})

t.test('after the end nothing is touched', async t => {
  const { parts, disk } = writtenParts()
  const { ask, fs } = serve(parts)
  fs.end()
  t.same(ask('write', '/disk.raw', 1, Buffer.from('x'), 1, 0), [-ENODEV])
  t.same(ask('release', '/disk.raw', 1), [-ENODEV])
  t.same(ask('read', '/disk.raw', 1, Buffer.alloc(1), 1, 0), [-ENODEV])
  t.same(ask('getattr', '/')[0], -ENODEV)
  t.same(disk.calls, [])
})
