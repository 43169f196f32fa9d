/** The kinds of images that conversions are tried with. */
import { closeSync, ftruncateSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { noise } from '../fixtures/model.js'
import { run } from '../support/run.js'
import { creating } from './encrypted.js'
import { qemuImg, qemuIo, randomWrites } from './qemu.js'

const K = 1024
export const SIZE = 6 * K * K

export interface SourceKind {
  readonly title: string
  /** Makes the image. */
  make(folder: string): Promise<MadeSource>
}

export interface MadeSource {
  /** The argument SRC for vimgfs. */
  readonly name: string
  readonly format: string
  /** Options of vimgfs. */
  readonly options?: readonly string[]
  /** How qemu-img converts the same. */
  readonly qemu: readonly string[]
}

/** Makes an image by writing to it. */
const written =
  (format: string, options: string, kinds?: Parameters<typeof randomWrites>[2]['kinds']) =>
  async (folder: string): Promise<MadeSource> => {
    const name = join(folder, `source.${format}`)
    const given = options === '' ? [] : ['-o', options]
    await qemuImg('create', '-q', '-f', format, ...given, name, String(SIZE + 512))
    const writes = randomWrites(3, SIZE, { cluster: 64 * K, ...(kinds && { kinds }) })
    await qemuIo(name, writes, ['-f', format])
    return { name, format, qemu: ['-f', format, name] }
  }

/** Makes an image of a raw one. */
const convertedTo =
  (format: string, ...options: string[]) =>
  async (folder: string): Promise<MadeSource> => {
    const name = join(folder, `source.${format === 'vpc' ? 'vhd' : format}`)
    await qemuImg('convert', '-f', 'raw', '-O', format, ...options, rawDisk(folder), name)
    return { name, format, qemu: ['-f', format, name] }
  }

const PLAIN = ['write', 'partial', 'zero'] as const

export const SOURCES: SourceKind[] = [
  { title: 'raw', make: written('raw', '', ['write', 'partial', 'zero-unmap']) },
  { title: 'qcow2', make: written('qcow2', '') },
  { title: 'qcow2, version 2', make: written('qcow2', 'compat=0.10', PLAIN) },
  { title: 'qcow2, clusters of 4 KiB', make: written('qcow2', 'cluster_size=4k') },
  { title: 'qcow2, subclusters', make: written('qcow2', 'cluster_size=128k,extended_l2=on') },
  { title: 'qcow2, preallocated', make: written('qcow2', 'preallocation=metadata') },
  {
    title: 'qcow2, data file',
    make: folder => written('qcow2', `data_file=${folder}/data`)(folder),
  },
  { title: 'qcow2, zlib', make: convertedTo('qcow2', '-c') },
  {
    title: 'qcow2, zlib, clusters of 2 MiB',
    make: convertedTo('qcow2', '-c', '-o', 'cluster_size=2M'),
  },
  { title: 'qcow2, zstd', make: convertedTo('qcow2', '-c', '-o', 'compression_type=zstd') },
  {
    title: 'qcow2, zstd, clusters of 4 KiB',
    make: convertedTo('qcow2', '-c', '-o', 'compression_type=zstd,cluster_size=4k'),
  },
  {
    title: 'a chain',
    make: async folder => {
      await written('raw', '')(folder)
      const name = join(folder, 'top.qcow2')
      const create = ['create', '-q', '-f', 'qcow2', '-b', 'source.raw', '-F', 'raw', name]
      await run('qemu-img', [...create, String(SIZE + 64 * K)], { cwd: folder })
      await qemuIo(name, randomWrites(8, SIZE, { cluster: 64 * K }))
      return { name, format: 'qcow2', qemu: ['-f', 'qcow2', name] }
    },
  },
  {
    title: 'a snapshot',
    make: async folder => {
      const { name, format } = await written('qcow2', '')(folder)
      await qemuImg('snapshot', '-c', 'before', name)
      await qemuIo(name, randomWrites(9, SIZE, { cluster: 64 * K }))
      return { name: `${name}@before`, format, qemu: ['-f', format, '-l', 'before', name] }
    },
  },
  {
    title: 'qcow2, LUKS',
    make: async folder => {
      const name = join(folder, 'source.qcow2')
      const secret = ['--object', 'secret,id=s,data=from']
      const options = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10'
      await creating([
        ...['convert', '-f', 'raw', '-O', 'qcow2', ...secret, '-o', options],
        ...[rawDisk(folder), name],
      ])
      const passphrase = join(folder, 'passphrase')
      writeFileSync(passphrase, 'from')
      const opts = `driver=qcow2,encrypt.key-secret=s,file.filename=${name}`
      return {
        ...{ name, format: 'qcow2', options: ['--passphrase-file', passphrase] },
        qemu: [...secret, '--image-opts', opts],
      }
    },
  },
  { title: 'qcow', make: convertedTo('qcow') },
  { title: 'vmdk', make: written('vmdk', '', PLAIN) },
  { title: 'vmdk, flat', make: written('vmdk', 'subformat=monolithicFlat', PLAIN) },
  { title: 'vmdk, extents', make: written('vmdk', 'subformat=twoGbMaxExtentSparse', PLAIN) },
  { title: 'vmdk, stream', make: convertedTo('vmdk', '-o', 'subformat=streamOptimized') },
  { title: 'vhd, dynamic', make: convertedTo('vpc', '-o', 'force_size=on') },
  { title: 'vhd, fixed', make: convertedTo('vpc', '-o', 'subformat=fixed,force_size=on') },
]

/** Makes a raw disk of text, noise, zeros and holes. */
export function rawDisk(folder: string, sizeBytes = SIZE + 512): string {
  const raw = join(folder, 'disk.raw')
  const fd = openSync(raw, 'w')
  const lines = Array.from(
    { length: 50_000 },
    (_, i) => `${(i * 7919) % 10_007} bottles: line ${i}\n`,
  )
  const text = Buffer.from(lines.join(''))
  writeSync(fd, text.subarray(0, 900 * K), 0, 900 * K, 0)
  writeSync(fd, noise(700 * K, 1), 0, 700 * K, 1000 * K)
  writeSync(fd, Buffer.alloc(300 * K), 0, 300 * K, 2000 * K)
  writeSync(fd, noise(5000, 2), 0, 5000, 4000 * K + 700)
  writeSync(fd, text.subarray(0, 1000), 0, 1000, SIZE - 1000)
  ftruncateSync(fd, sizeBytes)
  closeSync(fd)
  return raw
}
