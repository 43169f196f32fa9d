/** Verifies that what was written is in the image: a server that drops writes would be the fastest. */
import fs from 'node:fs'
import path from 'node:path'
import { MiB, qemuNames } from './images.mjs'
import { run } from './workplace.mjs'

const SECTOR = 512
const UNIT = 4096
const CHUNK = 4 * MiB

/** Returns a server's image as a raw file, after the server has ended. Throws if the image is not sound. */
export async function rawOf(image) {
  const { file, format } = image
  if (format === 'raw') return file
  await run('qemu-img', ['check', '-q', ...qemuNames(image)])
  const seen = path.join(path.dirname(file), 'seen.raw')
  await run('qemu-img', ['convert', '-O', 'raw', ...qemuNames(image), seen])
  return seen
}

/** Throws unless fio has written `bytes` bytes of the disk, and all others are unchanged. */
export async function verifyWritten(image, bytes) {
  const seen = await rawOf(image)
  const found = writtenUnits(seen, image.check) * UNIT
  if (found !== bytes) throw new Error(`${bytes} bytes were written and ${found} are in the image`)
  fs.rmSync(seen)
  if (image.snapshot) await verifySnapshot(image, seen)
}

/** Throws unless a mounted disk shows `bytes` bytes that fio has written, and all others as they are in the image. */
export function verifyShown(file, image, bytes) {
  const found = writtenUnits(file, image.check) * UNIT
  if (found !== bytes) throw new Error(`${bytes} bytes were written and ${found} are shown`)
}

async function verifySnapshot({ file, format, snapshot, check }, target) {
  const args = ['-l', `snapshot.name=${snapshot}`, '-f', format, '-O', 'raw', file, target]
  await run('qemu-img', ['convert', ...args])
  await run('cmp', [target, check])
}

/** Returns how many units of a disk fio has marked. Throws if another one has changed. */
function writtenUnits(file, before) {
  const [fd, beforeFd] = [file, before].map(name => fs.openSync(name, 'r'))
  const [now, then] = [Buffer.alloc(CHUNK), Buffer.alloc(CHUNK)]
  const words = new Uint32Array(now.buffer)
  let units = 0
  try {
    for (let at = 0, length; (length = fs.readSync(fd, now, 0, CHUNK, at)) > 0; at += length) {
      if (fs.readSync(beforeFd, then, 0, CHUNK, at) !== length) {
        throw new Error('the disk has another size')
      }
      for (let unit = 0; unit < length; unit += UNIT) {
        if (isMarked(words, unit, at + unit)) units++
        else if (now.compare(then, unit, unit + UNIT, unit, unit + UNIT) !== 0) {
          throw new Error(`bytes at ${at + unit} were never written so`)
        }
      }
    }
  } finally {
    fs.closeSync(fd)
    fs.closeSync(beforeFd)
  }
  return units
}

/** Each sector that fio wrote contains its place on the disk, as an aligned number. */
function isMarked(words, unit, offset) {
  for (let sector = 0; sector < UNIT; sector += SECTOR) {
    const low = (offset + sector) % 2 ** 32
    const high = Math.floor((offset + sector) / 2 ** 32)
    const end = (unit + sector + SECTOR) / 4
    let word = (unit + sector) / 4
    while (word < end && (words[word] !== low || words[word + 1] !== high)) word += 2
    if (word >= end) return false
  }
  return true
}
