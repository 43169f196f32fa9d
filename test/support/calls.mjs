/**
 * Makes system calls for tests, in another process: for each line [NAME, [ARGUMENT…]] of its input it prints one with the
 * result or the error, all as JSON. What a call leaves open is closed after it.
 */
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import { dirname } from 'node:path'
import { createInterface } from 'node:readline'
import koffi from 'koffi'

const libc = koffi.load('libc.so.6')
const SEEK_DATA = 3
const SEEK_HOLE = 4
const PROT_READ = 1
const PROT_WRITE = 2
const MS_SYNC = 4
const MAP_SHARED = 1

const POSIX_FADV_DONTNEED = 4
const FORGOTTEN_BYTES = 4 * 2 ** 20

const posixFadvise = libc.func('int posix_fadvise64(int fd, int64_t at, int64_t bytes, int advice)')
const munmap = libc.func('int munmap(void *address, size_t bytes)')

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

  /**
   * The first place where `file` differs from `model`, a plain file with holes, which need not be read; -1 if there is none.
   * Takes a third of the time that the sums of both take.
   */
  difference(file, model) {
    const lseek = libc.func('int64_t lseek64(int fd, int64_t offset, int whence)')
    const fd = fs.openSync(file)
    const modelFd = fs.openSync(model)
    const { size } = fs.fstatSync(fd)
    if (size !== fs.fstatSync(modelFd).size) return Math.min(size, fs.fstatSync(modelFd).size)
    const [piece, expected] = [Buffer.alloc(2 ** 20), Buffer.alloc(2 ** 20)]
    const zeros = Buffer.alloc(2 ** 20)
    const forget = end =>
      posixFadvise(fd, end - FORGOTTEN_BYTES, FORGOTTEN_BYTES, POSIX_FADV_DONTNEED)
    let data = -1
    for (let at = 0; at < size; at += piece.length) {
      const length = Math.min(piece.length, size - at)
      if (data < at) data = lseek(modelFd, at, SEEK_DATA)
      const hasData = data >= 0 && data < at + length
      if (hasData) fs.readSync(modelFd, expected, 0, length, at)
      if (data < 0) data = size
      const wanted = hasData ? expected : zeros
      if (fs.readSync(fd, piece, 0, length, at) !== length) return at
      // Its pages serve the next pieces: memory that nobody has used for long takes several times as long to fill.
      if (at > 0 && at % FORGOTTEN_BYTES === 0) forget(at)
      if (piece.compare(wanted, 0, length, 0, length) === 0) continue
      for (let i = 0; i < length; i++) if (piece[i] !== wanted[i]) return at + i
    }
    return -1
  },

  /** The SHA-256 of a file, read through a mapping. */
  mapped(file) {
    const mmap = libc.func(
      'void *mmap(void *address, size_t bytes, int protection, int flags, int fd, int64_t at)',
    )
    const fd = fs.openSync(file)
    const { size } = fs.fstatSync(fd)
    const address = mmap(null, size, PROT_READ, MAP_SHARED, fd, 0)
    const sum = hash(Buffer.from(koffi.view(address, size)))
    munmap(address, size)
    return sum
  },

  /** Writes `text` at `offset` through a mapping, in a file that was opened with `flags` besides O_RDWR. */
  mapWrite(file, offset, text, flags) {
    const mmap = libc.func(
      'void *mmap(void *address, size_t bytes, int protection, int flags, int fd, int64_t at)',
    )
    const msync = libc.func('int msync(void *address, size_t bytes, int flags)')
    const fd = fs.openSync(file, fs.constants.O_RDWR | flags)
    const { size } = fs.fstatSync(fd)
    const address = mmap(null, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    Buffer.from(koffi.view(address, size)).write(text, offset)
    const result = msync(address, size, MS_SYNC)
    munmap(address, size)
    return result
  },

  /**
   * Changes a byte at `offset` of `file` through a map that is not synced, writes another one at `otherOffset` of `other`, and
   * returns what both files show: [a byte of the map, a byte of `other`], once for each of the two places.
   */
  mapBeside(file, offset, other, otherOffset) {
    const mmap = libc.func(
      'void *mmap(void *address, size_t bytes, int protection, int flags, int fd, int64_t at)',
    )
    const fd = fs.openSync(file, fs.constants.O_RDWR)
    const otherFd = fs.openSync(other, fs.constants.O_RDWR)
    const { size } = fs.fstatSync(fd)
    const address = mmap(null, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    const bytes = new Uint8Array(koffi.view(address, size))
    bytes[offset] = 77
    fs.writeSync(otherFd, Buffer.of(78), 0, 1, otherOffset + 1)
    const at = place => {
      const found = Buffer.alloc(1)
      fs.readSync(otherFd, found, 0, 1, otherOffset + place)
      return [bytes[offset + place], found[0]]
    }
    const seen = [at(0), at(1)]
    munmap(address, size)
    return seen
  },

  /** Writes to `file`, and then forbids the process `pid` to write past `limitBytes` of any file. */
  writeThenLimit(file, offset, text, pid, limitBytes) {
    const prlimit = libc.func('int prlimit64(int pid, int resource, void *limits, void *old)')
    const RLIMIT_FSIZE = 1
    const limits = Buffer.alloc(16, 0xff)
    limits.writeBigUInt64LE(BigInt(limitBytes), 0)
    const fd = fs.openSync(file, 'r+')
    fs.writeSync(fd, text, offset)
    // Not with a command: a child would close our descriptors, and closing flushes.
    return prlimit(pid, RLIMIT_FSIZE, limits, null)
  },

  /**
   * Uses a handle that truncates (`how` is 'open' or 'ftruncate') beside a handle that reads everything and keeps its pages.
   * Returns what the reader sees after each step, as [letter, count] pairs.
   */
  truncating(file, how, first) {
    const runs = bytes => {
      const found = []
      for (let at = 0; at < bytes.length; ) {
        let end = at
        while (end < bytes.length && bytes[end] === bytes[at]) end++
        found.push([bytes[at] === 0 ? '0' : String.fromCharCode(bytes[at]), end - at])
        at = end
      }
      return found
    }
    const { O_RDONLY, O_WRONLY, O_TRUNC } = fs.constants
    const reader = fs.openSync(file, O_RDONLY)
    const length = 64 * 1024
    const seen = () => {
      const bytes = Buffer.alloc(length)
      fs.readSync(reader, bytes, 0, length, 0)
      return runs(bytes)
    }
    const steps = [seen()]
    const writer = fs.openSync(file, O_WRONLY | (how === 'open' ? O_TRUNC : 0))
    if (how === 'ftruncate') fs.ftruncateSync(writer, 0)
    const empty = fs.fstatSync(writer).size
    steps.push(seen())
    fs.writeSync(writer, Buffer.alloc(100, 'a'), 0, 100, first)
    steps.push(seen())
    fs.writeSync(writer, Buffer.alloc(4096, 'b'), 0, 4096, 4096)
    fs.writeSync(writer, Buffer.alloc(100, 'c'), 0, 100, 20_480)
    steps.push(seen())
    fs.ftruncateSync(writer, 30_000)
    steps.push(seen())
    const written = fs.fstatSync(writer).size
    fs.closeSync(writer)
    return { empty, written, after: fs.statSync(file).size, steps }
  },

  /** Makes twelve writes of one truncating handle at once, the later ones first. Returns the file's bytes. */
  async unordered(file, direct) {
    const { O_WRONLY, O_TRUNC, O_DIRECT } = fs.constants
    const BLOCK = 65536
    const flags = O_WRONLY | O_TRUNC | (direct ? O_DIRECT : 0)
    const fd = fs.openSync(file, flags)
    const writes = Array.from({ length: 12 }, (_, i) => 11 - i).map(
      place =>
        new Promise((resolve, reject) => {
          const bytes = Buffer.alloc(BLOCK).fill(97 + place)
          const done = error => (error ? reject(error) : resolve())
          fs.write(fd, bytes, 0, BLOCK, (2 * place + 1) * BLOCK, done)
        }),
    )
    await Promise.all(writes)
    fs.closeSync(fd)
    const bytes = fs.readFileSync(file)
    return Array.from({ length: 26 }, (_, i) => {
      const block = bytes.subarray(i * BLOCK, (i + 1) * BLOCK)
      return block.every(byte => byte === block[0]) ? block[0] : -1
    })
  },

  /** truncate(2), by name. */
  truncateByName(file, size) {
    const truncate = libc.func('int truncate64(const char *path, int64_t bytes)')
    return truncate(file, size) === 0 ? 0 : koffi.errno()
  },

  /** Returns the result of each of these: bytes written, or an error's code. */
  ends(file, size) {
    const outcome = act => {
      try {
        return act() ?? 'done'
      } catch (error) {
        return error.code
      }
    }
    const { O_RDWR, O_WRONLY, O_APPEND, O_DIRECT } = fs.constants
    const fd = fs.openSync(file, O_RDWR)
    const direct = fs.openSync(file, O_RDWR | O_DIRECT)
    const bytes = Buffer.alloc(10_000, 'e')
    return {
      inside: outcome(() => fs.writeSync(fd, bytes, 0, 10_000, size - 10_000)),
      over: outcome(() => fs.writeSync(fd, bytes, 0, 10_000, size - 5_000)),
      at: outcome(() => fs.writeSync(fd, bytes, 0, 1, size)),
      behind: outcome(() => fs.writeSync(fd, bytes, 0, 1, size + 2 ** 40)),
      directOver: outcome(() => fs.writeSync(direct, bytes, 0, 8192, size - 4096)),
      directAt: outcome(() => fs.writeSync(direct, bytes, 0, 4096, size)),
      append: outcome(() => fs.writeSync(fs.openSync(file, O_WRONLY | O_APPEND), 'x')),
      shorter: outcome(() => fs.ftruncateSync(fd, size - 1)),
      longer: outcome(() => fs.ftruncateSync(fd, size + 1)),
      same: outcome(() => fs.ftruncateSync(fd, size)),
      fsync: outcome(() => fs.fsyncSync(fd)),
      fdatasync: outcome(() => fs.fdatasyncSync(direct)),
      utimes: outcome(() => fs.futimesSync(fd, 0, 0)),
      chmod: outcome(() => fs.fchmodSync(fd, 0o777)),
      chown: outcome(() => fs.fchownSync(fd, 12345, 0)),
      size: fs.fstatSync(fd).size,
    }
  },

  /**
   * Runs writers at once, each with its own places, in all ways of writing, and readers that check that a write which has
   * returned is there. Returns what was wrong.
   */
  async crowd(file, rounds) {
    const { O_RDWR, O_DIRECT } = fs.constants
    const BLOCK = 4096
    const wrong = []
    const open = flags => fs.promises.open(file, O_RDWR | flags)
    const writer = async index => {
      const [plain, direct] = [await open(0), await open(O_DIRECT)]
      for (let round = 0; round < rounds; round++) {
        const offset = ((round * 37 + index) % 500) * 8 * BLOCK + index * BLOCK
        const bytes = Buffer.alloc(BLOCK, `${index} ${round} `)
        const [write, read] = (round + index) % 2 ? [plain, direct] : [direct, plain]
        await write.write(bytes, 0, BLOCK, offset)
        const { buffer } = await read.read(Buffer.alloc(BLOCK), 0, BLOCK, offset)
        if (!buffer.equals(bytes)) wrong.push([index, round])
      }
      await Promise.all([plain.close(), direct.close()])
    }
    await Promise.all(Array.from({ length: 8 }, (_, index) => writer(index)))
    return wrong
  },

  /** Runs readers at once, each with its own places. Returns the SHA-256 of all pieces, in the order of the file. */
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
    await handle.close()
    return hash(whole)
  },

  /** Returns the result of each mode of fallocate(2) and of each function for extended attributes. */
  lacking(file) {
    const fallocate = libc.func('int fallocate64(int fd, int mode, int64_t at, int64_t bytes)')
    const setxattr = libc.func(
      'int setxattr(const char *path, const char *name, const char *value, size_t bytes, int flags)',
    )
    const getxattr = libc.func(
      'int64_t getxattr(const char *path, const char *name, void *value, size_t bytes)',
    )
    const listxattr = libc.func('int64_t listxattr(const char *path, void *names, size_t bytes)')
    const renameat2 = libc.func(
      'int renameat2(int fromDir, const char *from, int toDir, const char *to, unsigned int flags)',
    )
    const openat = libc.func('int open64(const char *path, int flags, unsigned int mode)')
    const name = 'user.vimgfs.format'
    const fd = fs.openSync(file, 'r+')
    const AT_FDCWD = -100
    const O_TMPFILE = 0o20200000
    const folder = dirname(file)
    const outcome = result => (result < 0 ? failure().code : 'done')
    return {
      // Reserving, with KEEP_SIZE, and then PUNCH_HOLE and ZERO_RANGE.
      fallocate: [0, 1, 3, 16, 17].map(mode => outcome(fallocate(fd, mode, 0, 4096))),
      xattr: [
        outcome(setxattr(file, name, 'x', 1, 0)),
        outcome(getxattr(file, name, null, 0)),
        outcome(getxattr(file, name, Buffer.alloc(4), 4)),
        outcome(listxattr(file, null, 0)),
      ],
      tmpfile: [outcome(openat(folder, O_TMPFILE | fs.constants.O_RDWR, 0o600))],
      // NOREPLACE, and EXCHANGE.
      renameFlags: [
        outcome(renameat2(AT_FDCWD, file, AT_FDCWD, `${folder}/new`, 1)),
        outcome(renameat2(AT_FDCWD, file, AT_FDCWD, `${folder}/.vimgfs`, 2)),
      ],
    }
  },

  /** Returns the error of each attempt to change `file` or its `folder`. */
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

  /** Reads `file` in pieces. Returns the pieces that fail, with their errors. */
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

/** Without that which the list itself is read from. */
const openFiles = () => fs.readdirSync('/proc/self/fd').map(Number).filter(isOpen)

function isOpen(fd) {
  try {
    fs.readlinkSync(`/proc/self/fd/${fd}`)
    return true
  } catch {
    return false
  }
}

const { stdin, stdout } = process
const ours = new Set(openFiles())
for await (const line of createInterface({ input: stdin })) {
  const [name, args] = JSON.parse(line)
  let answer
  try {
    answer = { result: await CALLS[name](...args) }
  } catch (error) {
    answer = { error: error.stack }
  }
  for (const fd of openFiles()) {
    if (ours.has(fd)) continue
    try {
      fs.closeSync(fd)
    } catch {
      // The written bytes cannot be kept. The file is closed all the same.
    }
  }
  stdout.write(`${JSON.stringify(answer)}\n`)
}
