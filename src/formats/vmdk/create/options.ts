/** The options of new vmdk images, with the defaults of qemu-img. */
import { UsageError } from '../../../errors.js'
import type { CreateOption, NewImage } from '../../creating.js'

const SUBFORMATS = [
  'monolithicSparse',
  'monolithicFlat',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentFlat',
  'streamOptimized',
  'vmfsSparse',
] as const
export type Subformat = (typeof SUBFORMATS)[number]
const ADAPTERS = ['ide', 'buslogic', 'lsilogic', 'legacyESX'] as const

export const VMDK_OPTIONS: readonly CreateOption[] = [
  { name: 'adapter_type', type: ADAPTERS, default: 'ide', help: 'adapter of the virtual machine' },
  { name: 'compat6', type: 'switch', default: 'off', help: 'hardware version 6' },
  { name: 'hwversion', type: 'text', default: '4', help: 'hardware version' },
  {
    name: 'subformat',
    type: SUBFORMATS,
    default: 'monolithicSparse',
    help: 'kind of files; vmfsSparse is for a disk on a parent (-b)',
  },
  { name: 'toolsversion', type: 'text', default: '2147483647', help: "version of VMware's tools" },
  {
    name: 'zeroed_grain',
    type: 'switch',
    default: 'off',
    help: 'whether a table entry can say that a grain is zeros',
  },
]

/** The most bytes of an extent of a split disk, as in QEMU. */
export const SPLIT_BYTES = 2 ** 31

export interface VmdkShape {
  readonly subformat: Subformat
  readonly adapter: (typeof ADAPTERS)[number]
  readonly hardwareVersion: string
  readonly toolsVersion: string
  readonly hasZeroGrains: boolean
}

export const isFlat = ({ subformat }: Pick<VmdkShape, 'subformat'>): boolean =>
  subformat === 'monolithicFlat' || subformat === 'twoGbMaxExtentFlat'

export const isSplit = ({ subformat }: Pick<VmdkShape, 'subformat'>): boolean =>
  subformat === 'twoGbMaxExtentSparse' || subformat === 'twoGbMaxExtentFlat'

/** Returns what the options mean together. Throws UsageError. */
export function shapeOf({
  options,
  backing,
  sizeBytes,
}: Pick<NewImage, 'options' | 'backing' | 'sizeBytes'>): VmdkShape {
  const text = (name: string, otherwise: string) => {
    const value = (options[name] as string | undefined) ?? otherwise
    // Quotes and line ends would make other lines of the descriptor.
    if (!/^[\w.-]{1,64}$/.test(value)) throw new UsageError(`${name} cannot be "${value}"`)
    return value
  }
  if (options.compat6 === true && options.hwversion !== undefined) {
    throw new UsageError('compat6 and hwversion do not go together')
  }
  const shape: VmdkShape = {
    subformat: text('subformat', 'monolithicSparse') as Subformat,
    adapter: text('adapter_type', 'ide') as VmdkShape['adapter'],
    hardwareVersion: text('hwversion', options.compat6 === true ? '6' : '4'),
    toolsVersion: text('toolsversion', '2147483647'),
    hasZeroGrains: options.zeroed_grain === true,
  }
  const { subformat, hasZeroGrains } = shape
  if (isFlat(shape) && backing) throw new UsageError(`${subformat} cannot have a parent`)
  if ((isFlat(shape) || subformat === 'vmfsSparse') && hasZeroGrains) {
    throw new UsageError(`${subformat} cannot have zeroed_grain=on`)
  }
  if (subformat === 'vmfsSparse' && !backing) {
    throw new UsageError('vmfsSparse is only made for a disk on a parent; name it with -b')
  }
  if (backing && (backing.format ?? 'vmdk') !== 'vmdk') {
    throw new UsageError(`the parent of a vmdk must be a vmdk, too, not ${backing.format}`)
  }
  if (subformat === 'vmfsSparse' && backing && backing.sizeBytes !== sizeBytes) {
    throw new UsageError(`it must be as large as its parent: ${backing.sizeBytes} bytes`)
  }
  return shape
}
