/** Compares parts of two disks by the places of their bytes: what lies at the same place of the same file is equal. */
import fs from 'node:fs'
import type { FileSpec } from '../../io/file-spec.js'
import type { ConvertedDisk, Piece } from './piece-cursor.js'

/** Reports whether all pieces of both lists have the same places. False does not mean that the bytes differ. */
export function samePlaces(
  a: readonly Piece[],
  aDisk: ConvertedDisk,
  b: readonly Piece[],
  bDisk: ConvertedDisk,
): boolean {
  if (a.length !== b.length) return false
  return a.every((piece, i) => {
    const place = placeOf(piece, aDisk)
    return place !== undefined && place === placeOf(b[i] as Piece, bDisk)
  })
}

/** Returns a text that is equal for pieces of the disk with the same place; undefined if nothing can be said. */
function placeOf({ offset, length, extent }: Piece, disk: ConvertedDisk): string | undefined {
  const range = `${offset}+${length}`
  if (extent.kind === 'zero') return range
  const place = disk.placeOf(extent)
  // Encrypted bytes say nothing: the two disks may have different keys.
  if (!place || (extent.kind === 'data' && !place.isPlain)) return undefined
  const where = extent.kind === 'packed' ? `${extent.job.numbers} ${extent.skip}` : place.at
  return `${range} ${extent.kind} ${identityOf(place.file)} ${where}`
}

const identities = new WeakMap<FileSpec, string>()

function identityOf(file: FileSpec): string {
  let identity = identities.get(file)
  if (identity === undefined) {
    const { dev, ino } = fs.fstatSync(file.fd, { bigint: true })
    identity = `${dev}:${ino}:${file.part?.startAt ?? 0}`
    identities.set(file, identity)
  }
  return identity
}
