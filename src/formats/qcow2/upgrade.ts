/** Raises the version of an image from 2 to 3 (QEMU docs/interop/qcow2.rst, "Header", "Snapshots"). */
import { u32be } from '../../binary.js'
import { ImageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import { clusterBytes, readHeader } from './header.js'
import { FIELD_AT, V2_HEADER, V3_FIELDS } from './header-layout.js'
import { hasRoom, type NewHead, type OldHead, readHead, replaceHead } from './header-replacement.js'
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
  const { old, head } = heads(store)
  if (!hasRoom(old, head)) {
    throw new ImageError('UNSUPPORTED', 'its header has no room for the fields of version 3', {
      path: store.path,
      hint: 'convert it to an image with larger clusters',
    })
  }
  if (readHeader(store).snapshotCount > 0) completeSnapshots(store)
  // The tables of the snapshots have moved: take the header as it is now.
  const now = heads(store)
  replaceHead(store, now.old, now.head)
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

/** Returns the header as it is, and with the fields of version 3. */
function heads(store: WritableStore): { old: OldHead; head: NewHead } {
  const old = readHead(store, clusterBytes(readHeader(store)), V2_HEADER.size)
  const fields = Buffer.alloc(V2_HEADER.size + V3_FIELDS.size + COMPRESSION_BYTES)
  old.bytes.copy(fields, 0, 0, V2_HEADER.size)
  u32be.put(fields, FIELD_AT.version, 3)
  V3_FIELDS.put(fields, V2_HEADER.size, {
    ...{ incompatible: 0n, compatible: 0n, autoclear: 0n },
    refcountOrder: REFCOUNT_ORDER,
    headerBytes: fields.length,
  })
  const { extensions, name } = old
  return { old, head: { fields, extensions, name: Buffer.from(name) } }
}
