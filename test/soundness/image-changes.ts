/** Images of all kinds that resize, commit and rebase change in place, and what each of them must read as before and after. */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { OptionValues } from '../../src/formats/creating.js'
import { commitImage } from '../../src/image/changing/commit.js'
import { createImage } from '../../src/image/making/create-image.js'
import { openImage } from '../../src/image/open-image.js'
import { rebaseImage } from '../../src/image/changing/rebase.js'
import { resizeImage } from '../../src/image/changing/resize.js'
import { checkImage, describeImage } from '../../src/index.js'
import { noise } from '../fixtures/model.js'
import { run } from '../support/run.js'
import type { ImageChange } from './command-cuts.js'
import { Random } from './steps.js'

const K = 1024
const SIZE = 320 * K + 512
const PASSPHRASE = 'of-the-disk'

export interface ImageKind {
  readonly format: string
  readonly options?: OptionValues
  /** Made by qemu-img, whose headers are longer. */
  readonly byQemu?: string
  /** A line of so many bytes makes the descriptor, or the header, longer than a sector. */
  readonly padding?: number
  readonly hasSnapshot?: boolean
  readonly hasBitmap?: boolean
  /** The size of a raw base. */
  readonly baseBytes?: number
}

const ask = async () => [Buffer.from(PASSPHRASE)]

export const QCOW2_KINDS: Record<string, ImageKind> = {
  qcow2: { format: 'qcow2', options: { cluster_size: 4 * K } },
  'qcow2, clusters of 512': { format: 'qcow2', options: { cluster_size: 512 } },
  'qcow2, subclusters': { format: 'qcow2', options: { extended_l2: true, cluster_size: 16 * K } },
  'qcow2, over a larger base': {
    format: 'qcow2',
    options: { cluster_size: 4 * K },
    baseBytes: 640 * K,
  },
  'qcow2, version 2, over a larger base': {
    format: 'qcow2',
    options: { compat: '0.10', cluster_size: 4 * K },
    baseBytes: 640 * K,
  },
  'qcow2, data in another file': { format: 'qcow2', options: { data_file: 'data' } },
  'qcow2, LUKS': {
    format: 'qcow2',
    options: { 'encrypt.format': 'luks', 'encrypt.iter-time': 10, cluster_size: 16 * K },
  },
  'qcow2, with a bitmap': { format: 'qcow2', options: { cluster_size: 4 * K }, hasBitmap: true },
  'qcow2, with a snapshot': {
    format: 'qcow2',
    hasSnapshot: true,
    options: { cluster_size: 4 * K },
  },
  'qcow2, version 2, with a snapshot': {
    format: 'qcow2',
    options: { compat: '0.10', cluster_size: 4 * K },
    hasSnapshot: true,
  },
  'qcow2, version 2, with a snapshot and a long header': {
    format: 'qcow2',
    options: { compat: '0.10', cluster_size: 4 * K },
    hasSnapshot: true,
    padding: 600,
  },
}

export const VMDK_KINDS: Record<string, ImageKind> = {}
for (const subformat of [
  'monolithicSparse',
  'monolithicFlat',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentFlat',
]) {
  const kind = { format: 'vmdk', options: { subformat } }
  VMDK_KINDS[`vmdk, ${subformat}`] = kind
  // The extents stand in the first sector, at its border, or in the second one.
  for (const padding of /Sparse$/.test(subformat) ? [330, 700] : [200]) {
    VMDK_KINDS[`vmdk, ${subformat}, a descriptor with ${padding} bytes more`] = { ...kind, padding }
  }
}

/** Makes an image, with data here and there. Returns the disk. */
export async function makeImage(
  file: string,
  kind: ImageKind,
  sizeBytes: number,
  seed: number,
  backing?: { name: string; format: string },
): Promise<void> {
  const { format, options = {}, byQemu } = kind
  if (byQemu !== undefined) {
    const on = backing ? ['-b', backing.name, '-F', backing.format] : []
    await run('qemu-img', [
      ...['create', '-q', '-f', format, '-o', byQemu],
      ...[...on, file, String(sizeBytes)],
    ])
  } else {
    await createImage(file, {
      ...{ format, options, sizeBytes, passphrase: PASSPHRASE },
      ...(backing && { backing }),
    })
  }
  if (kind.padding) pad(file, kind)
  const random = new Random(seed)
  const image = await openImage(file, { format, access: 'write', passphrase: PASSPHRASE })
  try {
    for (let i = 0; i < 5; i++) {
      const length = 1 + random.below(20 * K)
      const offset = i === 0 ? sizeBytes - length : random.below(sizeBytes - length + 1)
      if (i === 3) image.disk.zero(offset, length)
      else image.disk.write(noise(length, seed + i), offset)
    }
  } finally {
    image.close()
  }
}

/** Makes the header of a qcow2 image of version 2, or the descriptor of a vmdk, longer. */
function pad(file: string, { format, padding = 0 }: ImageKind): void {
  const bytes = readFileSync(file)
  if (format === 'qcow2') {
    bytes.writeUInt32BE(0x12345678, 72)
    bytes.writeUInt32BE(padding, 76)
    bytes.fill(0x5a, 80, 80 + padding)
    bytes.fill(0, 80 + padding, 88 + padding)
    writeFileSync(file, bytes)
    return
  }
  const embedded = bytes.subarray(0, 4).toString() === 'KDMV'
  const start = embedded ? 512 : 0
  const end = embedded ? bytes.indexOf(0, 512) : bytes.length
  const text = bytes.subarray(start, end).toString('latin1')
  const at = text.indexOf('# Extent description')
  // Half of it stands before the extents.
  const half = `ddb.comment = "${'x'.repeat(padding / 2 - 17)}"\n`
  const longer = Buffer.from(`${text.slice(0, at)}${half}${text.slice(at)}${half}`, 'latin1')
  if (embedded) longer.copy(bytes, 512)
  writeFileSync(file, embedded ? bytes : longer)
}

/** Returns the text of a descriptor without the numbers and names in it, which a change may replace. */
function lines(file: string): string {
  const bytes = readFileSync(file)
  const isEmbedded = bytes.subarray(0, 4).toString() === 'KDMV'
  const at = isEmbedded ? 512 * Number(bytes.readBigUInt64LE(28)) : 0
  const end = bytes.indexOf(0, at)
  const text = bytes.subarray(at, end < 0 ? bytes.length : end).toString('latin1')
  return text
    .replace(/^(RW|ddb.geometry.cylinders = ")( ?[0-9]+)/gm, '$1')
    .replace(/^CID=.*/m, '')
    .trimEnd()
}

export interface Read {
  readonly disk: Buffer
  readonly snapshots: readonly Buffer[]
}

/** Reads the whole image, and checks its tables. Throws unless they are sound, but for leaks. */
export async function readSound(file: string, format: string, ignoreCid = false): Promise<Read> {
  const image = await openImage(file, { format, passphrase: PASSPHRASE, ignoreCid })
  try {
    const readAll = (from: { sizeBytes: number; read(target: Buffer, offset: number): void }) => {
      const all = Buffer.alloc(from.sizeBytes)
      from.read(all, 0)
      return all
    }
    const disk = readAll(image.disk)
    const snapshots = image.snapshots.map(readAll)
    const found = await checkImage(file, { format })
    if (found && found.corruptions + found.checkErrors > 0) {
      throw new Error(`a check finds: ${found.findings.map(({ message }) => message).join('; ')}`)
    }
    return { disk, snapshots }
  } finally {
    image.close()
  }
}

const IMAGE = 'disk'

/** Returns a change of the size of an image of `kind`, made in `folder`. */
export async function resizeChange(
  title: string,
  folder: string,
  kind: ImageKind,
  change: number,
): Promise<ImageChange> {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder)
  const file = join(folder, IMAGE)
  const { format, baseBytes } = kind
  const sizeBytes = SIZE
  if (baseBytes) writeFileSync(join(folder, 'base'), noise(baseBytes, 5))
  const backing = baseBytes ? { name: 'base', format: 'raw' } : undefined
  await makeImage(file, kind, sizeBytes, 3, backing)
  if (kind.hasBitmap) await run('qemu-img', ['bitmap', '--add', '-g', '4096', file, 'b'])
  if (kind.hasSnapshot) await run('qemu-img', ['snapshot', '-c', 'one', file])
  const before = await readSound(file, format)
  const text = format === 'vmdk' ? lines(file) : undefined
  const afterBytes = sizeBytes + change
  return {
    title: `${title}, ${change > 0 ? 'larger' : 'smaller'} by ${Math.abs(change)}`,
    folder,
    run: folder =>
      resizeImage(join(folder, IMAGE), {
        ...{ format, shrinks: true, force: true, upgrades: true, ask },
        sizeOf: () => afterBytes,
      }),
    stateOf: async folder => {
      const { disk, snapshots } = await readSound(join(folder, IMAGE), format)
      const isOther = disk.length !== sizeBytes && disk.length !== afterBytes
      // A file system makes a file longer in one step; the cuts here may leave less of it.
      if (isOther && (format !== 'raw' || change < 0)) {
        throw new Error(`it has ${disk.length} bytes`)
      }
      if (format === 'vmdk' && lines(join(folder, IMAGE)) !== text) {
        throw new Error(`its descriptor is torn: ${lines(join(folder, IMAGE))}`)
      }
      const kept = Math.min(sizeBytes, afterBytes)
      if (!disk.subarray(0, kept).equals(before.disk.subarray(0, kept))) {
        throw new Error('what both sizes have reads otherwise')
      }
      if (!disk.subarray(sizeBytes).equals(Buffer.alloc(Math.max(0, disk.length - sizeBytes)))) {
        throw new Error('the new part does not read as zeros')
      }
      if (!snapshots.every((snapshot, i) => snapshot.equals(before.snapshots[i] as Buffer))) {
        throw new Error('a snapshot has changed')
      }
      return disk.length === afterBytes ? 'after' : 'before'
    },
  }
}

export interface ChainKind {
  /** From the top down. */
  readonly layers: readonly ImageKind[]
  /** The sizes of the layers, where they differ. */
  readonly sizes?: readonly number[]
}

const SMALL = { cluster_size: 4 * K }
const QCOW2: ImageKind = { format: 'qcow2', options: SMALL }
const VMDK: ImageKind = { format: 'vmdk' }
const RAW: ImageKind = { format: 'raw' }
/** Its header is longer than a sector: the names of its features stand in it. */
const BY_QEMU: ImageKind = { format: 'qcow2', byQemu: 'cluster_size=4096' }

export const CHAINS: Record<string, ChainKind> = {
  'qcow2 on qcow2': { layers: [QCOW2, QCOW2] },
  'qcow2 on a smaller raw': { layers: [QCOW2, RAW], sizes: [SIZE, SIZE - 100 * K] },
  'qcow2 on a larger qcow2': { layers: [QCOW2, QCOW2], sizes: [SIZE, SIZE + 100 * K] },
  'qcow2 of QEMU on three layers': { layers: [BY_QEMU, BY_QEMU, QCOW2, RAW] },
  'qcow2 with subclusters on qcow2': {
    layers: [
      { format: 'qcow2', options: { extended_l2: true, cluster_size: 16 * K } },
      { format: 'qcow2', options: { cluster_size: 512 } },
    ],
  },
  'qcow2 of version 2 on vmdk': {
    layers: [{ format: 'qcow2', options: { ...SMALL, compat: '0.10' } }, VMDK],
  },
  'qcow2 of version 2 on nothing': {
    layers: [{ format: 'qcow2', options: { ...SMALL, compat: '0.10' } }],
  },
  'vmdk on nothing': { layers: [VMDK] },
  'qcow2 with large clusters on raw': {
    layers: [{ format: 'qcow2', options: { cluster_size: 2 ** 21 } }, RAW],
    sizes: [7 * 2 ** 20, 5 * 2 ** 20],
  },
  'vmdk on vmdk': { layers: [VMDK, VMDK, VMDK] },
  'vmdk with a long descriptor on a flat one': {
    layers: [
      { ...VMDK, padding: 330 },
      { format: 'vmdk', options: { subformat: 'monolithicFlat' } },
    ],
  },
  'split vmdk on vmdk': {
    layers: [
      { format: 'vmdk', options: { subformat: 'twoGbMaxExtentSparse' }, padding: 330 },
      VMDK,
    ],
  },
}

const layerName = (index: number): string => (index === 0 ? IMAGE : `layer${index}`)

/** Makes the chain in `folder`, which is emptied. */
export async function makeChain(folder: string, { layers, sizes }: ChainKind): Promise<void> {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder)
  for (let i = layers.length - 1; i >= 0; i--) {
    const below = layers[i + 1]
    const backing = below && { name: layerName(i + 1), format: below.format }
    const size = sizes?.[i] ?? SIZE
    await makeImage(join(folder, layerName(i)), layers[i] as ImageKind, size, 11 * i + 1, backing)
  }
}

/**
 * Returns the merging of the image into the layer with the index `base`. What the image reads as must not change, at no
 * moment. After it, the base reads the same.
 */
export async function commitChange(
  title: string,
  folder: string,
  kind: ChainKind,
  base: number,
  mismatches: string[] = [],
): Promise<ImageChange> {
  await makeChain(folder, kind)
  const [{ format }] = kind.layers as [ImageKind]
  const below = kind.layers[base] as ImageKind
  const { disk } = await readSound(join(folder, IMAGE), format)
  return {
    title: `${title}, committed to layer ${base}`,
    folder,
    run: folder =>
      commitImage(join(folder, IMAGE), {
        ...{ format, ask, ignoreCid: true },
        base: base === 1 ? undefined : join(folder, layerName(base)),
      }),
    stateOf: async folder => {
      const image = join(folder, IMAGE)
      // Between two writes, the base and what stands on it differ in the content ID.
      const found = await readSound(image, format).catch(error => {
        if (!/parent|CID/i.test(String(error))) throw error
        mismatches.push(folder)
        return readSound(image, format, true)
      })
      if (!found.disk.equals(disk)) throw new Error('the image reads otherwise')
      const lower = await readSound(join(folder, layerName(base)), below.format)
      const isSame = lower.disk.subarray(0, disk.length).equals(disk)
      return isSame ? 'after' : 'before'
    },
  }
}

/** Returns a change of what the image stands on: `other`, or nothing. */
export async function rebaseChange(
  title: string,
  folder: string,
  kind: ChainKind,
  { other, name = 'other', isUnsafe = false }: RebaseKind,
): Promise<ImageChange> {
  await makeChain(folder, kind)
  const [{ format }] = kind.layers as [ImageKind]
  const size = kind.sizes?.[0] ?? SIZE
  if (other) await makeImage(join(folder, 'other'), other, size, 99)
  if (isUnsafe) {
    // The new one has the bytes of the old one.
    const old = await readSound(join(folder, layerName(1)), (kind.layers[1] as ImageKind).format)
    const image = await openImage(join(folder, 'other'), { format: other?.format, access: 'write' })
    image.disk.write(Buffer.concat([old.disk], size), 0)
    image.close()
  }
  const { disk } = await readSound(join(folder, IMAGE), format)
  return {
    title: `${title}, rebased ${isUnsafe ? 'unsafely ' : ''}to ${other?.format ?? 'nothing'}`,
    folder,
    run: folder =>
      rebaseImage(join(folder, IMAGE), {
        ...{ format, isUnsafe, ask },
        backing: other && name,
        backingFormat: other?.format,
      }),
    stateOf: async folder => {
      const image = join(folder, IMAGE)
      const found = await readSound(image, format)
      if (!found.disk.equals(disk)) throw new Error('the image reads otherwise')
      return (await backingOf(image, format)) === (other && name) ? 'after' : 'before'
    },
  }
}

export interface RebaseKind {
  readonly other?: ImageKind
  /** How the image names it. */
  readonly name?: string
  readonly isUnsafe?: boolean
}

async function backingOf(image: string, format: string): Promise<string | undefined> {
  const [info] = describeImage(image, { format })
  return info?.['backing-filename']
}
