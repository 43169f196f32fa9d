/** Writes descriptors (VMware, Virtual Disk Format 5.0, "The Descriptor File"). */
import { randomInt } from 'node:crypto'
import { UsageError } from '../../../errors.js'
import type { BackingTarget } from '../../creating.js'
import { NO_PARENT_CID } from '../descriptor.js'
import { SECTOR_BYTES } from '../../../sector.js'
import type { VmdkShape } from './options.js'

export interface NewExtentLine {
  readonly sectors: number
  readonly type: 'FLAT' | 'SPARSE' | 'VMFSSPARSE'
  readonly fileName: string
}

const SECTORS_PER_TRACK = 63
/** VMware's numbers: an IDE disk has 16 heads, all others 255. */
const HEADS = { ide: 16, others: 255 }

/** Returns a random content ID: neither 0 nor one of the two highest, which have meanings of their own. */
export const newContentId = (): number => randomInt(1, NO_PARENT_CID - 1)

/** Returns the text of a new disk's descriptor. Throws UsageError for names that it cannot hold. */
export function descriptorText(
  shape: VmdkShape,
  sizeBytes: number,
  backing: BackingTarget | undefined,
  extents: readonly NewExtentLine[],
  contentId: number,
): string {
  const heads = shape.adapter === 'ide' ? HEADS.ide : HEADS.others
  const cylinders = Math.floor(sizeBytes / (SECTORS_PER_TRACK * heads * SECTOR_BYTES))
  const hex = (cid: number) => cid.toString(16).padStart(8, '0')
  const parent = backing?.contentId ?? NO_PARENT_CID
  return [
    '# Disk DescriptorFile',
    'version=1',
    `CID=${hex(contentId)}`,
    `parentCID=${hex(parent)}`,
    `createType="${shape.subformat}"`,
    backing ? `parentFileNameHint="${named(backing.name)}"` : '',
    '# Extent description',
    ...extents.map(lineOf),
    '',
    '# The Disk Data Base',
    '#DDB',
    '',
    `ddb.virtualHWVersion = "${shape.hardwareVersion}"`,
    `ddb.geometry.cylinders = "${cylinders}"`,
    `ddb.geometry.heads = "${heads}"`,
    `ddb.geometry.sectors = "${SECTORS_PER_TRACK}"`,
    `ddb.adapterType = "${shape.adapter}"`,
    `ddb.toolsVersion = "${shape.toolsVersion}"`,
    '',
  ].join('\n')
}

const lineOf = ({ sectors, type, fileName }: NewExtentLine): string =>
  `RW ${sectors} ${type} "${named(fileName)}"${type === 'FLAT' ? ' 0' : ''}`

/** A descriptor has no way to write a quote or a line end within a name. */
function named(name: string): string {
  if (!/["\r\n]/.test(name)) return name
  throw new UsageError(`a vmdk cannot name a file with a quote or a line end: ${name}`)
}
