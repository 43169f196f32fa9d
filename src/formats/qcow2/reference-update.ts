/**
 * Names another backing file in the header (QEMU docs/interop/qcow2.rst, "Header" and "Header extensions").
 *
 * The name is written first, to a place that nothing uses. One write of the header and its extensions then makes it valid.
 * That write changes more than one sector only if extensions beyond the first sector move.
 */
import { u32be, u64be } from '../../binary.js'
import { ImageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import type { NewReference } from '../format.js'
import { MAX_BACKING_NAME_BYTES } from '../limits.js'
import { clusterBytes, type Qcow2Header } from './header.js'
import { EXTENSION, EXTENSION_HEADER, rawExtensions } from './header-extensions.js'
import { FIELD_AT } from './header-layout.js'

const EXTENSION_ALIGNMENT = 8

/** Makes `reference` the backing file; undefined removes it. Throws ImageError if the header has no room for the name. */
export function changeReference(
  store: WritableStore,
  header: Qcow2Header,
  reference: NewReference | undefined,
): void {
  const head = Buffer.alloc(clusterBytes(header))
  store.read(head, 0, head.length, 0)
  const oldAt = Number(head.readBigUInt64BE(FIELD_AT.backingNameOffset))
  const oldBytes = head.readUInt32BE(FIELD_AT.backingNameBytes)
  const area = head.subarray(0, oldAt > 0 ? oldAt : head.length)
  const extensions = rawExtensions(area, header.headerBytes)
  const kept = extensions.all.filter(({ type }) => type !== EXTENSION.backingFormat)
  const format = reference && encoded(EXTENSION.backingFormat, Buffer.from(reference.format))
  const parts = [...(format ? [format] : []), ...kept.map(({ bytes }) => bytes)]
  const end = Buffer.alloc(EXTENSION_HEADER.size)
  const changed = Buffer.concat([head.subarray(0, header.headerBytes), ...parts, end])
  const name = Buffer.from(reference?.name ?? '')
  const at = reference ? freePlace(changed.length, extensions.end, oldAt, oldBytes, name.length) : 0
  if (name.length > MAX_BACKING_NAME_BYTES || at + name.length > head.length) {
    throw new ImageError(
      'UNSUPPORTED',
      `its header has no room for a name of ${name.length} bytes`,
      {
        path: store.path,
        hint: 'use a shorter name, relative to the folder of the image',
      },
    )
  }
  if (reference) {
    store.write(name, 0, name.length, at)
    store.sync()
  }
  u64be.put(changed, FIELD_AT.backingNameOffset, at)
  u32be.put(changed, FIELD_AT.backingNameBytes, name.length)
  store.write(changed, 0, changed.length, 0)
  store.sync()
  clearOld(store, oldAt, oldBytes, [
    { at: 0, length: changed.length },
    { at, length: name.length },
  ])
}

/** Returns a place for the name after the extensions that does not touch the old name, nor the old extensions. */
function freePlace(
  extensionsEnd: number,
  oldExtensionsEnd: number,
  oldAt: number,
  oldBytes: number,
  bytes: number,
): number {
  const first = aligned(Math.max(extensionsEnd, oldExtensionsEnd))
  return oldAt > 0 && first + bytes > oldAt ? aligned(Math.max(first, oldAt + oldBytes)) : first
}

function clearOld(
  store: WritableStore,
  oldAt: number,
  oldBytes: number,
  used: readonly { at: number; length: number }[],
): void {
  const overlaps = used.some(({ at, length }) => at < oldAt + oldBytes && at + length > oldAt)
  if (oldAt === 0 || overlaps) return
  store.write(Buffer.alloc(oldBytes), 0, oldBytes, oldAt)
  store.sync()
}

function encoded(type: number, data: Buffer): Buffer {
  const bytes = Buffer.alloc(EXTENSION_HEADER.size + aligned(data.length))
  EXTENSION_HEADER.put(bytes, 0, { type, length: data.length })
  data.copy(bytes, EXTENSION_HEADER.size)
  return bytes
}

const aligned = (bytes: number): number =>
  Math.ceil(bytes / EXTENSION_ALIGNMENT) * EXTENSION_ALIGNMENT
