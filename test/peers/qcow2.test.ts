/** Every feature of qcow2 in an image that QEMU made and wrote to. */
import { join } from 'node:path'
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { agreesWithQemu, qemuImg, qemuIo, randomWrites, type WriteKind } from './qemu.js'

const K = 1024

interface Case {
  title: string
  options: string
  sizeBytes?: number
  cluster?: number
  kinds?: readonly WriteKind[]
  count?: number
  isFiner?: boolean
}

const COMPRESSED: readonly WriteKind[] = ['compressed', 'compressed', 'partial', 'zero']
const sizes = Array.from({ length: 13 }, (_, i) => 2 ** (9 + i))

const cases: Case[] = [
  ...sizes.map(cluster => ({
    title: `clusters of ${cluster} bytes`,
    options: `cluster_size=${cluster}`,
    cluster,
  })),
  ...[512, 4 * K, 64 * K, 2 * K * K].map(cluster => ({
    title: `version 2 with clusters of ${cluster} bytes`,
    options: `compat=0.10,cluster_size=${cluster}`,
    cluster,
  })),
  ...[1, 2, 4, 8, 16, 32, 64].map(bits => ({
    title: `reference counts of ${bits} bits`,
    options: `refcount_bits=${bits},cluster_size=4096`,
    cluster: 4 * K,
  })),
  { title: 'lazy reference counts', options: 'lazy_refcounts=on' },
  ...[512, 4 * K, 64 * K, 2 * K * K].flatMap(cluster =>
    ['zlib', 'zstd'].map(type => ({
      title: `${type} in clusters of ${cluster} bytes`,
      options: `compression_type=${type},cluster_size=${cluster}`,
      cluster,
      kinds: COMPRESSED,
    })),
  ),
  { title: 'zlib in version 2', options: 'compat=0.10', kinds: COMPRESSED },
  ...[16 * K, 64 * K, 2 * K * K].map(cluster => ({
    title: `subclusters of ${cluster / 32} bytes`,
    options: `extended_l2=on,cluster_size=${cluster}`,
    cluster,
    count: 60,
  })),
  {
    title: 'subclusters and zstd',
    options: 'extended_l2=on,compression_type=zstd,cluster_size=32768',
    cluster: 32 * K,
    kinds: ['compressed', 'partial', 'discard', 'zero-unmap'],
    count: 60,
  },
  { title: 'an external data file', options: 'data_file=disk.data' },
  {
    title: 'a raw external data file',
    options: 'data_file=disk.data,data_file_raw=on',
    isFiner: true,
  },
  {
    title: 'an external data file and subclusters',
    options: 'data_file=disk.data,extended_l2=on,cluster_size=16384',
    cluster: 16 * K,
    count: 60,
  },
  ...['off', 'metadata', 'falloc', 'full'].map(preallocation => ({
    title: `preallocation=${preallocation}`,
    options: `preallocation=${preallocation}`,
    kinds: ['partial'] as const,
    count: 5,
  })),
  {
    title: 'preallocation=metadata with subclusters',
    options: 'preallocation=metadata,extended_l2=on',
    count: 5,
  },
  ...[512, 1000, 64 * K + 512, 1_000_000, 5 * K * K + 1].map(sizeBytes => ({
    title: `a disk of ${sizeBytes} bytes`,
    options: 'cluster_size=4096',
    sizeBytes,
    cluster: sizeBytes < 4 * K ? 512 : 4 * K,
  })),
  { title: 'nothing written', options: 'cluster_size=65536', count: 0 },
]
for (const [index, { title, options, cluster = 64 * K, ...rest }] of cases.entries()) {
  t.test(title, needs('qemu-img', 'qemu-io'), async t => {
    const folder = tempFolder(t)
    const image = join(folder, 'disk.qcow2')
    // Some of it lies after the part of the first L2 table, where the disk is large enough.
    const { sizeBytes = Math.min(64 * cluster + 3 * 512, 24 * K * K), kinds, count, isFiner } = rest
    const created = options.replace('disk.data', join(folder, 'disk.data'))
    await qemuImg('create', '-q', '-f', 'qcow2', '-o', created, image, String(sizeBytes))
    const usable = Math.floor(sizeBytes / 512) * 512
    const writes = randomWrites(index, usable, {
      cluster,
      ...(kinds && { kinds }),
      ...(count !== undefined && { count }),
    })
    if (writes.length > 0) await qemuIo(image, writes)
    await agreesWithQemu(t, image, isFiner)
  })
}
