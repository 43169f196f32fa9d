/**
 * The cases and their targets. A read or write case is one fio job on one image. `targets` are ratios of medians: vimgfs to
 * the best setting of qemu-storage-daemon (qsd), to the floor and to vmdkmount.
 */
import {
  GiB,
  MiB,
  TiB,
  compressed,
  empty,
  plain,
  snapshotted,
  tablesEverywhere,
  withSnapshots,
} from './images.mjs'

/** The images of the read cases, in the order in which they are made, measured and removed. */
export const readImages = {
  plain: {
    title: 'written in order, incompressible',
    make: (place, { size }) => plain(place, size),
  },
  compressed: {
    title: 'compressed with zlib, about 2:1',
    make: (place, { size }) => compressed(place, size / 4),
    without: ['fuse-native'], // it answers from memory and would only repeat itself
  },
  empty: {
    title: 'never written',
    make: (place, { size }) => empty(place, size),
    without: ['fuse-native'],
  },
}

const sequential = { pattern: 'read', blockBytes: MiB, unit: 'MB/s' }
const random = { pattern: 'randread', blockBytes: 4096, direct: true, unit: 'k/s' }

/** `direct: false` reads the file once from an empty page cache, `direct: true` for some seconds. */
export const readCases = [
  {
    id: 'seq-buffered',
    title: '1 MiB sequential, buffered',
    image: 'plain',
    ...sequential,
    direct: false,
    targets: { qsd: 2, floor: 0.9 },
  },
  {
    id: 'seq-direct',
    title: '1 MiB sequential, O_DIRECT',
    image: 'plain',
    ...sequential,
    direct: true,
    targets: { qsd: 2, floor: 0.9 },
  },
  {
    id: 'rand-1',
    title: '4 KiB random O_DIRECT, 1 job',
    image: 'plain',
    ...random,
    jobs: 1,
    targets: { qsd: 2.5, floor: 0.85 },
  },
  {
    id: 'rand-8',
    title: '4 KiB random O_DIRECT, 8 jobs',
    image: 'plain',
    ...random,
    jobs: 8,
    targets: { qsd: 2, floor: 0.8 },
  },
  {
    id: 'zlib-buffered',
    title: 'zlib-compressed, sequential, buffered',
    image: 'compressed',
    ...sequential,
    direct: false,
    targets: { qsd: 2.5 },
  },
  {
    id: 'zlib-direct',
    title: 'zlib-compressed, sequential, O_DIRECT',
    image: 'compressed',
    ...sequential,
    direct: true,
    targets: { qsd: 2.5 },
  },
  {
    id: 'empty-buffered',
    title: 'never written, sequential, buffered',
    image: 'empty',
    ...sequential,
    direct: false,
    targets: { qsd: 2, floor: 0.9 },
  },
  {
    id: 'empty-direct',
    title: 'never written, sequential, O_DIRECT',
    image: 'empty',
    ...sequential,
    direct: true,
    targets: { qsd: 2, floor: 0.9 },
  },
]

/** The disks of the write cases, before each round. They are half as large as those of the read cases. */
export const writeImages = {
  empty: { title: 'never written', make: (place, { size }) => empty(place, size / 2) },
  plain: {
    title: 'written in order, incompressible',
    make: (place, { size }) => plain(place, size / 2),
  },
  snapshot: {
    title: 'written in order, then a snapshot',
    make: (place, { size }) => snapshotted(place, size / 2),
    without: ['floor'], // it has no snapshots and would only overwrite
  },
}

const sequentialWrites = { pattern: 'write', blockBytes: MiB, unit: 'MB/s' }
const randomWrites = { pattern: 'randwrite', blockBytes: 4096, direct: true, jobs: 1, unit: 'k/s' }

/**
 * `oncePerCluster`: each write goes to a cluster that was not written before. `fdatasync`: one after each write. `passes`:
 * how often to go over the disk, if one pass would be too short. Each pass, and every other case, ends with an fsync, which
 * counts.
 */
export const writeCases = [
  {
    id: 'write-new-buffered',
    title: '1 MiB sequential that allocates, buffered',
    image: 'empty',
    ...sequentialWrites,
    direct: false,
    targets: { qsd: 1.5 },
  },
  {
    id: 'write-new-direct',
    title: '1 MiB sequential that allocates, O_DIRECT',
    image: 'empty',
    ...sequentialWrites,
    direct: true,
    targets: { qsd: 1.5 },
  },
  {
    id: 'write-new-rand',
    title: '4 KiB random that allocates, O_DIRECT',
    image: 'empty',
    ...randomWrites,
    oncePerCluster: true,
    targets: { qsd: 1.5 },
  },
  {
    id: 'write-over-buffered',
    title: '1 MiB sequential overwrite, buffered',
    image: 'plain',
    ...sequentialWrites,
    passes: 4,
    direct: false,
    targets: { qsd: 1.5 },
  },
  {
    id: 'write-new-4k-buffered',
    title: '4 KiB sequential that allocates, buffered',
    image: 'empty',
    ...sequentialWrites,
    blockBytes: 4096,
    direct: false,
    targets: { qsd: 1 },
  },
  {
    id: 'write-over-4k-rand-buffered',
    title: '4 KiB random overwrite, buffered',
    image: 'plain',
    ...randomWrites,
    direct: false,
    targets: { qsd: 1 },
  },
  {
    id: 'write-over-direct',
    title: '1 MiB sequential overwrite, O_DIRECT',
    image: 'plain',
    ...sequentialWrites,
    passes: 4,
    direct: true,
    targets: { qsd: 1.5 },
  },
  {
    id: 'write-over-rand-1',
    title: '4 KiB random overwrite, O_DIRECT, 1 job',
    image: 'plain',
    ...randomWrites,
    targets: { qsd: 2 },
  },
  {
    id: 'write-over-rand-8',
    title: '4 KiB random overwrite, O_DIRECT, 8 jobs',
    image: 'plain',
    ...randomWrites,
    jobs: 8,
    targets: { qsd: 1.8 },
  },
  {
    id: 'write-fdatasync',
    title: '4 KiB random overwrite, buffered, fdatasync after each',
    image: 'plain',
    ...randomWrites,
    direct: false,
    fdatasync: true,
    targets: { qsd: 1 },
  },
  {
    id: 'write-snapshot',
    title: '4 KiB random after a snapshot (copy-on-write), O_DIRECT',
    image: 'snapshot',
    ...randomWrites,
    oncePerCluster: true,
    targets: { qsd: 1.5 },
  },
]

/** Makes a file system and copies a tree of files in. The figure is the tree's bytes divided by the whole time. */
export const treeCases = [
  {
    id: 'tree',
    title: 'mkfs.ext4, mount, copy a tree in, umount, sync',
    image: 'empty',
    unit: 'MB/s',
    targets: { qsd: 1 },
  },
]

/** Compares vimgfs with itself: reading from a read-write mount and from a read-only one. */
export const readWritableCases = readCases
  .filter(({ image }) => image === 'plain')
  .map(readCase => ({ ...readCase, id: `rw-${readCase.id}`, targets: { readOnly: 0.9 } }))

/** The same for reading what has not been written, from a mount of scratch copies. */
export const readScratchCases = readCases
  .filter(({ image }) => image === 'plain')
  .map(readCase => ({
    ...readCase,
    id: `scratch-${readCase.id}`,
    title: `${readCase.title}, scratch`,
    writable: 'scratch',
    targets: { readOnly: 0.97 },
  }))

/** Writing to a scratch copy of an image full of data, and to a new image of the same size. */
export const writeScratchCases = [
  ...writeCases.filter(({ image }) => image === 'empty'),
  { id: 'write-new-4k', title: '4 KiB random, O_DIRECT', ...randomWrites },
].map(writeCase => ({
  ...writeCase,
  id: writeCase.id.replace('write-new', 'scratch-write'),
  title: `${writeCase.title}, scratch`,
  image: 'plain',
  targets: { fresh: 1 },
}))

const SNAPSHOTS = 1000

/** Measures the time from the command's start to the first answer. `than`: the target is so many times that case. */
export const mountCases = [
  {
    id: 'mount-1g',
    title: '1 GiB, tables everywhere',
    make: place => tablesEverywhere(place, GiB, 'small'),
    targets: { ms: 400 },
  },
  {
    id: 'mount-16t',
    title: '16 TiB, tables everywhere',
    make: place => tablesEverywhere(place, 16 * TiB, 'large'),
    targets: { ms: 400, than: 'mount-1g', factor: 1.2 },
  },
  {
    id: 'mount-snap-0',
    title: '1 GiB, no snapshots',
    make: place => withSnapshots(place, 0),
    targets: { ms: 400 },
  },
  {
    id: 'mount-snap-1000',
    title: `1 GiB, ${SNAPSHOTS} snapshots`,
    make: place => withSnapshots(place, SNAPSHOTS),
    targets: { ms: 400, than: 'mount-snap-0', factor: 1.5 },
  },
]

/** Measures a server's memory while it is read at random. */
export const memoryCases = [
  {
    id: 'memory-16t',
    title: '16 TiB, tables everywhere, 4 KiB random, 8 jobs',
    make: place => tablesEverywhere(place, 16 * TiB, 'large'),
    pattern: 'randread',
    blockBytes: 4096,
    direct: true,
    jobs: 8,
    targets: { peakMiB: 200 },
  },
]
