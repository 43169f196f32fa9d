/**
 * What kill.test.ts writes, and how it knows later what must be there. Each line of its input is a job in JSON, with the
 * name of its command; each line of its output is what came of one.
 *
 * Each sector holds one stamp over and over: its place and a number that grows; number 0 stands for
 * zeros. A writer notes what it is about to do before it does it, and that it has synced after that:
 * what a sector may hold is then the last number before the last sync, or any one since.
 */
import fs from 'node:fs'
import { createInterface } from 'node:readline'
import koffi from 'koffi'

const SECTOR = 512
const BLOCK = 4096
const SECTORS = BLOCK / SECTOR
const STAMP_BYTES = 16
const PUNCH_AND_KEEP_SIZE = 3
const { O_RDWR, O_DIRECT } = fs.constants

/** mulberry32 */
function randomNumbers(seed) {
  let state = seed >>> 0
  return below => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below)
  }
}

function stamp(target, at, sector, number) {
  if (number === 0) return target.fill(0, at, at + SECTOR)
  target.write('VIMGFS!', at, 'latin1')
  target.writeUInt32LE(sector, at + 8)
  target.writeUInt32LE(number, at + 12)
  for (let bytes = STAMP_BYTES; bytes < SECTOR; bytes *= 2)
    target.copy(target, at + bytes, at, at + bytes)
}

/** A file whose server is gone is closed, too, though closing it fails. */
function close(fd) {
  try {
    if (fd !== undefined) fs.closeSync(fd)
  } catch {}
}

const COMMANDS = {
  /** A disk of which every other block has number 1, and the numbers of its sectors. */
  prepare({ file, numbers: numbersFile, sectors }) {
    const disk = Buffer.alloc(sectors * SECTOR)
    const numbers = new Uint32Array(sectors)
    for (let sector = 0; sector < sectors; sector++) {
      numbers[sector] = Math.floor(sector / SECTORS) % 2
      stamp(disk, sector * SECTOR, sector, numbers[sector])
    }
    fs.writeFileSync(file, disk)
    fs.writeFileSync(numbersFile, numbers)
  },

  /** Writes to its blocks of the disk, and syncs, until the disk is gone. */
  write({ file, log, seed, first, blocks, number: start, direct }) {
    const random = randomNumbers(seed)
    const libc = koffi.load('libc.so.6')
    const fallocate = libc.func('int fallocate64(int fd, int mode, int64_t at, int64_t bytes)')
    const notes = fs.openSync(log, 'a')
    const note = text => fs.writeSync(notes, `${text}\n`)
    const buffer = Buffer.alloc(64 * BLOCK)
    let number = start
    let fd
    try {
      fd = fs.openSync(file, O_RDWR | (direct ? O_DIRECT : 0))
      for (;;) {
        for (let batch = random(16); batch >= 0; batch--) {
          const count = 1 + random(random(8) === 0 ? 64 : 4)
          const block = first + random(blocks - count + 1)
          const at = block * BLOCK
          if (random(8) === 0) {
            note(`${block} ${count} 0`)
            const result = fallocate(fd, PUNCH_AND_KEEP_SIZE, at, count * BLOCK)
            if (result < 0) throw new Error(`fallocate: errno ${koffi.errno()}`)
            continue
          }
          number++
          for (let i = 0; i < count * SECTORS; i++)
            stamp(buffer, i * SECTOR, block * SECTORS + i, number)
          note(`${block} ${count} ${number}`)
          fs.writeSync(fd, buffer, 0, count * BLOCK, at)
        }
        if (random(2)) fs.fsyncSync(fd)
        else fs.fdatasyncSync(fd)
        note('synced')
      }
    } catch (error) {
      note(`ended: ${error.message}`)
    }
    close(fd)
    fs.closeSync(notes)
  },

  /** Large writes that nobody looks at, so that a kill finds the server at all sorts of work. */
  noise({ file, first, blocks }) {
    const buffer = Buffer.alloc(2 ** 20, 'noise ')
    const end = (first + blocks) * BLOCK
    let fd
    try {
      fd = fs.openSync(file, O_RDWR)
      for (
        let at = first * BLOCK;
        ;
        at = at + buffer.length < end ? at + buffer.length : first * BLOCK
      ) {
        fs.writeSync(fd, buffer, 0, Math.min(buffer.length, end - at), at)
      }
    } catch {}
    close(fd)
  },

  /** Looks for each number that the logs allow; stores the numbers it finds in `numbers`, and deletes the logs. */
  verify({ file, numbers: numbersFile, logs, blocks }) {
    const bytes = fs.readFileSync(numbersFile)
    const numbers = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
    /** Of sectors that were written after the last sync. */
    const open = new Map()
    let syncs = 0
    const errors = []
    for (const log of logs) {
      const sinceSync = new Map()
      for (const line of fs.readFileSync(log, 'utf8').split('\n')) {
        const words = line.split(' ')
        if (words[0] === 'synced') {
          syncs++
          for (const [sector, those] of sinceSync) numbers[sector] = those.at(-1)
          sinceSync.clear()
        } else if (words.length === 3 && /^\d/.test(line)) {
          const [block, count, number] = words.map(Number)
          for (let sector = block * SECTORS; sector < (block + count) * SECTORS; sector++) {
            const those = sinceSync.get(sector)
            if (those) those.push(number)
            else sinceSync.set(sector, [number])
          }
        } else if (line !== '') errors.push(line)
      }
      for (const [sector, those] of sinceSync) open.set(sector, those)
      fs.rmSync(log)
    }
    const expected = Buffer.alloc(SECTOR)
    const wrong = []
    const fd = fs.openSync(file)
    const piece = Buffer.alloc(2 ** 20)
    for (let sector = 0; sector < blocks * SECTORS; sector++) {
      const place = (sector * SECTOR) % piece.length
      if (place === 0) fs.readSync(fd, piece, 0, piece.length, sector * SECTOR)
      const number = piece.readUInt32LE(place + 12)
      const may = [numbers[sector], ...(open.get(sector) ?? [])]
      stamp(expected, 0, sector, number)
      if (!may.includes(number) || expected.compare(piece, place, place + SECTOR) !== 0) {
        const got = piece.subarray(place, place + STAMP_BYTES).toString('hex')
        wrong.push(`sector ${sector}: ${got}, where ${may.join(' or ')} may be`)
      }
      numbers[sector] = number
    }
    fs.closeSync(fd)
    fs.writeFileSync(numbersFile, numbers)
    const first = wrong.slice(0, 10)
    return { syncs, open: open.size, wrongs: wrong.length, first, errors }
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...job } = JSON.parse(line)
  fs.writeSync(1, `${JSON.stringify(COMMANDS[command](job) ?? {})}\n`)
}
