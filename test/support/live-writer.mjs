/**
 * Writes pages of a file in order, again and again, each time with the next number: `FILE MODE OFFSET PAGES PROGRESS`. MODE is
 * buffered, direct or mapped. Each page is full of its number, as 64-bit words. PROGRESS is a file of two words: how many pages it
 * has begun, and how many are done. Ends when its input ends.
 */
import fs from 'node:fs'
import koffi from 'koffi'

const [file, mode, offsetText, pagesText, progressFile] = process.argv.slice(2)
const offset = Number(offsetText)
const pages = Number(pagesText)
const PAGE = 4096
const { O_RDWR, O_DIRECT } = fs.constants
const fd = fs.openSync(file, mode === 'direct' ? O_RDWR | O_DIRECT : O_RDWR)
const progress = fs.openSync(progressFile, 'w')
const tell = (place, value) => {
  const word = Buffer.alloc(8)
  word.writeBigUInt64LE(BigInt(value))
  fs.writeSync(progress, word, 0, 8, 8 * place)
}

let map
let msync
if (mode === 'mapped') {
  const libc = koffi.load('libc.so.6')
  const mmap = libc.func(
    'void *mmap(void *address, size_t bytes, int protection, int flags, int fd, int64_t at)',
  )
  const address = mmap(null, pages * PAGE, 3, 1, fd, offset)
  map = Buffer.from(koffi.view(address, pages * PAGE))
  const sync = libc.func('int msync(void *address, size_t bytes, int flags)')
  msync = () => sync(address, pages * PAGE, 4)
}

let hasEnded = false
process.stdin.on('end', () => {
  hasEnded = true
})
process.stdin.resume()

const page = Buffer.alloc(PAGE)
let count = 0
function write() {
  const place = count % pages
  const number = BigInt(Math.floor(count / pages) + 1)
  for (let at = 0; at < PAGE; at += 8) page.writeBigUInt64LE(number, at)
  tell(0, count + 1)
  if (map) {
    page.copy(map, place * PAGE)
    // Only a round that is synced is done.
    if (place === pages - 1) {
      if (msync() !== 0) throw new Error('msync fails')
      tell(1, count + 1)
    }
  } else {
    if (fs.writeSync(fd, page, 0, PAGE, offset + place * PAGE) !== PAGE) throw new Error('short')
    tell(1, count + 1)
  }
  count++
  if (hasEnded && place === pages - 1) {
    fs.fsyncSync(fd)
    process.exit(0)
  }
  setImmediate(write)
}
tell(0, 0)
tell(1, 0)
process.stdout.write('ready\n')
write()
