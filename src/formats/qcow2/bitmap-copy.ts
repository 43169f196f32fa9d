/** Reads the persistent bitmaps of an image, and writes them into a new one (QEMU docs/interop/qcow2.rst, "Bitmaps"). */
import { ImageError, printable } from '../../errors.js'
import type { Store, WritableStore } from '../../io/store.js'
import type { CopiedBitmap } from '../creating.js'
import { MAX_BITMAP_BYTES } from '../limits.js'
import {
  ALL_ZEROS,
  type BitmapTable,
  bitmapBytesFor,
  bitsFor,
  encodeTable,
  readBits,
  readTable,
} from './bitmap-table.js'
import { areBitmapsValid, BITMAP_ENTRY, BITMAP_FLAG, readDirectory } from './bitmaps.js'
import { clusterBytes, type Qcow2Header } from './header.js'
import type { BitmapsExtension } from './header-extensions.js'

const DIRTY_TRACKING = 1

/**
 * Returns the image's bitmaps; none where a program has written to it that does not know them.
 * @param spec the header
 * @param onBroken is told the name of each that was not closed, which is left out; without it that throws ImageError
 */
export function copiedBitmaps(
  store: Store,
  spec: unknown,
  onBroken?: (name: string) => void,
): CopiedBitmap[] {
  const header = spec as Qcow2Header
  if (!areBitmapsValid(header)) return []
  const cluster = clusterBytes(header)
  const copied: CopiedBitmap[] = []
  let total = 0
  for (const { name, flags, granularityBits, tableOffset, tableEntries } of readDirectory(
    store,
    header,
  )) {
    const shown = printable(name.toString('utf8'))
    const refuse = (what: string, hint: string): never => {
      throw new ImageError('REFUSED', `its bitmap "${shown}" ${what}`, { path: store.path, hint })
    }
    if ((flags & BITMAP_FLAG.inUse) !== 0) {
      if (!onBroken) refuse('was not closed', 'leave it out with --skip-broken-bitmaps')
      else onBroken(shown)
      continue
    }
    const bytes = bitmapBytesFor(header.sizeBytes, granularityBits)
    total += bytes
    if (total > MAX_BITMAP_BYTES || tableEntries !== Math.ceil(bytes / cluster)) {
      refuse('does not fit the disk, or is too large', 'convert without --bitmaps')
    }
    const table = readTable(store, Number(tableOffset), tableEntries, cluster)
    const bits = Buffer.alloc(bytes)
    readBits(store, table, bits, bitsFor(header.sizeBytes, granularityBits), cluster)
    const isAuto = (flags & BITMAP_FLAG.auto) !== 0
    copied.push({ name, granularityBits, isAuto, bits })
  }
  return copied
}

/**
 * Writes bitmaps into clusters of a new image. Returns what its header says of them.
 * @param take returns the place of so many bytes in clusters of their own
 */
export function writeBitmaps(
  store: WritableStore,
  bitmaps: readonly CopiedBitmap[],
  cluster: number,
  take: (bytes: number) => number,
): BitmapsExtension {
  const whole = (bytes: Buffer) => {
    const padded = Buffer.alloc(Math.ceil(bytes.length / cluster) * cluster)
    bytes.copy(padded)
    const at = take(padded.length)
    store.write(padded, 0, padded.length, at)
    return at
  }
  const entries = bitmaps.map(({ name, granularityBits, isAuto, bits }) => {
    const table: BitmapTable = new Float64Array(Math.ceil(bits.length / cluster))
    table.forEach((_, chunk) => {
      const part = bits.subarray(chunk * cluster, (chunk + 1) * cluster)
      table[chunk] = part.equals(Buffer.alloc(part.length)) ? ALL_ZEROS : whole(part)
    })
    const entry = BITMAP_ENTRY.encode({
      tableOffset: BigInt(whole(encodeTable(table))),
      tableEntries: table.length,
      flags: isAuto ? BITMAP_FLAG.auto : 0,
      type: DIRTY_TRACKING,
      granularityBits,
      nameBytes: name.length,
      extraBytes: 0,
    })
    return Buffer.concat([entry, name, Buffer.alloc((8 - ((entry.length + name.length) % 8)) % 8)])
  })
  const directory = Buffer.concat(entries)
  return {
    count: entries.length,
    directoryBytes: directory.length,
    directoryOffset: whole(directory),
  }
}
