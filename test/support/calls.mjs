/**
 * System calls for tests, in a process of their own: `node calls.mjs NAME ARGUMENT…` prints the
 * result as JSON.
 */
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import koffi from 'koffi'

const libc = koffi.load('libc.so.6')
const SEEK_DATA = 3
const SEEK_HOLE = 4
const PROT_READ = 1
const MAP_SHARED = 1

const CALLS = {
  /** [start, end] of each piece of data, as SEEK_DATA and SEEK_HOLE find them. */
  data(file) {
    const lseek = libc.func('int64_t lseek64(int fd, int64_t offset, int whence)')
    const fd = fs.openSync(file)
    const pieces = []
    for (let end = 0; ; ) {
      const start = lseek(fd, end, SEEK_DATA)
      if (start < 0) return pieces
      end = lseek(fd, start, SEEK_HOLE)
      pieces.push([start, end])
    }
  },

  /** The SHA-256 of a file; several times as fast as sha256sum. */
  sha256(file) {
    const fd = fs.openSync(file)
    const sum = createHash('sha256')
    const piece = Buffer.allocUnsafe(2 ** 20)
    for (let got = 1; got > 0; ) {
      got = fs.readSync(fd, piece)
      sum.update(piece.subarray(0, got))
    }
    return sum.digest('hex')
  },

  /** The same, read through a mapping. */
  mapped(file) {
    const mmap = libc.func(
      'void *mmap(void *address, size_t bytes, int protection, int flags, int fd, int64_t at)',
    )
    const fd = fs.openSync(file)
    const { size } = fs.fstatSync(fd)
    const address = mmap(null, size, PROT_READ, MAP_SHARED, fd, 0)
    return hash(Buffer.from(koffi.view(address, size)))
  },

  /** Readers at once, each of its own places; the SHA-256 of all pieces, in the file's order. */
  async scattered(file, readers, pieceBytes) {
    const handle = await fs.promises.open(file)
    const { size } = await handle.stat()
    const count = Math.ceil(size / pieceBytes)
    const whole = Buffer.alloc(size)
    const reader = async index => {
      for (let i = 0; i < count; i++) {
        // Forwards and backwards, in strides that no readahead guesses.
        const place = (i * 7919 + index) % count
        const piece = index % 2 ? count - 1 - place : place
        if (piece % readers !== index) continue
        const length = Math.min(pieceBytes, size - piece * pieceBytes)
        await handle.read(whole, piece * pieceBytes, length, piece * pieceBytes)
      }
    }
    await Promise.all(Array.from({ length: readers }, (_, index) => reader(index)))
    return hash(whole)
  },

  /** What each attempt to change `file` or its `folder` fails with. */
  changes(folder, file) {
    const other = `${folder}/new`
    const errors = {}
    const attempt = (name, act) => {
      try {
        act()
        errors[name] = 'done'
      } catch (error) {
        errors[name] = error.code
      }
    }
    const setxattr = libc.func(
      'int setxattr(const char *path, const char *name, const char *value, size_t bytes, int flags)',
    )
    const fallocate = libc.func('int fallocate64(int fd, int mode, int64_t at, int64_t bytes)')
    attempt('open w', () => fs.openSync(file, 'r+'))
    attempt('open a', () => fs.openSync(file, 'a'))
    attempt('open trunc', () => fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_TRUNC))
    attempt('create', () => fs.openSync(other, 'w'))
    attempt('tmpfile', () => fs.openSync(folder, 0o20200000 | fs.constants.O_RDWR))
    attempt('truncate', () => fs.truncateSync(file, 1))
    attempt('unlink', () => fs.unlinkSync(file))
    attempt('rename', () => fs.renameSync(file, other))
    attempt('link', () => fs.linkSync(file, other))
    attempt('symlink', () => fs.symlinkSync('x', other))
    attempt('mkdir', () => fs.mkdirSync(other))
    attempt('rmdir', () => fs.rmdirSync(`${folder}/.vimgfs`))
    attempt('chmod', () => fs.chmodSync(file, 0o777))
    attempt('chown', () => fs.chownSync(file, 0, 0))
    attempt('utimes', () => fs.utimesSync(file, 0, 0))
    attempt('access', () => fs.accessSync(file, fs.constants.W_OK))
    attempt('setxattr', () => {
      if (setxattr(file, 'user.vimgfs.format', 'x', 1, 0) < 0) throw failure()
    })
    attempt('fallocate', () => {
      // Of a descriptor that is open for reading: the file system is not even asked.
      if (fallocate(fs.openSync(file), 0, 0, 4096) < 0) throw failure()
    })
    return errors
  },

  /** Reads `file` in pieces; the pieces that fail, and with what. */
  failures(file, pieceBytes) {
    const fd = fs.openSync(file)
    const { size } = fs.fstatSync(fd)
    const piece = Buffer.alloc(pieceBytes)
    const failed = []
    for (let at = 0; at < size; at += pieceBytes) {
      try {
        fs.readSync(fd, piece, 0, pieceBytes, at)
      } catch (error) {
        failed.push([at, error.code])
      }
    }
    return failed
  },

  stat(file) {
    const stat = fs.statSync(file, { bigint: true })
    return Object.fromEntries(Object.entries(stat).map(([name, value]) => [name, String(value)]))
  },
}

const hash = bytes => createHash('sha256').update(bytes).digest('hex')

function failure() {
  const code = koffi.errno()
  const [name] = Object.entries(koffi.os.errno).find(([, value]) => value === code) ?? [code]
  return Object.assign(new Error(String(name)), { code: name })
}

const [name, ...args] = process.argv.slice(2)
const values = args.map(arg => (/^\d+$/.test(arg) ? Number(arg) : arg))
process.stdout.write(JSON.stringify(await CALLS[name](...values)))
