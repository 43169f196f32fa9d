/**
 * Where the compressed bytes of packed extents lie, by format: for threads that decompress and need nothing else of the formats.
 * It stands apart from the registry, because loading all formats takes longer than starting a thread.
 */
import type { PackedPlace } from './driver.js'
import { clusterPlace } from './packed-cluster.js'
import { grainPlace } from './vmdk/grain.js'

/** Returns where the bytes lie that decompress to `wholeBytes` bytes, by a packed extent's `job.numbers`. */
type PlaceOf = (numbers: readonly number[], wholeBytes: number) => PackedPlace

const PLACES: Readonly<Record<string, PlaceOf>> = {
  qcow2: clusterPlace,
  qcow: clusterPlace,
  vmdk: grainPlace,
}

const NAMES = Object.keys(PLACES)

/** Returns the number of a format for `packedPlace`; -1 if only the format's `unpack` can decompress. */
export const packedFormat = (name: string): number => NAMES.indexOf(name)

export function packedPlace(
  format: number,
  numbers: readonly number[],
  wholeBytes: number,
): PackedPlace {
  return (PLACES[NAMES[format] as string] as PlaceOf)(numbers, wholeBytes)
}
