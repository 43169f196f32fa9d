/** The kinds of images that fsx.test.ts works on, as qemu-img makes them. */
import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { asQemuNames, type EncryptedImage, makeEncrypted } from '../peers/encrypted.js'
import { PARENT } from '../soundness/cow-kinds.js'
import { buildQcow } from '../soundness/qcow-kinds.js'
import { run } from '../support/run.js'
import { createCow } from './disks.js'

const K = 1024
const MIB = K * K

export interface Kind {
  readonly name: string
  readonly format?: 'raw' | 'vmdk' | 'qcow' | 'cow'
  /** A compressed cluster stays in the file, of no use, after it was overwritten. */
  readonly mayLeak?: boolean
  /** What names it to QEMU, where that needs a passphrase; vimgfs finds that in PASSPHRASE_FILE. */
  readonly named?: (image: string) => readonly string[]
  readonly clusterBytes: number
  /** Whether to take snapshots between the rounds. */
  readonly snapshots?: boolean
  /** A persistent dirty bitmap, and how much of the disk a bit stands for. */
  readonly bitmap?: { readonly name: string; readonly bytes: number }
  /** A file that is to have the disk's bytes, each at its place. */
  readonly rawData?: (folder: string) => string
  /** Makes the image; resolves to the files that writing must not change. */
  create(folder: string, image: string): Promise<string[]>
}

/** No multiple of a cluster. */
const ODD_BYTES = 7 * 512
const SIZE_BYTES = 24 * MIB + ODD_BYTES

interface Options {
  readonly snapshots?: boolean
  readonly sizeBytes?: number
}

/** An empty image, with options of `qemu-img create`. */
function empty(name: string, clusterBytes: number, options: string, more: Options = {}): Kind {
  const { sizeBytes = SIZE_BYTES, ...others } = more
  const o = ['-o', [`cluster_size=${clusterBytes}`, options].filter(Boolean).join(',')]
  return {
    name,
    clusterBytes,
    ...others,
    create: async (_, image) => {
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', ...o, image, `${sizeBytes}`])
      return []
    },
  }
}

/** Data that compress, data that do not, and holes. */
function writeSource(path: string, sizeBytes: number): void {
  const bytes = Buffer.alloc(sizeBytes)
  for (let at = 0; at < sizeBytes; at += MIB) {
    const kind = (at / MIB) % 4
    if (kind === 0) randomBytes(MIB).copy(bytes, at)
    else if (kind !== 3) bytes.fill(`line ${at}\n`, at, Math.min(sizeBytes, at + MIB))
  }
  writeFileSync(path, bytes)
}

/** Every cluster compressed that can be. */
function compressed(name: string, clusterBytes: number, options: string, more: Options = {}): Kind {
  return {
    name,
    clusterBytes,
    ...more,
    create: async (folder, image) => {
      const source = join(folder, 'source')
      writeSource(source, SIZE_BYTES)
      const o = `cluster_size=${clusterBytes}${options}`
      await run('qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', o, source, image])
      return []
    },
  }
}

/** On top of an image that ends before it does. */
function overlay(name: string, clusterBytes: number, format: 'raw' | 'qcow2', more = ''): Kind {
  return {
    name,
    clusterBytes,
    create: async (folder, image) => {
      const [source, base] = [join(folder, 'source'), join(folder, `base.${format}`)]
      writeSource(source, 17 * MIB + 512)
      const packed = format === 'raw' ? [] : ['-c']
      await run('qemu-img', ['convert', ...packed, '-f', 'raw', '-O', format, source, base])
      const o = ['-o', `cluster_size=${clusterBytes}${more}`, '-b', base, '-F', format]
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', ...o, image, `${SIZE_BYTES}`])
      return [base]
    },
  }
}

function dataFile(name: string, isRaw: boolean): Kind {
  const path = (folder: string) => join(folder, 'data')
  return {
    name,
    clusterBytes: 64 * K,
    ...(isRaw && { rawData: path }),
    create: async (folder, image) => {
      const o = ['-o', `data_file=${path(folder)},data_file_raw=${isRaw ? 'on' : 'off'}`]
      await run('qemu-img', ['create', '-q', '-f', 'qcow2', ...o, image, `${SIZE_BYTES}`])
      return []
    },
  }
}

const raw: Kind = {
  name: 'raw',
  format: 'raw',
  clusterBytes: 4 * K,
  create: async (_, image) => {
    await run('qemu-img', ['create', '-q', '-f', 'raw', image, `${SIZE_BYTES}`])
    return []
  },
}

/** With a layer below that ends where it does: a vmdk has one of its own size. */
function vmdk(name: string, options: string, below?: string): Kind {
  return {
    name: `vmdk, ${name}`,
    format: 'vmdk',
    clusterBytes: 64 * K,
    create: async (folder, image) => {
      const create = (file: string, o: string, ...more: string[]) =>
        run('qemu-img', ['create', '-q', '-f', 'vmdk', '-o', o, ...more, file, `${SIZE_BYTES}`])
      if (below === undefined) {
        await create(image, options)
        return []
      }
      const [source, base] = [join(folder, 'source'), join(folder, 'base.vmdk')]
      writeSource(source, SIZE_BYTES)
      const o = ['-f', 'raw', '-O', 'vmdk', '-o', `subformat=${below}`]
      await run('qemu-img', ['convert', ...o, source, base])
      await run('qemu-img', [
        'create',
        '-q',
        '-f',
        'vmdk',
        '-o',
        options,
        '-b',
        base,
        '-F',
        'vmdk',
        image,
      ])
      return [base]
    },
  }
}

/** Beside the image. */
export const PASSPHRASE_FILE = 'passphrase'
export const PASSPHRASE = 'correct-horse-7'

function encrypted(name: string, method: 'luks' | 'aes', more: Partial<Kind> = {}): Kind {
  const format = more.format === 'qcow' ? 'qcow' : 'qcow2'
  const asked = (file: string): EncryptedImage => ({ file, format, passphrase: PASSPHRASE })
  return {
    name,
    clusterBytes: 64 * K,
    named: image => asQemuNames(asked(image)),
    ...more,
    create: async (folder, image) => {
      writeFileSync(join(folder, PASSPHRASE_FILE), `${PASSPHRASE}\n`)
      await makeEncrypted(asked(image), SIZE_BYTES, { format: method })
      return []
    },
  }
}

/** Of the small clusters that QEMU gives a qcow with a backing file. */
const qcowOverlay: Kind = {
  name: 'qcow on a raw file',
  format: 'qcow',
  clusterBytes: 512,
  create: async (folder, image) => {
    const base = join(folder, 'base.raw')
    writeSource(base, 17 * MIB + 512)
    const backing = ['-b', base, '-F', 'raw']
    await run('qemu-img', ['create', '-q', '-f', 'qcow', ...backing, image, `${SIZE_BYTES}`])
    return [base]
  },
}

const qcow: Kind = {
  name: 'qcow, compressed',
  format: 'qcow',
  mayLeak: true,
  clusterBytes: 4 * K,
  // QEMU 7.2 writes compressed clusters of such an image one by one alone.
  create: async (_, image) => {
    const shape = { title: '', clusterBits: 12, l2Bits: 9, sizeBytes: SIZE_BYTES }
    writeFileSync(image, buildQcow({ ...shape, packed: [[100, 4000]] }))
    return []
  },
}

const cow: Kind = {
  name: 'cow on a raw file',
  format: 'cow',
  clusterBytes: 4 * K,
  create: async (folder, image) => {
    const base = join(folder, PARENT)
    writeSource(base, 17 * MIB + 512)
    createCow(image, SIZE_BYTES)
    return [base]
  },
}

const bitmap: Kind = {
  ...empty('a bitmap, snapshots', 64 * K, '', { snapshots: true }),
  bitmap: { name: 'changed', bytes: 32 * K },
}

export const KINDS: readonly Kind[] = [
  raw,
  empty('default', 64 * K, ''),
  empty('default, snapshots', 64 * K, '', { snapshots: true }),
  empty('512 B clusters, snapshots', 512, '', { snapshots: true, sizeBytes: 6 * MIB + ODD_BYTES }),
  empty('4 KiB clusters, snapshots', 4 * K, '', { snapshots: true }),
  empty('2 MiB clusters', 2 * MIB, '', { sizeBytes: 64 * MIB + ODD_BYTES }),
  empty('subclusters', 64 * K, 'extended_l2=on'),
  empty('16 KiB clusters, subclusters, snapshots', 16 * K, 'extended_l2=on', { snapshots: true }),
  empty('version 2, snapshots', 64 * K, 'compat=0.10', { snapshots: true }),
  empty('1-bit counts', 4 * K, 'refcount_bits=1'),
  empty('64-bit counts, snapshots', 4 * K, 'refcount_bits=64', { snapshots: true }),
  empty('lazy counts', 4 * K, 'lazy_refcounts=on'),
  empty('preallocated metadata', 64 * K, 'preallocation=metadata'),
  empty('preallocated', 64 * K, 'preallocation=falloc', { snapshots: true }),
  compressed('compressed', 64 * K, '', { snapshots: true }),
  compressed('compressed with zstd', 64 * K, ',compression_type=zstd'),
  compressed('compressed, subclusters', 64 * K, ',extended_l2=on'),
  overlay('on a raw file', 64 * K, 'raw'),
  overlay('on a compressed image, subclusters', 64 * K, 'qcow2', ',extended_l2=on'),
  overlay('on a compressed image, 4 KiB clusters', 4 * K, 'qcow2'),
  bitmap,
  dataFile('data file', false),
  dataFile('raw data file', true),
  vmdk('sparse', 'subformat=monolithicSparse'),
  vmdk('split', 'subformat=twoGbMaxExtentSparse,zeroed_grain=on'),
  vmdk('flat', 'subformat=monolithicFlat'),
  vmdk('on a flat one', 'subformat=monolithicSparse', 'monolithicFlat'),
  vmdk('zeroed grains, on a stream', 'zeroed_grain=on', 'streamOptimized'),
  qcow,
  qcowOverlay,
  cow,
  encrypted('LUKS, snapshots', 'luks', { snapshots: true }),
  encrypted('AES, snapshots', 'aes', { snapshots: true }),
  encrypted('AES, qcow', 'aes', { format: 'qcow', clusterBytes: 4 * K }),
]
