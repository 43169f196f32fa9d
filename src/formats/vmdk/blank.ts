/** Makes empty extents, for disks that are thrown away. */
import type { ExtentLayout, VmdkSpec } from './open.js'

/** Where the directories begin. From there on a blank file is all zeros. */
const DIRECTORY_AT = 64 * 1024
const DIRECTORY_BYTES = 2 ** 20
/** The number of grains that a grain table of COWD maps; tables of other kinds map fewer. */
const MOST_TABLE_ENTRIES = 4096
const TABLE_ENTRIES = 512

/**
 * Returns a disk of `diskBytes` bytes in one extent, made like the first writable extent of `model`. It lies in `file`, which
 * must be all zeros: 2 MiB at least.
 */
export function blankVmdk(
  model: VmdkSpec,
  diskBytes: number,
  file: NonNullable<VmdkSpec['extents'][number]['file']>,
): VmdkSpec {
  const first = model.extents.find(({ isWritable }) => isWritable) ?? model.extents[0]
  const layout = blankLayout(first?.layout ?? { kind: 'flat', startBytes: 0 }, diskBytes)
  return {
    sizeBytes: diskBytes,
    descriptor: undefined,
    descriptorPlace: undefined,
    extents: [{ sizeBytes: diskBytes, file, isWritable: true, layout }],
  }
}

function blankLayout(model: ExtentLayout, diskBytes: number): ExtentLayout {
  if (model.kind === 'sparse') {
    const { header } = model
    const { redundantDirectoryAt } = header
    return {
      kind: 'sparse',
      header: {
        ...header,
        capacityBytes: diskBytes,
        grainBytes: largeEnough(header.grainBytes, diskBytes, TABLE_ENTRIES),
        tableEntries: TABLE_ENTRIES,
        directoryAt: DIRECTORY_AT,
        descriptor: undefined,
        redundantDirectoryAt: redundantDirectoryAt && DIRECTORY_AT + DIRECTORY_BYTES / 2,
      },
    }
  }
  if (model.kind !== 'cowd') return { kind: 'flat', startBytes: 0 }
  const grainBytes = largeEnough(model.header.grainBytes, diskBytes, MOST_TABLE_ENTRIES)
  const directoryEntries = Math.ceil(diskBytes / (grainBytes * MOST_TABLE_ENTRIES))
  const place = { directoryOffset: DIRECTORY_AT, directoryEntries }
  return {
    kind: 'cowd',
    header: { ...model.header, ...place, capacityBytes: diskBytes, grainBytes, freeOffset: 0 },
  }
}

/** Returns this grain size, or the next larger one for which the directory has room. */
function largeEnough(grainBytes: number, diskBytes: number, tableEntries: number): number {
  const entries = DIRECTORY_BYTES / 2 / 4
  let bytes = Math.min(grainBytes, 2 ** 16)
  while (diskBytes / (bytes * tableEntries) > entries) bytes *= 2
  return bytes
}
