/** Places in files that are parts of larger ones: what follows a part belongs to others. */
import type { Extent } from '../../formats/driver.js'
import { packedFormat, packedPlace } from '../../formats/packed-places.js'
import type { FileSpec } from '../../io/file-spec.js'

type PackedExtent = Extract<Extent, { kind: 'packed' }>

/** Returns the place in the open file from which places of a file count. */
export const startOf = ({ part }: FileSpec): number => part?.startAt ?? 0

/** Reports whether what ends at `end` lies in the file, as far as it is a part of a larger one. */
export const isInside = ({ part, sizeBytes }: FileSpec, end: number): boolean =>
  !part || end <= sizeBytes

/** Reports whether the compressed bytes lie in the file, as far as can be told. */
export function isPackedInside({ job, wholeBytes }: PackedExtent, file: FileSpec): boolean {
  if (!file.part) return true
  const format = packedFormat(job.format)
  if (format < 0) return false
  const { at, length } = packedPlace(format, job.numbers, wholeBytes)
  return isInside(file, at + length)
}
