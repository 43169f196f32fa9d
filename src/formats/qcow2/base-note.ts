/**
 * A note in an overlay about the disk that it stands on, in a header extension of our own (QEMU docs/interop/qcow2.rst, "Header
 * extensions"): programs that do not know its type ignore it, and QEMU keeps it when it writes the header anew.
 */
import type { Store, WritableStore } from '../../io/store.js'
import type { BaseNote } from '../base-note.js'
import { clusterBytes, type Qcow2Header } from './header.js'
import { EXTENSION, EXTENSION_HEADER } from './header-extensions.js'
import { aligned, readHead, replaceHead } from './header-replacement.js'

export const qcow2BaseNote: BaseNote<Qcow2Header> = { read, write }

function read(header: Qcow2Header, store: Store): Buffer | undefined {
  const { extensions } = readHead(store, clusterBytes(header), header.headerBytes)
  const found = extensions.find(({ type }) => type === EXTENSION.baseNote)
  if (!found) return undefined
  const { length } = EXTENSION_HEADER.decode(found.bytes)
  return found.bytes.subarray(EXTENSION_HEADER.size, EXTENSION_HEADER.size + length)
}

function write(header: Qcow2Header, store: WritableStore, note: Buffer): void {
  const type = EXTENSION.baseNote
  const old = readHead(store, clusterBytes(header), header.headerBytes)
  const bytes = Buffer.alloc(EXTENSION_HEADER.size + aligned(note.length))
  EXTENSION_HEADER.put(bytes, 0, { type, length: note.length })
  note.copy(bytes, EXTENSION_HEADER.size)
  replaceHead(store, old, {
    fields: old.bytes.subarray(0, header.headerBytes),
    extensions: [...old.extensions.filter(one => one.type !== type), { type, bytes }],
    name: old.name,
  })
}
