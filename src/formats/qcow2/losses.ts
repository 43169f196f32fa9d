/** Finds the parts that an image has lost and that reading the disk does not need. */
import { WriteProtected } from '../../io/named-file.js'
import type { Store } from '../../io/store.js'
import type { OpenContext } from '../format.js'
import { clusterBytes, type Qcow2Header } from './header.js'
import type { Defect } from './table-places.js'
import { readSnapshots } from './snapshots.js'

/** Lost bitmaps do not prevent writing: the writer gives them up, and says so. */
const HARMLESS: ReadonlySet<Defect['part']> = new Set(['bitmaps'])

/**
 * Returns why an image must not be written, one clause for each reason: reference counts, snapshots or parts of the header
 * are lost, so nobody knows which clusters are free. Empty for a sound image.
 */
export function lossesOf(store: Store, header: Qcow2Header): string[] {
  const { snapshots, problems } = readSnapshots(store, header)
  const cluster = clusterBytes(header)
  const end = Math.ceil(store.sizeBytes / cluster) * cluster
  // A longer file would turn the rest of the table into zeros.
  const cut = snapshots.filter(({ l1Offset, l1Entries }) => l1Offset + l1Entries * 8 > end)
  return [
    ...header.defects.filter(({ part }) => !HARMLESS.has(part)).map(({ message }) => message),
    ...problems,
    ...(cut.length > 0 ? ['the L1 table of a snapshot is cut off by the end of the file'] : []),
  ]
}

/** Returns warnings for a reader: the same, and lost bitmaps. */
export function warningsOf(store: Store, header: Qcow2Header): string[] {
  const harmless = header.defects.filter(({ part }) => HARMLESS.has(part))
  return [...lossesOf(store, header), ...harmless.map(({ message }) => message)]
}

/**
 * Throws WriteProtected if the image has lost parts and is to be written. Otherwise warns about each part; if losses are
 * known, only about the others.
 */
export function requireWhole(
  store: Store,
  header: Qcow2Header,
  { access, known, warn }: Pick<OpenContext, 'access' | 'known' | 'warn'>,
): void {
  if (access === 'read') {
    const lost = warningsOf(store, header).slice(known === 'LOSSES' ? 1 : 0)
    for (const loss of lost) warn(`${store.path}: ${loss}; ${READ_WITHOUT}`)
    return
  }
  const [loss] = lossesOf(store, header)
  if (loss === undefined) return
  throw new WriteProtected(store.path, loss, REPAIR, { problem: 'LOSSES', reading: READ_WITHOUT })
}

const READ_WITHOUT =
  'the disk is read without that; vimgfs check --repair all makes a copy of it whole'
const REPAIR = 'repair a copy of it with vimgfs check --repair all, or mount it with -o ro'
