/** The extents that a descriptor names, which need not be sound. */
import type { ReadPart } from '../format.js'
import { isDescriptor } from './descriptor.js'

/** Of a descriptor that is searched for extent lines: more than VMware's programs write. */
const MAX_DESCRIPTOR_BYTES = 256 * 1024
/** Extents of a descriptor that are looked at. */
const MAX_EXTENTS = 1024

/** Returns the names in the extent lines of a descriptor in a file of its own; see Format.filesNeeded. Nobody escapes quotes. */
export function filesNeededByVmdk(head: Buffer, read: ReadPart): Buffer[] {
  if (!isDescriptor(head)) return []
  const lines = read(0, MAX_DESCRIPTOR_BYTES)
    .toString('latin1')
    .matchAll(/^[ \t]*(?:RW|RDONLY)[ \t]+\d+[ \t]+\w+[ \t]+"(.+)"/gim)
  return [...lines].slice(0, MAX_EXTENTS).map(([, name]) => Buffer.from(name as string, 'latin1'))
}
