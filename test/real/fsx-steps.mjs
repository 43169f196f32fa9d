/**
 * Random operations on a disk, each also done to a model: `node fsx-steps.mjs JSON`.
 *
 * `file` is the disk, `model` the plain file that it must equal; the model's bytes are held in memory
 * and written back at the end. The same `seed` gives the same steps on a disk of the same size. What
 * comes out wrong ends the process with the step, the place and the steps that touched it before.
 *
 * All of it is one process, and a step is a system call or two: a hundred thousand take less than a
 * minute.
 */
import fs from 'node:fs'
import koffi from 'koffi'

const { file, model: modelFile, seed, steps, clusterBytes } = JSON.parse(process.argv[2])

const libc = koffi.load('libc.so.6')
const fallocate = libc.func('int fallocate64(int fd, int mode, int64_t at, int64_t bytes)')
const lseek = libc.func('int64_t lseek64(int fd, int64_t offset, int whence)')
const copyFileRange = libc.func(
  'int64_t copy_file_range(int from, _Inout_ int64_t *at, int to, _Inout_ int64_t *toAt, size_t bytes, uint flags)',
)
const mmap = libc.func(
  'void *mmap(void *address, size_t bytes, int protection, int flags, int fd, int64_t at)',
)
const memcpy = libc.func('void *memcpy(void *to, void *from, size_t bytes)')
const msync = libc.func('int msync(void *address, size_t bytes, int flags)')
const munmap = libc.func('int munmap(void *address, size_t bytes)')

const KEEP_SIZE = 1
const PUNCH_HOLE = 2
const ZERO_RANGE = 16
const SEEK_DATA = 3
const SEEK_HOLE = 4
const ENXIO = 6
const PROT_READ_WRITE = 3
const MAP_SHARED = 1
const MS_SYNC = 4
const PAGE = 4096
const SECTOR = 512
const { O_RDWR, O_DIRECT, O_TRUNC } = fs.constants
const MAX_BYTES = Math.max(2 ** 20, clusterBytes)
/** Steps that are shown of those which touched a wrong byte. */
const SHOWN = 12

/** mulberry32 */
let state = seed >>> 0
function random(below) {
  state = (state + 0x6d2b79f5) >>> 0
  let t = Math.imul(state ^ (state >>> 15), state | 1)
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
  return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below)
}

const model = fs.readFileSync(modelFile)
const size = model.length
/** The source of all written bytes; each write takes them from another place. */
const POOL_BYTES = 4 * MAX_BYTES
const words = new Uint32Array(POOL_BYTES / 4)
// Uint32Array.from takes ten times as long.
for (let i = 0; i < words.length; i++) words[i] = random(2 ** 32)
const pool = Buffer.from(words.buffer)
const got = Buffer.alloc(Math.max(MAX_BYTES, PAGE))
const zeros = Buffer.alloc(2 ** 16)
/** Of each step: [name, offset, length]. */
const log = []

const open = extra => fs.openSync(file, O_RDWR | extra)
let buffered = open(0)
let direct = open(O_DIRECT)
/** Mostly the buffered one, so that the page cache has something to get wrong. */
const either = () => (random(4) === 0 ? direct : buffered)

function check(isTrue, what) {
  if (!isTrue) throw new Error(what)
}

function called(result, what) {
  if (result < 0) throw new Error(`${what}: errno ${koffi.errno()}`)
  return Number(result)
}

/** A place and a length: of bytes, sectors, pages or clusters, short ones more often. */
function range() {
  const unit = [1, SECTOR, PAGE, clusterBytes][random(4)]
  const size16 = random(16)
  const most =
    size16 === 0 ? MAX_BYTES : size16 < 4 ? 4 * clusterBytes : size16 < 9 ? 2 ** 16 : PAGE
  // Every other step stays in a part of the disk, where it meets those before.
  const [from, span] = random(2) ? [0, size] : [Math.floor(size / 3), Math.floor(size / 8)]
  const offset = Math.floor((from + random(span)) / unit) * unit
  const length = unit * (1 + random(Math.max(1, Math.floor(most / unit))))
  return [offset, Math.min(length, MAX_BYTES, size - offset)]
}

function fill(offset, length) {
  const zeros = random(16)
  const start = random(POOL_BYTES - length + 1)
  if (zeros === 0) model.fill(0, offset, offset + length)
  else pool.copy(model, offset, start, start + length)
  // Zeros inside of data, of which a cluster or two may be whole.
  if (zeros === 1) model.fill(0, offset + (length >>> 2), offset + length - (length >>> 2))
}

function compare(offset, length, by) {
  const n = fs.readSync(by, got, 0, length, offset)
  check(n === length, `${n} of ${length} bytes read`)
  if (got.compare(model, offset, offset + length, 0, length) !== 0) differs(offset, length)
}

/** The model has only zeros from `start` to `end`. */
function requireZeros(start, end) {
  for (let at = start; at < end; at += zeros.length) {
    const to = Math.min(end, at + zeros.length)
    if (model.compare(zeros, 0, to - at, at, to) === 0) continue
    const wrong = model.subarray(at, to).findIndex(byte => byte !== 0)
    throw new Error(`the data at ${at + wrong} lie in a hole, ${start} to ${end}`)
  }
}

function differs(offset, length) {
  let at = 0
  while (got[at] === model[offset + at]) at++
  let end = length
  while (got[end - 1] === model[offset + end - 1]) end--
  const place = offset + at
  const touched = log.filter(([, from, bytes]) => from <= place && place < from + bytes)
  const shown = touched.slice(-SHOWN).map(([name, ...range], i, all) => {
    return `  ${all.length - i} before: ${name} ${range.join(' ')}`
  })
  const hex = (bytes, from) => bytes.subarray(from, from + 16).toString('hex')
  throw new Error(
    `the disk differs from ${place} to ${offset + end} (cluster ${Math.floor(place / clusterBytes)}):\n` +
      `  expected ${hex(model, place)}, got ${hex(got, at)}\n${shown.join('\n')}`,
  )
}

/** Each takes a range and does to the disk what it does to the model. */
const OPERATIONS = {
  write(offset, length) {
    fill(offset, length)
    const n = fs.writeSync(either(), model, offset, length, offset)
    check(n === length, `${n} of ${length} bytes written`)
  },
  read(offset, length) {
    compare(offset, length, either())
  },
  punch(offset, length) {
    model.fill(0, offset, offset + length)
    called(fallocate(buffered, PUNCH_HOLE | KEEP_SIZE, offset, length), 'punching a hole')
  },
  zero(offset, length) {
    model.fill(0, offset, offset + length)
    const mode = ZERO_RANGE | (random(2) ? KEEP_SIZE : 0)
    called(fallocate(buffered, mode, offset, length), 'zeroing a range')
  },
  /** Within the disk, to where it does not meet its source. */
  copy(offset, bytes) {
    const length = Math.min(bytes, 2 ** 16, Math.floor(size / 2))
    const to = (offset + length + random(size - 2 * length + 1)) % size
    if (to + length > size || (to < offset + length && offset < to + length)) return
    for (let done = 0; done < length; ) {
      const left = length - done
      const n = copyFileRange(buffered, [offset + done], buffered, [to + done], left, 0)
      check(called(n, 'copy_file_range') > 0, `copy_file_range: ${done} of ${length} bytes`)
      done += Number(n)
    }
    model.copyWithin(to, offset, offset + length)
    log.push(['copy, target', to, length])
  },
  /** Written through a mapping. */
  map(offset, bytes) {
    const length = Math.min(bytes, 2 ** 17)
    const start = offset - (offset % PAGE)
    const address = mmap(
      null,
      offset + length - start,
      PROT_READ_WRITE,
      MAP_SHARED,
      buffered,
      start,
    )
    const mapped = offset + length - start
    // The kernel writes back whole pages, so the bytes beside must be right as well.
    memcpy(got, address, mapped)
    if (got.compare(model, start, offset + length, 0, mapped) !== 0) differs(start, mapped)
    fill(offset, length)
    memcpy(address, model.subarray(start, offset + length), mapped)
    if (random(2)) called(msync(address, mapped, MS_SYNC), 'msync')
    called(munmap(address, mapped), 'munmap')
  },
  sync() {
    if (random(2)) fs.fsyncSync(either())
    else fs.fdatasyncSync(either())
  },
  /** With O_TRUNC before, too: a disk to which nothing is written then keeps its size and bytes. */
  reopen() {
    fs.closeSync(buffered)
    fs.closeSync(direct)
    if (random(2)) fs.closeSync(open(O_TRUNC))
    buffered = open(0)
    direct = open(O_DIRECT)
    check(fs.fstatSync(buffered).size === size, `the size is ${fs.fstatSync(buffered).size}`)
  },
  /** A hole reads as zeros, so it need not be read. */
  seek(offset) {
    for (let at = offset, count = 0; at < size && count < 16; count++) {
      let data = lseek(buffered, at, SEEK_DATA)
      if (data < 0) check(koffi.errno() === ENXIO, `SEEK_DATA: errno ${koffi.errno()}`)
      if (data < 0) data = size
      requireZeros(at, data)
      if (data === size) break
      at = called(lseek(buffered, data, SEEK_HOLE), 'SEEK_HOLE')
      check(at > data, `the data at ${data} end at ${at}`)
    }
  },
}

/** How often each, of a thousand. */
const WEIGHTS = {
  write: 420,
  read: 370,
  punch: 70,
  zero: 60,
  copy: 20,
  map: 20,
  sync: 30,
  reopen: 5,
  seek: 5,
}
const names = Object.entries(WEIGHTS).flatMap(([name, weight]) => Array(weight).fill(name))

function whole() {
  for (let at = 0; at < size; at += MAX_BYTES) {
    compare(at, Math.min(MAX_BYTES, size - at), buffered)
  }
}

let step = 0
try {
  whole()
  for (; step < steps; step++) {
    const name = names[random(names.length)]
    const [offset, length] = range()
    if (OPERATIONS[name].length > 0) log.push([name, offset, length])
    else log.push([name, 0, 0])
    OPERATIONS[name](offset, length)
  }
  whole()
  if (random(2)) fs.fsyncSync(buffered)
  fs.closeSync(buffered)
  fs.closeSync(direct)
} catch (error) {
  const [name, ...at] = log.at(-1) ?? ['start']
  console.error(
    `seed ${seed}, step ${step} of ${steps} (${name} ${at.join(' ')}): ${error.message}`,
  )
  process.exitCode = 1
} finally {
  // What the disk should be, also for who looks into a failure.
  fs.writeFileSync(modelFile, model)
}
