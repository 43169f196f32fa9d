/**
 * The cases of a qcow2 image that vimgfs lays out by reflinks, so that the kernel reads it. The limit is the same disk as a raw
 * file on the same file system, an xfs in a file.
 */
import fs from 'node:fs'
import { readCases } from './cases.mjs'
import { plain, randomStream } from './images.mjs'
import { run } from './workplace.mjs'

const CLUSTER = 65536
const L2_ENTRIES = CLUSTER / 8
/** The file system has room for the image, the raw file and its own log. */
const LOG_BYTES = 512 * 2 ** 20

/** Mounts a new xfs in a file. Returns a workplace in it. */
async function onXfs(place, sizeBytes) {
  const folder = place.folder('xfs')
  const device = `${folder}/device`
  const inside = `${folder}/inside`
  fs.writeFileSync(device, '')
  fs.truncateSync(device, 3 * sizeBytes + LOG_BYTES)
  fs.mkdirSync(inside)
  await run('mkfs.xfs', ['-q', '-m', 'reflink=1', device])
  await run('mount', ['-o', 'loop', device, inside])
  return {
    folder: name => {
      fs.mkdirSync(`${inside}/${name}`)
      return `${inside}/${name}`
    },
  }
}

/** Returns the numbers below `count` in a random order, the same every time. */
function shuffled(count) {
  const order = Uint32Array.from({ length: count }, (_, i) => i)
  const random = randomStream('order')(4 * count)
  for (let i = count - 1; i > 0; i--) {
    const other = random.readUInt32LE(4 * i) % (i + 1)
    ;[order[i], order[other]] = [order[other], order[i]]
  }
  return order
}

/** Makes an image whose clusters lie in a random order: no piece is longer than a cluster. */
async function scattered(place, { size }) {
  const image = await plain(await onXfs(place, size), size)
  const order = shuffled(size / CLUSTER)
  const fd = fs.openSync(image.file, 'r+')
  const raw = fs.openSync(image.raw, 'r+')
  const read = (at, bytes) => {
    const target = Buffer.alloc(bytes)
    fs.readSync(fd, target, 0, bytes, at)
    return target
  }
  const l1 = read(Number(read(40, 8).readBigUInt64BE()), 8 * Math.ceil(order.length / L2_ENTRIES))
  const tables = Array.from({ length: l1.length / 8 }, (_, i) =>
    Number(l1.readBigUInt64BE(8 * i) & 0x00ff_ffff_ffff_fe00n),
  )
  const entries = Buffer.concat(tables.map(at => read(at, CLUSTER)))
  const moved = Buffer.from(entries)
  order.forEach((from, i) => {
    entries.copy(moved, 8 * i, 8 * from, 8 * from + 8)
    const at = Number(entries.readBigUInt64BE(8 * from) & 0x00ff_ffff_ffff_fe00n)
    fs.writeSync(raw, read(at, CLUSTER), 0, CLUSTER, i * CLUSTER)
  })
  for (const [i, at] of tables.entries()) fs.writeSync(fd, moved, i * CLUSTER, CLUSTER, at)
  for (const each of [fd, raw]) {
    fs.fsyncSync(each)
    fs.closeSync(each)
  }
  return image
}

export const reflinkReadImages = {
  plain: { title: 'qcow2 on xfs, clusters of 64 KiB in random order', make: scattered },
}

export const reflinkReadCases = readCases
  .filter(({ image }) => image === 'plain')
  .map(each => ({ ...each, id: `reflink-${each.id}`, targets: { raw: 0.85 } }))
