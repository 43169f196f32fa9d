/**
 * One of several processes that write and read two files which show the same bytes: `node shared-bytes.mjs JSON`.
 *
 * Each unit of 512 bytes is written by one process only, with a version that rises by one. All processes share a table (`table`, a
 * plain file) that says of each unit which version has begun and which is done. A reader takes the version that is done before it
 * reads, and the one that has begun after it has read: each word that it finds must be one of those. Units of different processes
 * lie in the same page. A page in eight is written by one process alone, through a map.
 *
 *   files   the whole disk, and the partition, which begins at `start`; loops: loop devices over them, or null
 *   process this one's number, of `processes`
 */
import fs from 'node:fs'
import koffi from 'koffi'

const options = JSON.parse(process.argv[2])
const {
  files,
  loops,
  start,
  table: tableFile,
  units,
  processes,
  process: own,
  seed,
  steps,
} = options

const libc = koffi.load('libc.so.6')
const mmap = libc.func(
  'void *mmap(void *address, size_t bytes, int protection, int flags, int fd, int64_t at)',
)
const msync = libc.func('int msync(void *address, size_t bytes, int flags)')
const fallocate = libc.func('int fallocate64(int fd, int mode, int64_t at, int64_t bytes)')
const [PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS] = [1, 2, 1, 2, 32]
const [MS_SYNC, KEEP_SIZE, PUNCH_HOLE] = [4, 1, 2]
const { O_RDWR, O_RDONLY, O_DIRECT } = fs.constants
const UNIT = 512
const PAGE = 4096
const UNITS_A_PAGE = PAGE / UNIT
const AREA = units * UNIT
/** Each so many versions, a unit is zeroed. */
const ZEROED = 7
const DISK = 0
const PARTITION = 1

/** mulberry32 */
let state = (seed + own) >>> 0
function random(below) {
  state = (state + 0x6d2b79f5) >>> 0
  let t = Math.imul(state ^ (state >>> 15), state | 1)
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
  return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below)
}

const mapped = (fd, bytes, protection, flags, at = 0) =>
  koffi.view(mmap(null, bytes, protection, flags, fd, at), bytes)

const tableFd = fs.openSync(tableFile, 'r+')
const table = new Int32Array(mapped(tableFd, 8 * units, PROT_READ | PROT_WRITE, MAP_SHARED))
const begun = unit => Atomics.load(table, 2 * unit)
const done = unit => Atomics.load(table, 2 * unit + 1)

/** The files, and where the area lies in each. */
const places = [start, 0]
const buffered = files.map(file => fs.openSync(file, O_RDWR))
const readOnly = files.map(file => fs.openSync(file, O_RDONLY))
const direct = files.map(file => fs.openSync(file, O_RDWR | O_DIRECT))
const devices = loops?.map(file => fs.openSync(file, O_RDWR | O_DIRECT))
/** Maps begin at pages; the disk's may begin a little before the area. */
const before = start % PAGE
const maps = [
  new Uint8Array(
    mapped(readOnly[DISK], before + AREA, PROT_READ, MAP_SHARED, start - before),
    before,
  ),
  new Uint8Array(mapped(readOnly[PARTITION], AREA, PROT_READ, own % 2 ? MAP_SHARED : MAP_PRIVATE)),
]
const writingMap = mmap(null, AREA, PROT_READ | PROT_WRITE, MAP_SHARED, buffered[PARTITION], 0)
const writing = new Uint32Array(koffi.view(writingMap, AREA))
/** For O_DIRECT, a page's boundary. */
const aligned = Buffer.from(
  mapped(-1, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS),
  0,
  UNIT,
)

const valueOf = (unit, version) => (version % ZEROED === 0 ? 0 : version * 65_536 + unit)
const pageOf = unit => Math.floor(unit / UNITS_A_PAGE)
/** Pages that are written through maps belong to one process whole. */
const isMapped = unit => pageOf(unit) % 8 === 7
const ownerOf = unit => (isMapped(unit) ? Math.floor(pageOf(unit) / 8) : unit) % processes
const mine = Array.from({ length: units }, (_, unit) => unit).filter(unit => ownerOf(unit) === own)

function write(unit) {
  const version = begun(unit) + 1
  Atomics.store(table, 2 * unit, version)
  const value = valueOf(unit, version)
  const file = random(2)
  const at = places[file] + unit * UNIT
  new Uint32Array(aligned.buffer, aligned.byteOffset, UNIT / 4).fill(value)
  if (isMapped(unit)) {
    writing.fill(value, (unit * UNIT) / 4, ((unit + 1) * UNIT) / 4)
    const page = koffi.address(writingMap) + BigInt(pageOf(unit) * PAGE)
    if (msync(page, PAGE, MS_SYNC) !== 0) throw new Error('msync')
  } else if (value === 0) {
    if (fallocate(buffered[file], KEEP_SIZE | PUNCH_HOLE, at, UNIT) !== 0) throw new Error('punch')
  } else {
    const ways = [buffered[file], direct[file], ...(devices ? [devices[file]] : [])]
    const way = random(ways.length)
    if (fs.writeSync(ways[way], aligned, 0, UNIT, at) !== UNIT) throw new Error('a short write')
  }
  Atomics.store(table, 2 * unit + 1, version)
}

const WAYS = ['buffered', 'O_DIRECT', 'map', 'loop']
function read(unit) {
  const file = random(2)
  const way = random(devices ? 4 : 3)
  const at = places[file] + unit * UNIT
  const low = done(unit)
  let words
  if (way === 2) words = maps[file].slice(unit * UNIT, (unit + 1) * UNIT).buffer
  else {
    const fd = [buffered, direct, undefined, devices][way][file]
    if (fs.readSync(fd, aligned, 0, UNIT, at) !== UNIT) throw new Error('a short read')
    words = Uint8Array.from(aligned).buffer
  }
  const high = begun(unit)
  const allowed = new Set()
  for (let version = low; version <= high; version++) allowed.add(valueOf(unit, version))
  for (const [index, word] of new Uint32Array(words).entries()) {
    if (allowed.has(word)) continue
    const found = `word ${index} is of version ${Math.floor(word / 65_536)}, not ${low} to ${high}`
    throw new Error(
      `process ${own}, seed ${seed}: unit ${unit} of ${file ? 'the partition' : 'the disk'}, ${WAYS[way]}: ${found}`,
    )
  }
}

for (let step = 0; step < steps; step++) {
  if (random(2) === 0) write(mine[random(mine.length)])
  else read(random(units))
}
process.stdout.write(`${JSON.stringify({ written: mine.length })}\n`)
