/** New images that are filled in all ways that a builder has: QEMU finds them clean, and both read what was put in. */
import { writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import type { NewImageRequest } from '../../src/image/making/new-image.js'
import { openImage } from '../../src/image/open-image.js'
import { buildRandomly } from '../support/building.js'
import { needs, run, tempFolder } from '../support/run.js'
import { noise } from '../fixtures/model.js'
import { qemuImg } from './qemu.js'

const K = 1024
const M = K * K
const SIZE = 5 * M + 7 * 512
const PASSPHRASE = 'of-the-new'

interface Kind extends Omit<NewImageRequest, 'sizeBytes'> {
  readonly base?: 'raw' | 'qcow2' | 'vmdk'
  /** The base's disk, if it is smaller than the image's. */
  readonly baseBytes?: number
  /** QEMU has nothing to check. */
  readonly isUnchecked?: boolean
  /** QEMU does not know the format. */
  readonly isForeign?: boolean
}

const qcow2 = (options: NonNullable<Kind['options']> = {}, more: Partial<Kind> = {}): Kind => ({
  format: 'qcow2',
  options,
  ...more,
})
const vmdk = (subformat: string, more: Partial<Kind> = {}): Kind => ({
  format: 'vmdk',
  ...more,
  options: { subformat, ...more.options },
})
const LUKS = { 'encrypt.format': 'luks', 'encrypt.iter-time': 10 }

const KINDS: Record<string, Kind> = {
  raw: { format: 'raw', isUnchecked: true },
  'raw, all of it written': {
    format: 'raw',
    options: { preallocation: 'full' },
    isUnchecked: true,
  },
  qcow2: qcow2(),
  'qcow2, clusters of 512 bytes': qcow2({ cluster_size: 512 }),
  'qcow2, clusters of 512 bytes, version 2': qcow2({ cluster_size: 512, compat: '0.10' }),
  'qcow2, counts of 1 bit': qcow2({ cluster_size: 512, refcount_bits: 1 }),
  'qcow2, counts of 4 bits': qcow2({ cluster_size: 512, refcount_bits: 4 }),
  'qcow2, counts of 64 bits': qcow2({ cluster_size: 512, refcount_bits: 64 }),
  'qcow2, clusters of 2 MiB': qcow2({ cluster_size: 2 * M }),
  'qcow2, zstd': qcow2({ compression_type: 'zstd', cluster_size: 4 * K }),
  'qcow2, subclusters': qcow2({ extended_l2: true, cluster_size: 16 * K }),
  'qcow2, over qcow2': qcow2({}, { base: 'qcow2' }),
  'qcow2, over a smaller raw base': qcow2(
    { cluster_size: 4 * K },
    { base: 'raw', baseBytes: 3 * M + 512 },
  ),
  'qcow2, version 2, over raw': qcow2({ compat: '0.10', cluster_size: 4 * K }, { base: 'raw' }),
  'qcow2, subclusters, over raw': qcow2({ extended_l2: true }, { base: 'raw' }),
  'qcow2, subclusters, allocated, over raw': qcow2(
    { extended_l2: true, preallocation: 'metadata' },
    { base: 'raw' },
  ),
  'qcow2, allocated': qcow2({ preallocation: 'metadata' }),
  'qcow2, all of it written': qcow2({ preallocation: 'full', cluster_size: 4 * K }),
  'qcow2, data in another file': qcow2({ data_file: 'data' }),
  'qcow2, raw data in another file': qcow2({ data_file: 'data', data_file_raw: true }),
  'qcow2, data in another file, over raw': qcow2({ data_file: 'data' }, { base: 'raw' }),
  'qcow2, LUKS': qcow2(LUKS),
  'qcow2, LUKS, allocated': qcow2({ ...LUKS, preallocation: 'metadata' }),
  'qcow2, LUKS, version 2, over raw': qcow2(
    { ...LUKS, compat: '0.10', cluster_size: 4 * K },
    { base: 'raw' },
  ),
  'qcow2, LUKS, cbc, essiv, data in another file': qcow2({
    ...LUKS,
    'encrypt.cipher-mode': 'cbc',
    'encrypt.ivgen-alg': 'essiv',
    'encrypt.hash-alg': 'sha1',
    data_file: 'data',
  }),
  'vmdk, monolithicSparse': vmdk('monolithicSparse'),
  'vmdk, monolithicSparse, zeroed grains': vmdk('monolithicSparse', {
    options: { zeroed_grain: true },
  }),
  'vmdk, monolithicSparse, over vmdk': vmdk('monolithicSparse', { base: 'vmdk' }),
  'vmdk, monolithicSparse, zeroed grains, over vmdk': vmdk('monolithicSparse', {
    base: 'vmdk',
    options: { zeroed_grain: true },
  }),
  'vmdk, monolithicFlat': vmdk('monolithicFlat', { isUnchecked: true }),
  'vmdk, twoGbMaxExtentSparse': vmdk('twoGbMaxExtentSparse'),
  'vmdk, twoGbMaxExtentFlat': vmdk('twoGbMaxExtentFlat', { isUnchecked: true }),
  'vmdk, streamOptimized': vmdk('streamOptimized'),
  'vmdk, streamOptimized, over vmdk': vmdk('streamOptimized', { base: 'vmdk' }),
  'vmdk, vmfsSparse': vmdk('vmfsSparse', { base: 'vmdk', isUnchecked: true }),
  qcow: { format: 'qcow', isUnchecked: true },
  'qcow, over raw': { format: 'qcow', base: 'raw', isUnchecked: true },
  'qcow, over a smaller raw base': {
    format: 'qcow',
    base: 'raw',
    baseBytes: 3 * M + 512,
    isUnchecked: true,
  },
  cow: { format: 'cow', isForeign: true },
  'cow, over raw': { format: 'cow', base: 'raw', isForeign: true },
}

for (const [name, kind] of Object.entries(KINDS)) {
  t.test(name, { ...needs('qemu-img') }, async t => {
    for (const seed of [1, 2]) {
      await roundTrip(t, join(tempFolder(t), `disk.${kind.format}`), kind, seed)
    }
  })
}

async function roundTrip(t: Test, file: string, kind: Kind, seed: number): Promise<void> {
  const { base, baseBytes = SIZE, isUnchecked, isForeign, ...request } = kind
  const disk = Buffer.alloc(SIZE)
  const backing = base && (await baseOf(dirname(file), base, baseBytes, disk))
  const passphrase = request.options?.['encrypt.format'] && Buffer.from(PASSPHRASE)
  await buildRandomly(
    file,
    { ...request, backing, passphrase: passphrase || undefined },
    disk,
    seed,
  )
  const opened = await openImage(file, { format: request.format, passphrase: PASSPHRASE })
  t.teardown(() => opened.close())
  const read = Buffer.alloc(SIZE)
  t.equal(opened.disk.sizeBytes, SIZE)
  opened.disk.read(read, 0)
  t.equal(firstDifference(read, disk), -1, `${seed}: vimgfs reads what was put in`)
  t.same(
    opened.warnings.filter(text => !text.includes('is not stated')),
    [],
    'without warnings',
  )
  if (isForeign) return
  const options = sourceOf(file, kind)
  writeFileSync(`${file}.model`, disk)
  const model = `driver=raw,file.filename=${file}.model`
  await qemu(file, 'compare', '-q', '--image-opts', options, model)
  if (!isUnchecked) await qemu(file, 'check', '-q', '--image-opts', options)
}

const qemu = (file: string, command: string, ...args: string[]) =>
  run('qemu-img', [command, '--object', `secret,id=key,data=${PASSPHRASE}`, ...args], {
    cwd: dirname(file),
  })

async function baseOf(folder: string, format: string, bytes: number, disk: Buffer) {
  const raw = join(folder, 'base.raw')
  const file = join(folder, `base.${format}`)
  const content = noise(bytes, 3)
  content.fill(0, M, 2 * M)
  writeFileSync(raw, content)
  if (format !== 'raw') await qemuImg('convert', '-q', '-f', 'raw', '-O', format, raw, file)
  content.copy(disk)
  const { data } =
    JSON.parse(await qemuImg('info', '-f', format, '--output=json', file))['format-specific'] ?? {}
  return {
    name: `base.${format}`,
    format,
    sizeBytes: Math.ceil(bytes / 512) * 512,
    contentId: data?.cid,
  }
}

function sourceOf(file: string, { format, options = {} }: Kind): string {
  const key = options['encrypt.format'] ? ',encrypt.key-secret=key' : ''
  return `driver=${format},file.filename=${file}${key}`
}

function firstDifference(a: Buffer, b: Buffer): number {
  if (a.equals(b)) return -1
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return i
  return a.length
}
