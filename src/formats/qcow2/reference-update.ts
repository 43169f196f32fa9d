/** Names another backing file in the header (QEMU docs/interop/qcow2.rst, "Header" and "Header extensions"). */
import { ImageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import type { NewReference } from '../format.js'
import { MAX_BACKING_NAME_BYTES } from '../limits.js'
import { clusterBytes, type Qcow2Header } from './header.js'
import { EXTENSION, EXTENSION_HEADER, type RawExtension } from './header-extensions.js'
import { aligned, hasRoom, readHead, replaceHead } from './header-replacement.js'

/**
 * Makes `reference` the backing file; undefined removes it. A power cut leaves the old name or the new one. Throws ImageError if
 * the header has no room for the name, and then nothing has changed; SystemError.
 */
export function changeReference(
  store: WritableStore,
  header: Qcow2Header,
  reference: NewReference | undefined,
): void {
  const old = readHead(store, clusterBytes(header), header.headerBytes)
  const kept = old.extensions.filter(({ type }) => type !== EXTENSION.backingFormat)
  const head = {
    fields: old.bytes.subarray(0, header.headerBytes),
    extensions: reference ? [formatExtension(reference.format), ...kept] : kept,
    name: Buffer.from(reference?.name ?? ''),
  }
  const { length } = head.name
  if (length > MAX_BACKING_NAME_BYTES || !hasRoom(old, head)) {
    throw new ImageError('UNSUPPORTED', `its header has no room for a name of ${length} bytes`, {
      path: store.path,
      hint: 'use a shorter name, relative to the folder of the image',
    })
  }
  replaceHead(store, old, head)
}

function formatExtension(format: string): RawExtension {
  const type = EXTENSION.backingFormat
  const data = Buffer.from(format)
  const bytes = Buffer.alloc(EXTENSION_HEADER.size + aligned(data.length))
  EXTENSION_HEADER.put(bytes, 0, { type, length: data.length })
  data.copy(bytes, EXTENSION_HEADER.size)
  return { type, bytes }
}
