/**
 * Uses a disk by handles of all kinds at once, in random order, and compares each read with a model in memory.
 * node open-modes.mjs DISK SEED STEPS [writeback]. It prints "ok", or the first step that went wrong. With writeback the
 * kernel keeps what is written: then errors come at close, and no handle truncates beside one that writes to the page cache.
 */
import fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import koffi from 'koffi'

const [disk, seed, steps] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])]
const writesBack = process.argv[5] === 'writeback'
const { O_RDONLY, O_WRONLY, O_RDWR, O_DIRECT, O_TRUNC, O_SYNC } = fs.constants
const PAGE = 4096
const KEEP_SIZE = 1
const PUNCH_HOLE = 2
const ZERO_RANGE = 16
const ENOSPC = 28
const EBUSY = 16

const libc = koffi.load('libc.so.6')
const mmap = libc.func(
  'void *mmap(void *at, size_t bytes, int protection, int flags, int fd, int64_t from)',
)
const munmap = libc.func('int munmap(void *at, size_t bytes)')
const msync = libc.func('int msync(void *at, size_t bytes, int flags)')
const fallocate = libc.func('int fallocate64(int fd, int mode, int64_t at, int64_t bytes)')
/** Memory that begins at a page, as O_DIRECT needs it. */
const memory = bytes => Buffer.from(koffi.view(mmap(null, bytes, 3, 0x22, -1, 0), bytes))

let state = seed >>> 0
/** Returns a whole number below `n` (mulberry32). */
function below(n) {
  state = (state + 0x6d2b79f5) >>> 0
  let t = state
  t = Math.imul(t ^ (t >>> 15), t | 1)
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
  return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * n)
}

const model = fs.readFileSync(disk)
const size = model.length
const piece = memory(64 * 1024)
const handles = []
let step = 0
let hasOverrun = false

function fail(what) {
  console.log(`step ${step} of seed ${seed}: ${what}`)
  process.exit(1)
}

/** Each handle that is open at an error hears of it once, by fsync, msync or close. */
function hearing(act) {
  try {
    act()
  } catch (error) {
    if (!hasOverrun || error.code !== 'ENOSPC') throw error
  }
}

const MODES = [
  O_RDONLY,
  O_RDONLY | O_DIRECT,
  O_WRONLY,
  O_RDWR,
  O_RDWR | O_DIRECT,
  O_WRONLY | O_DIRECT,
  O_RDWR | O_SYNC,
]

function open(flags = MODES[below(MODES.length)]) {
  const handle = { fd: fs.openSync(disk, flags), flags, mark: flags & O_TRUNC ? 0 : undefined }
  const access = flags & 3
  if (access !== O_WRONLY && below(3) === 0) {
    const protection = access === O_RDWR ? 3 : 1
    handle.address = mmap(null, size, protection, 1, handle.fd, 0)
    if (koffi.address(handle.address) === 0xffffffffffffffffn) fail('mmap')
    handle.map = Buffer.from(koffi.view(handle.address, size))
  }
  handles.push(handle)
  return handle
}

function close(index) {
  const [{ fd, address }] = handles.splice(index, 1)
  if (address) munmap(address, size)
  hearing(() => fs.closeSync(fd))
}

function range(handle) {
  const unit = handle.flags & O_DIRECT ? PAGE : 1
  const length = (1 + below(piece.length / unit)) * unit
  const offset = below(Math.floor((size - length) / unit) + 1) * unit
  return { offset, length }
}

function compare(got, offset, length, how) {
  for (let i = 0; i < length; i++) {
    if (got[i] !== model[offset + i])
      fail(`${how}: byte ${offset + i} is ${got[i]}, not ${model[offset + i]}`)
  }
}

function read(handle) {
  if ((handle.flags & 3) === O_WRONLY) return
  const { offset, length } = range(handle)
  // A handle that truncated has changed the size that the kernel shows meanwhile.
  fs.fstatSync(handle.fd)
  const got = fs.readSync(handle.fd, piece, 0, length, offset)
  if (got !== length)
    fail(`read ${got} of ${length} at ${offset}, flags ${handle.flags.toString(8)}`)
  compare(piece, offset, length, `read by flags ${handle.flags.toString(8)}`)
}

function readMap({ map, flags }) {
  const { offset, length } = range({ flags: 0 })
  compare(
    map.subarray(offset, offset + length),
    offset,
    length,
    `map of flags ${flags.toString(8)}`,
  )
}

function write(handle, { offset, length } = range(handle)) {
  piece.fill(1 + below(255), 0, length)
  const wrote = fs.writeSync(handle.fd, piece, 0, length, offset)
  if (wrote !== length) fail(`wrote ${wrote} of ${length}`)
  if (handle.mark !== undefined && offset > handle.mark) model.fill(0, handle.mark, offset)
  if (handle.mark !== undefined) handle.mark = Math.max(handle.mark, offset + length)
  piece.copy(model, offset, 0, length)
}

function writeMap({ map, address }) {
  const { offset, length } = range({ flags: 0 })
  const byte = 1 + below(255)
  map.fill(byte, offset, offset + length)
  model.fill(byte, offset, offset + length)
  const page = offset - (offset % PAGE)
  // An error of a write past the end is told once.
  const isWritten = msync(address, size, 4) === 0 || (hasOverrun && msync(address, size, 4) === 0)
  if (!isWritten) fail(`msync at ${page}: errno ${koffi.errno()}`)
}

function zero(handle) {
  const { offset, length } = range({ flags: 0 })
  const mode = KEEP_SIZE | (below(2) ? PUNCH_HOLE : ZERO_RANGE)
  if (fallocate(handle.fd, mode, offset, length) !== 0) fail(`fallocate: errno ${koffi.errno()}`)
  model.fill(0, offset, offset + length)
}

/** Writes over the end: what fits is written, and nothing after it. */
function overrun(handle) {
  const offset = size - PAGE * below(2)
  piece.fill(7, 0, 2 * PAGE)
  let wrote = 0
  try {
    wrote = fs.writeSync(handle.fd, piece, 0, 2 * PAGE, offset)
  } catch (error) {
    if (error.errno !== -ENOSPC) fail(`past the end: ${error.code}`)
  }
  if (wrote !== size - offset) fail(`wrote ${wrote} bytes at ${offset} of ${size}`)
  model.fill(7, offset, offset + wrote)
  if (fs.fstatSync(handle.fd).size !== size) fail('the disk has another size')
}

/** Does the same where the kernel learns of it later. */
async function overrunLater() {
  if (handles.some(writesToCache)) return
  const offset = size - PAGE * below(2)
  piece.fill(7, 0, 2 * PAGE)
  const fd = fs.openSync(disk, O_WRONLY)
  fs.writeSync(fd, piece, 0, 2 * PAGE, offset)
  let code
  try {
    fs.fsyncSync(fd)
  } catch (error) {
    code = error.code
  }
  hasOverrun = true
  if (code !== 'ENOSPC') fail(`synced past the end: ${code}`)
  try {
    fs.closeSync(fd)
  } catch {}
  model.fill(7, offset, size)
  for (let i = 0; fs.statSync(disk).size !== size; i++) {
    if (i === 5000) fail('the disk keeps another size')
    await sleep(1)
  }
}

/** A handle that truncates, and writes some pieces. */
function truncating() {
  // It waits for handles that may be about to be closed.
  if (handles.some(writesToCache) && below(8) > 0) return
  const flags = [O_RDWR, O_WRONLY, O_RDWR | O_DIRECT][below(3)] | O_TRUNC
  const handle = { fd: undefined, flags, mark: 0 }
  try {
    handle.fd = fs.openSync(disk, flags)
  } catch (error) {
    if (error.errno !== -EBUSY || !handles.some(writesToCache)) throw error
    return
  }
  if (handles.some(writesToCache)) fail('a handle truncated beside one that writes to the cache')
  for (let i = 0; i <= below(3); i++) write(handle)
  hearing(() => fs.closeSync(handle.fd))
  if (fs.statSync(disk).size !== size) fail('the disk has another size after a truncating handle')
}

const writesToCache = ({ flags }) => writesBack && (flags & 3) !== O_RDONLY && !(flags & O_DIRECT)
const isWriter = handle => (handle.flags & 3) !== O_RDONLY
const pick = fits => {
  const found = handles.filter(fits)
  return found[below(found.length)]
}

for (; step < steps; step++) {
  const kind = below(16)
  if (kind === 0 || handles.length === 0) open()
  else if (kind === 1) close(below(handles.length))
  else if (kind === 2) truncating()
  else {
    const writer = pick(isWriter)
    const mapped = pick(handle => handle.map)
    const written = pick(handle => handle.map && isWriter(handle))
    if (kind <= 5 && writer) write(writer)
    else if (kind === 6 && written) writeMap(written)
    else if (kind === 7 && writer) zero(writer)
    else if (kind === 8 && writesBack) await overrunLater()
    else if (kind === 8 && writer) overrun(writer)
    else if (kind === 9 && writer) hearing(() => fs.fsyncSync(writer.fd))
    else if (kind === 10 && mapped) readMap(mapped)
    else read(handles[below(handles.length)])
  }
  if (handles.length > 12) close(below(handles.length))
}
while (handles.length > 0) close(0)
compare(fs.readFileSync(disk), 0, size, 'at the end')
console.log('ok')
