/**
 * Writes 4 KiB after 4 KiB at places all over the file that is named, past the page cache, until its input ends. Prints a line when it
 * has begun, and at the end how long the longest write took, in milliseconds.
 */
import fs from 'node:fs'

const WARM_UP = 2000
const PLACES = 2000
const STEP_BYTES = 32 * 2 ** 20
const fd = fs.openSync(process.argv[2], fs.constants.O_RDWR | fs.constants.O_DIRECT)
const bytes = Buffer.alloc(4096, 7)
let longest = 0
let count = 0
let hasEnded = false
process.stdin.on('end', () => {
  hasEnded = true
})
process.stdin.resume()

function write() {
  const begun = performance.now()
  fs.writeSync(fd, bytes, 0, bytes.length, (count++ % PLACES) * STEP_BYTES)
  if (count > WARM_UP) longest = Math.max(longest, performance.now() - begun)
  if (count === WARM_UP) process.stdout.write('begun\n')
  if (hasEnded && count > WARM_UP) {
    process.stdout.write(`${longest}\n`)
    process.exit(0)
  }
  setImmediate(write)
}
write()
