/** Raises the version of an image from 2 to 3 (QEMU docs/interop/qcow2.rst, "Header", "Snapshots"). */
import { u32be, u64be } from '../../binary.js'
import { ImageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import { clusterBytes, readHeader } from './header.js'
import { EXTENSION_HEADER, rawExtensions } from './header-extensions.js'
import { FIELD_AT, V2_HEADER, V3_FIELDS } from './header-layout.js'
import { Change } from './snapshot/change.js'
import { decodeSnapshotEntry, encodeSnapshotEntry } from './snapshot-entry.js'

/** The compression type and its padding. */
const COMPRESSION_BYTES = 8
/** In version 2 counts have 16 bits. */
const REFCOUNT_ORDER = 4

/**
 * Gives all snapshots the sizes that version 3 requires, and then the header its new fields. A power cut in between leaves an
 * image of version 2. Throws ImageError if the header has no room, and then nothing has changed; SystemError.
 */
export function upgrade(store: WritableStore): void {
  const { head, nameAt, name } = newHead(store)
  if (readHeader(store).snapshotCount > 0) completeSnapshots(store)
  // The tables of the snapshots have moved: take the header as it is now.
  const now = newHead(store).head
  if (name.length > 0) {
    store.write(name, 0, name.length, nameAt)
    store.sync()
  }
  store.write(now, 0, head.length, 0)
  store.sync()
}

function completeSnapshots(store: WritableStore): void {
  Change.run(store, change => {
    const entries = change.snapshots.map(snapshot => {
      const entry = decodeSnapshotEntry(snapshot.bytes)
      const bytes = encodeSnapshotEntry({ ...entry, sizeBytes: snapshot.sizeBytes })
      return { ...snapshot, bytes }
    })
    const { sizeBytes, l1Entries, l1Offset } = change.header
    change.commit(entries, { sizeBytes, l1Entries, l1Offset })
  })
}

/** Returns the fields and extensions of version 3, and a place for the backing file's name after them and the old ones. */
function newHead(store: WritableStore): { head: Buffer; nameAt: number; name: Buffer } {
  const header = readHeader(store)
  const old = Buffer.alloc(clusterBytes(header))
  store.read(old, 0, old.length, 0)
  const oldNameAt = u64be.get(old, FIELD_AT.backingNameOffset)
  const nameBytes = u32be.get(old, FIELD_AT.backingNameBytes)
  const name = oldNameAt > 0 ? old.subarray(oldNameAt, oldNameAt + nameBytes) : Buffer.alloc(0)
  const area = old.subarray(0, oldNameAt > 0 ? oldNameAt : old.length)
  const { all } = rawExtensions(area, V2_HEADER.size)
  const fields = Buffer.alloc(V2_HEADER.size + V3_FIELDS.size + COMPRESSION_BYTES)
  old.copy(fields, 0, 0, V2_HEADER.size)
  u32be.put(fields, FIELD_AT.version, 3)
  V3_FIELDS.put(fields, V2_HEADER.size, {
    ...{ incompatible: 0n, compatible: 0n, autoclear: 0n },
    refcountOrder: REFCOUNT_ORDER,
    headerBytes: fields.length,
  })
  const extensions = all.map(({ bytes }) => bytes)
  const head = Buffer.concat([fields, ...extensions, Buffer.alloc(EXTENSION_HEADER.size)])
  // The old name must stay whole until the header names the new place.
  const nameAt = Math.ceil(Math.max(head.length, oldNameAt + nameBytes) / 8) * 8
  if (nameAt + name.length > old.length) {
    throw new ImageError('UNSUPPORTED', 'its header has no room for the fields of version 3', {
      path: store.path,
      hint: 'convert it to an image with larger clusters',
    })
  }
  if (name.length > 0) u64be.put(head, FIELD_AT.backingNameOffset, nameAt)
  return { head, nameAt, name: Buffer.from(name) }
}
