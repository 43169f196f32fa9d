/** The files that a qcow2 image needs as they are, by a header that may be damaged or have an unknown version. */
import { backingNameAt } from '../backing-file.js'
import type { ReadPart } from '../format.js'
import { MAX_FILE_NAME_BYTES } from '../limits.js'
import { MAGIC } from './header.js'
import { EXTENSION, EXTENSION_HEADER } from './header-extensions.js'
import { FIELD_AT, V2_HEADER } from './header-layout.js'

/** QEMU writes seven kinds of extensions, once each. */
const MAX_EXTENSIONS = 32

/** Returns the name of the backing file, and that of the data file; see Format.filesNeeded. */
export function filesNeededByQcow2(head: Buffer, read: ReadPart): Buffer[] {
  const isQcow2 =
    head.length >= FIELD_AT.clusterBits &&
    head.readUInt32BE(FIELD_AT.magic) === MAGIC &&
    head.readUInt32BE(FIELD_AT.version) !== 1
  if (!isQcow2) return []
  const at = head.readBigUInt64BE(FIELD_AT.backingNameOffset)
  const backing = backingNameAt(read, at, head.readUInt32BE(FIELD_AT.backingNameBytes))
  return [backing, ...dataFiles(head, read)]
}

/** Returns the names in the header extensions for the data file. */
function dataFiles(head: Buffer, read: ReadPart): Buffer[] {
  if (head.length < FIELD_AT.headerBytes + 4) return []
  const version = head.readUInt32BE(FIELD_AT.version)
  let at = version === 2 ? V2_HEADER.size : head.readUInt32BE(FIELD_AT.headerBytes)
  const names: Buffer[] = []
  for (let i = 0; i < MAX_EXTENSIONS; i++) {
    const bytes = read(at, EXTENSION_HEADER.size)
    if (bytes.length < EXTENSION_HEADER.size) break
    const { type, length } = EXTENSION_HEADER.decode(bytes)
    if (type === EXTENSION.end) break
    at += EXTENSION_HEADER.size
    if (type === EXTENSION.dataFile) names.push(read(at, Math.min(length, MAX_FILE_NAME_BYTES)))
    at += Math.ceil(length / 8) * 8
  }
  return names
}
