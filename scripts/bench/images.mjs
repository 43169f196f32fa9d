/**
 * The disk images of the benchmark. All contents come from a seed, so every run measures the same
 * bytes. An image is { id, file, format, raw, sizeBytes, check, snapshot }: `file` is in `format` (qcow2,
 * vmdk, or raw for a copy of `raw`), `raw` is the same disk for the servers that know no formats,
 * `check` a file whose first bytes are those of the disk, `snapshot` the tag of a snapshot with the
 * same contents, if there is one, `passphrase` a file with what it is encrypted with, if it is.
 */
import crypto from 'node:crypto'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { run } from './workplace.mjs'

export const MiB = 2 ** 20
export const GiB = 2 ** 30
export const TiB = 2 ** 40

const CLUSTER = 65536
const L2_ENTRIES = CLUSTER / 8
const L2_SPAN = L2_ENTRIES * CLUSTER // 512 MiB of the disk for each L2 table
const COPIED = 0x80000000 // the high half's top bit: this cluster has one reference
const COMPRESSED = { qcow2: ['-c', '-m', '4'], vmdk: ['-o', 'subformat=streamOptimized'] }

/** Returns incompressible bytes: the key stream of AES in counter mode. It makes some GB/s, the same every time. */
export function randomStream(seed) {
  const key = crypto.createHash('sha256').update(seed).digest()
  const cipher = crypto.createCipheriv('aes-256-ctr', key, Buffer.alloc(16))
  return bytes => cipher.update(Buffer.alloc(bytes))
}

/** Returns bytes that zlib packs about 2:1: three quarters of each block are words, a quarter is random. */
function mixedStream(seed) {
  const random = randomStream(seed)
  const letters = random(64 * 1024)
  const words = Array.from({ length: 512 }, (_, i) =>
    Array.from(letters.subarray(i * 12, i * 12 + 3 + (letters[i] % 8)), c =>
      String.fromCharCode(97 + (c % 26)),
    ).join(''),
  )
  let text = ''
  const choice = random(4 * MiB)
  for (let i = 0; text.length < 4 * MiB; i += 2) {
    // A power makes some words frequent, as in real text.
    const u = choice.readUInt16LE(i % choice.length) / 65536
    text += `${words[Math.floor(u ** 4 * words.length)]} `
  }
  const pool = Buffer.from(text, 'latin1')
  return bytes => {
    const out = random(bytes)
    for (let at = 0; at + 4096 <= bytes; at += 4096) {
      const from = out.readUInt32LE(at) % (pool.length - 3072)
      pool.copy(out, at, from, from + 3072)
    }
    return out
  }
}

function writeFilled(file, sizeBytes, stream) {
  const fd = fs.openSync(file, 'wx')
  for (let at = 0; at < sizeBytes; at += MiB) fs.writeSync(fd, stream(MiB), 0, MiB, at)
  fs.closeSync(fd)
}

function writeSparse(file, sizeBytes) {
  const fd = fs.openSync(file, 'wx')
  fs.ftruncateSync(fd, sizeBytes)
  fs.closeSync(fd)
}

/** Returns the files of an image that is still to be made, in a new folder. */
function planned(place, id, sizeBytes, { format, passphrase }) {
  const dir = place.folder(`image-${id}`)
  const files = { raw: `${dir}/${id}.raw`, file: `${dir}/${id}.${format}` }
  return { id, sizeBytes, format, passphrase, ...files }
}

/** Describes an image without its contents. */
const kindOf = format => ({ format })

/** Describes a qcow2 with LUKS, whose passphrase is in a file. */
export function encrypted(place) {
  const passphrase = `${place.folder('secret')}/passphrase`
  fs.writeFileSync(passphrase, 'benchmark')
  return { format: 'qcow2', passphrase }
}

const secret = ({ passphrase }) =>
  passphrase ? ['--object', `secret,id=secret,file=${passphrase}`] : []
const encryption = ({ passphrase }) =>
  passphrase ? ['-o', 'encrypt.format=luks,encrypt.key-secret=secret,encrypt.iter-time=50'] : []

/** Returns how to name an image to QEMU's tools, for reading. */
export const qemuNames = image =>
  image.passphrase
    ? [
        ...secret(image),
        '--image-opts',
        `driver=${image.format},encrypt.key-secret=secret,file.filename=${image.file}`,
      ]
    : ['-f', image.format, image.file]

const TRIES = 20

/** Tries again: QEMU 7.2 measures its key derivation, and sometimes fails if the kernel's clock is coarse. */
async function makingImage(args) {
  for (let tries = 1; ; tries++) {
    try {
      return await run('qemu-img', args, { timeoutMs: 600_000 })
    } catch (error) {
      if (tries === TRIES || !/Unable to get accurate CPU usage/.test(error.message)) throw error
    }
  }
}

async function fromRaw(place, id, sizeBytes, stream, kind, convertOptions = []) {
  const image = planned(place, id, sizeBytes, kind)
  writeFilled(image.raw, sizeBytes, stream)
  const options = [...convertOptions, ...secret(kind), ...encryption(kind)]
  const args = ['convert', ...options, '-f', 'raw', '-O', kind.format, image.raw, image.file]
  await makingImage(args)
  return { ...image, check: image.raw }
}

/** Makes an image with every cluster (vmdk: grain) written, in order, with bytes that do not compress. */
export const plain = (place, sizeBytes, kind = kindOf('qcow2')) =>
  fromRaw(place, 'plain', sizeBytes, randomStream('plain'), kind)

/** Makes the same disk as a raw image. */
export async function plainRaw(place, sizeBytes) {
  const image = planned(place, 'plain', sizeBytes, kindOf('raw'))
  writeFilled(image.raw, sizeBytes, randomStream('plain'))
  return { ...image, check: image.raw }
}

/** Makes the same image, all of it shared with a snapshot. */
export async function snapshotted(place, sizeBytes) {
  const image = await fromRaw(place, 'snapshot', sizeBytes, randomStream('plain'), kindOf('qcow2'))
  await run('qemu-img', ['snapshot', '-c', 'before', image.file])
  return { ...image, snapshot: 'before' }
}

/** Copies the file that this server reads, so that it may write to the copy. */
export async function copyFor(place, image, { raw }) {
  const format = raw ? 'raw' : image.format
  const file = `${place.folder('copy')}/${image.id}.${format}`
  await run('cp', ['--sparse=auto', raw ? image.raw : image.file, file])
  const passphrase = raw ? undefined : image.passphrase
  return { ...image, file, format, passphrase, raw: raw ? file : undefined }
}

/** Makes an image with every cluster compressed with zlib; as vmdk this is a streamOptimized image. */
export const compressed = (place, sizeBytes, format = 'qcow2') =>
  fromRaw(place, 'compressed', sizeBytes, mixedStream('mixed'), kindOf(format), COMPRESSED[format])

/** Makes a disk that was never written to. */
export async function empty(place, sizeBytes, { id = 'empty', kind = kindOf('qcow2') } = {}) {
  const image = planned(place, id, sizeBytes, kind)
  writeSparse(image.raw, sizeBytes)
  const options = [...secret(kind), ...encryption(kind)]
  await makingImage(['create', '-q', ...options, '-f', kind.format, image.file, String(sizeBytes)])
  return { ...image, check: image.raw }
}

/** Makes a disk of 1 GiB with 4 MiB written, and `count` internal snapshots. */
export async function withSnapshots(place, count) {
  const image = await empty(place, GiB, { id: `snapshots-${count}` })
  const write = ['-f', image.format, '-c', 'write -q -P 7 0 4M', image.file]
  await run('qemu-io', write)
  for (let i = 0; i < count; i++) {
    await run('qemu-img', ['snapshot', '-c', `snapshot-${i}`, image.file])
  }
  fs.rmSync(image.raw)
  const check = image.raw
  fs.writeFileSync(check, Buffer.alloc(MiB, 7))
  return { ...image, raw: undefined, check }
}

/**
 * Makes a disk with all L2 tables, in which every entry is allocated: the most metadata that is possible at this size and
 * cluster size. It is written byte by byte, since filling 16 TiB is impossible:
 *
 *   header | refcount table | L1 | the one data cluster | L2 of 0..512 MiB | L2 of 512..1024 MiB | …
 *
 * Every L2 table has its own place, so a server caches as much as for a real disk. All their entries point at one data
 * cluster. The reference counts stay empty, because a server that only reads never looks at them. If memory is short
 * (16 TiB need 2 GiB of tables), only the first `l2Budget` tables are written. The others are holes: they read as tables of
 * unallocated clusters and are cached in the same way. image.tables says how many there are of each.
 */
export function tablesEverywhere(place, sizeBytes, id) {
  const image = planned(place, id, sizeBytes, kindOf('qcow2'))
  const tables = Math.ceil(sizeBytes / L2_SPAN)
  const written = os.freemem() > tables * CLUSTER + 4 * GiB ? tables : Math.min(tables, 4096)

  const l1Clusters = Math.ceil((tables * 8) / CLUSTER)
  const l1At = 2 * CLUSTER
  const dataAt = l1At + l1Clusters * CLUSTER
  const l2At = dataAt + CLUSTER

  const header = Buffer.alloc(104)
  header.write('QFI\xfb', 0, 'latin1')
  header.writeUInt32BE(3, 4) // version
  header.writeUInt32BE(Math.log2(CLUSTER), 20)
  putU64(header, 24, sizeBytes)
  header.writeUInt32BE(tables, 36)
  putU64(header, 40, l1At)
  putU64(header, 48, CLUSTER) // refcount table
  header.writeUInt32BE(1, 56) // of one cluster
  header.writeUInt32BE(4, 96) // 2^4 bits a refcount
  header.writeUInt32BE(header.length, 100)

  const l1 = Buffer.alloc(l1Clusters * CLUSTER)
  for (let i = 0; i < tables; i++) putU64(l1, i * 8, l2At + i * CLUSTER, COPIED)
  const l2 = Buffer.alloc(CLUSTER)
  for (let i = 0; i < L2_ENTRIES; i++) putU64(l2, i * 8, dataAt)
  const data = randomStream('cluster')(CLUSTER)

  const fd = fs.openSync(image.file, 'wx')
  fs.ftruncateSync(fd, l2At + tables * CLUSTER)
  fs.writeSync(fd, header, 0, header.length, 0)
  fs.writeSync(fd, l1, 0, l1.length, l1At)
  fs.writeSync(fd, data, 0, data.length, dataAt)
  for (let i = 0; i < written; i++) fs.writeSync(fd, l2, 0, CLUSTER, l2At + i * CLUSTER)
  fs.closeSync(fd)

  const check = `${path.dirname(image.file)}/check`
  const start = Buffer.concat(Array(MiB / CLUSTER).fill(data))
  fs.writeFileSync(check, start)
  fs.writeFileSync(image.raw, start) // as much of the disk as is compared, then a hole
  fs.truncateSync(image.raw, sizeBytes)
  return { ...image, check, tables: { all: tables, written, bytes: tables * CLUSTER } }
}

function putU64(buffer, at, value, flags = 0) {
  buffer.writeUInt32BE((Math.floor(value / 2 ** 32) | flags) >>> 0, at)
  buffer.writeUInt32BE(value % 2 ** 32, at + 4)
}
