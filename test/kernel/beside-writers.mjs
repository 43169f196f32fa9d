/**
 * Writes and discards blocks of a disk while others are read, by several threads, and checks that each read shows what was
 * written before it, or meanwhile: node beside-writers.mjs DISK SEED STEPS [READER…]. A reader is the path of a file that shows the
 * same disk, opened by flags: PATH:FLAGS. It prints "ok", or what was wrong.
 */
import fs from 'node:fs'
import koffi from 'koffi'

const [, , disk, seed, steps, ...readers] = process.argv
const { O_RDWR } = fs.constants
const BLOCK = 4096
const KEEP_SIZE = 1
const PUNCH_HOLE = 2
const READS_A_WRITE = 2

const libc = koffi.load('libc.so.6')
const fallocate = libc.func('int fallocate64(int fd, int mode, int64_t at, int64_t bytes)')
const mmap = libc.func(
  'void *mmap(void *at, size_t bytes, int protection, int flags, int fd, int64_t from)',
)
/** Memory that begins at a page, as O_DIRECT needs it. */
const memory = () => Buffer.from(koffi.view(mmap(null, BLOCK, 3, 0x22, -1, 0), BLOCK))

let state = Number(seed) >>> 0
/** Returns a whole number below `n` (xorshift). */
function below(n) {
  state ^= state << 13
  state ^= state >>> 17
  state ^= state << 5
  return (state >>> 0) % n
}

const blocks = fs.statSync(disk).size / BLOCK
/** For each block, the bytes that it has had and will have next, and how many changes are done. */
const states = Array.from({ length: blocks }, () => ({ values: [0], done: 0, isBusy: false }))
const writers = [O_RDWR, O_RDWR | fs.constants.O_DIRECT].map(flags => fs.openSync(disk, flags))
const files = readers.map(reader => {
  const [file, flags] = reader.split(':')
  return { name: reader, fd: fs.openSync(file, Number(flags)) }
})
const call = (f, ...args) =>
  new Promise((resolve, reject) => {
    f(...args, (error, result) => (error ? reject(error) : resolve(result)))
  })

const zero = Buffer.alloc(BLOCK)
for (let at = 0; at < blocks; at++) fs.writeSync(writers[0], zero, 0, BLOCK, at * BLOCK)

async function change(number) {
  const at = below(blocks)
  const own = states[at]
  if (own.isBusy) return
  own.isBusy = true
  const discards = below(5) === 0
  const value = discards ? 0 : 1 + (number % 255)
  own.values.push(value)
  const fd = writers[below(2)]
  if (discards) {
    const mode = KEEP_SIZE | PUNCH_HOLE
    const failed = await call(fallocate.async, fd, mode, at * BLOCK, BLOCK)
    if (failed) throw new Error(`fallocate failed at ${at}`)
  } else await call(fs.write, fd, memory().fill(value), 0, BLOCK, at * BLOCK)
  own.done = own.values.length - 1
  own.isBusy = false
}

async function look({ fd, name }) {
  const at = below(blocks)
  const own = states[at]
  const buffer = memory()
  const { done } = own
  const got = await call(fs.read, fd, buffer, 0, BLOCK, at * BLOCK)
  if (got !== BLOCK) throw new Error(`${name}: ${got} bytes of block ${at}`)
  const allowed = own.values.slice(done)
  const wrong = buffer.find(byte => !allowed.includes(byte))
  if (wrong !== undefined) throw new Error(`${name}: block ${at} has ${wrong}, not ${allowed}`)
}

const isOver = { now: false }
async function keepChanging() {
  for (let i = 0; i < Number(steps); i++) await change(i)
}
async function keepLooking() {
  while (!isOver.now) for (const file of files) await look(file)
}

try {
  const looking = Array.from({ length: READS_A_WRITE }, keepLooking)
  await keepChanging()
  isOver.now = true
  await Promise.all(looking)
  for (const { fd, name } of files) {
    for (const [at, { values }] of states.entries()) {
      const buffer = memory()
      fs.readSync(fd, buffer, 0, BLOCK, at * BLOCK)
      if (buffer.some(byte => byte !== values.at(-1)))
        throw new Error(`${name}: block ${at} at the end`)
    }
  }
  console.log('ok')
} catch (error) {
  console.log(error.message)
  process.exitCode = 1
}
