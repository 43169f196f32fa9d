/** The options of new qcow2 images, with the defaults and the limits of qemu-img. */
import { UsageError } from '../../../errors.js'
import { LUKS_OPTIONS, type LuksChoice, luksChoice } from '../../../crypto/luks1-options.js'
import { type CreateOption, type NewImage, NOCOW, type OptionValues } from '../../creating.js'
import { MAX_CLUSTER_BITS, MAX_L1_BYTES, MIN_CLUSTER_BITS } from '../../limits.js'

export const PREALLOCATIONS = ['off', 'metadata', 'falloc', 'full'] as const
export type Preallocation = (typeof PREALLOCATIONS)[number]

export const QCOW2_OPTIONS: readonly CreateOption[] = [
  { name: 'cluster_size', type: 'size', default: '64K', help: 'size of a cluster, 512 to 2M' },
  {
    name: 'compat',
    type: ['0.10', '1.1', 'v2', 'v3'],
    default: '1.1',
    help: 'version: 0.10 is v2, 1.1 is v3',
  },
  {
    name: 'compression_type',
    type: ['zlib', 'zstd'],
    default: 'zlib',
    help: 'how clusters are compressed',
  },
  { name: 'data_file', type: 'text', help: 'another file that takes the data, beside the image' },
  {
    name: 'data_file_raw',
    type: 'switch',
    default: 'off',
    help: 'whether that file alone is a raw image of the disk',
  },
  { name: 'encrypt.format', type: ['luks'], help: 'encrypts the data' },
  ...LUKS_OPTIONS.map(option => ({ ...option, name: `encrypt.${option.name}` })),
  {
    name: 'extended_l2',
    type: 'switch',
    default: 'off',
    help: 'whether a cluster has 32 subclusters',
  },
  {
    name: 'lazy_refcounts',
    type: 'switch',
    default: 'off',
    help: 'whether writers may put off counting references',
  },
  NOCOW,
  {
    name: 'preallocation',
    type: PREALLOCATIONS,
    default: 'off',
    help: 'what of the data is allocated at once',
  },
  {
    name: 'refcount_bits',
    type: 'count',
    default: '16',
    help: 'width of a reference count, 1 to 64',
  },
]

export interface Qcow2Shape {
  readonly version: 2 | 3
  readonly clusterBits: number
  readonly refcountOrder: number
  readonly compression: 'zlib' | 'zstd'
  readonly isExtended: boolean
  readonly hasLazyRefcounts: boolean
  readonly preallocation: Preallocation
  readonly dataFile: { readonly name: string; readonly isRaw: boolean } | undefined
  readonly luks: LuksChoice | undefined
}

/** Returns what the options mean together. Throws UsageError. */
export function shapeOf({ options, backing }: Pick<NewImage, 'options' | 'backing'>): Qcow2Shape {
  const isOn = (name: string) => options[name] === true
  const version = options.compat === '0.10' || options.compat === 'v2' ? 2 : 3
  const isExtended = isOn('extended_l2')
  const dataFile = dataFileOf(options)
  const asked = (options.preallocation as Preallocation | undefined) ?? 'off'
  const shape: Qcow2Shape = {
    version,
    clusterBits: clusterBitsOf(options, isExtended),
    refcountOrder: refcountOrderOf(options),
    compression: options.compression_type === 'zstd' ? 'zstd' : 'zlib',
    isExtended,
    hasLazyRefcounts: isOn('lazy_refcounts'),
    // The tables of a raw data file must map all of it, so that both ways of reading it agree.
    preallocation: dataFile?.isRaw && asked === 'off' ? 'metadata' : asked,
    dataFile,
    luks: luksOf(options),
  }
  requireVersion(shape)
  if (backing && shape.preallocation !== 'off' && !isExtended) {
    if (dataFile?.isRaw) refuse('data_file_raw does not go together with a backing file')
    refuse('preallocation with a backing file needs extended_l2=on')
  }
  if (backing && dataFile?.isRaw) refuse('data_file_raw does not go together with a backing file')
  return shape
}

/** Returns how many entries the L1 table needs. Throws UsageError if the clusters are too small for the disk. */
export function l1EntriesOf({ clusterBits, isExtended }: Qcow2Shape, sizeBytes: number): number {
  const cluster = 2 ** clusterBits
  const entries = Math.ceil(sizeBytes / ((cluster / (isExtended ? 16 : 8)) * cluster))
  if (entries * 8 <= MAX_L1_BYTES) return entries
  return refuse(
    `a disk of ${sizeBytes} bytes needs larger clusters than ${cluster} bytes (-o cluster_size)`,
  )
}

function clusterBitsOf(options: OptionValues, isExtended: boolean): number {
  const bytes = (options.cluster_size as number | undefined) ?? 2 ** 16
  const bits = Math.log2(bytes)
  if (!Number.isInteger(bits) || bits < MIN_CLUSTER_BITS || bits > MAX_CLUSTER_BITS) {
    refuse(`cluster_size is a power of two from 512 to 2M, not ${bytes}`)
  }
  if (isExtended && bits < 14) refuse('extended_l2 needs a cluster_size of 16K at least')
  return bits
}

function refcountOrderOf(options: OptionValues): number {
  const bits = (options.refcount_bits as number | undefined) ?? 16
  const order = Math.log2(bits)
  if (Number.isInteger(order) && order >= 0 && order <= 6) return order
  return refuse(`refcount_bits is a power of two from 1 to 64, not ${bits}`)
}

function dataFileOf(options: OptionValues): Qcow2Shape['dataFile'] {
  const name = options.data_file as string | undefined
  const isRaw = options.data_file_raw === true
  if (name === undefined || name === '') {
    return isRaw ? refuse('data_file_raw needs data_file') : undefined
  }
  return { name, isRaw }
}

function luksOf(options: OptionValues): LuksChoice | undefined {
  const entries = Object.entries(options).filter(([name]) => name.startsWith('encrypt.'))
  const { format, ...rest } = Object.fromEntries(
    entries.map(([name, value]) => [name.slice('encrypt.'.length), value]),
  )
  if (format !== undefined) return luksChoice(rest)
  const [first] = entries
  return first ? refuse(`${first[0]} needs encrypt.format=luks`) : undefined
}

function requireVersion(shape: Qcow2Shape): void {
  if (shape.version === 3) return
  const what =
    (shape.isExtended && 'extended_l2') ||
    (shape.hasLazyRefcounts && 'lazy_refcounts') ||
    (shape.dataFile && 'data_file') ||
    (shape.refcountOrder !== 4 && 'refcount_bits other than 16') ||
    (shape.compression !== 'zlib' && 'compression_type=zstd')
  if (what) refuse(`${what} needs compat=1.1`)
}

function refuse(what: string): never {
  throw new UsageError(what)
}
