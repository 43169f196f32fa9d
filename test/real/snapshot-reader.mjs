/**
 * Reads the snapshots in FOLDER until its input ends, and keeps some open while they are deleted. The tag `s12-7` says that the
 * first half of the disk has only bytes 12, and the second half only bytes 7. Prints what it found, as JSON.
 */
import fs from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'

const [folder] = process.argv.slice(2)
const MOST_OPEN = 6
const PIECE = 64 * 1024
/** After so many reads of files that are open for longer it says so. */
const ENOUGH = 100
const { O_RDONLY, O_DIRECT } = fs.constants
const { ESTALE } = constants.errno

const found = { reads: 0, held: 0, gone: 0, wrong: [], errors: [] }
const open = []
let round = 0
let hasEnded = false
process.stdin.on('end', () => {
  hasEnded = true
})
process.stdin.resume()

while (!hasEnded) {
  round++
  for (const name of orGone(() => fs.readdirSync(folder)) ?? []) {
    const [, first, second] = name.match(/@s(\d+)-(\d+)\.raw$/) ?? []
    if (first === undefined || open.some(one => one.name === name)) continue
    // Every other one past the page cache: then each read asks the server.
    const flags = O_RDONLY | ((open.length + round) % 2 === 0 ? O_DIRECT : 0)
    const fd = orGone(() => fs.openSync(join(folder, name), flags))
    if (fd !== undefined)
      open.push({ name, fd, values: [Number(first), Number(second)], since: round })
  }
  for (const file of open) readSome(file)
  while (open.length > MOST_OPEN) fs.closeSync(open.shift().fd)
  await turn()
}
process.stdout.write(JSON.stringify(found))

function readSome({ name, fd, values, since }) {
  const { size } = orGone(() => fs.fstatSync(fd)) ?? {}
  if (size === undefined) return
  const pieces = size / PIECE
  for (let i = 0; i < 4; i++) {
    const piece = (round * 7 + i * 13) % pieces
    const bytes = Buffer.alloc(PIECE)
    const got = orGone(() => fs.readSync(fd, bytes, 0, PIECE, piece * PIECE))
    if (got === undefined) return
    found.reads++
    if (since !== round && ++found.held === ENOUGH) process.stdout.write('enough\n')
    const value = values[piece < pieces / 2 ? 0 : 1]
    const at = piece * PIECE
    const wrong = bytes.subarray(0, got).findIndex(byte => byte !== value)
    if (wrong >= 0) found.wrong.push(`${name} at ${at + wrong}: ${bytes[wrong]}`)
    if (got === PIECE) continue
    // The kernel has had a part of it in its cache, so the error comes with the next read.
    const more = orGone(() => fs.readSync(fd, bytes, 0, PIECE - got, at + got))
    if (more !== undefined) found.wrong.push(`${name} ends at ${at + got}`)
  }
}

function orGone(act) {
  try {
    return act()
  } catch (error) {
    // Node has no name for ESTALE.
    if (error.errno === -ESTALE || error.code === 'ENOENT') found.gone++
    else found.errors.push(error.message)
    return undefined
  }
}
