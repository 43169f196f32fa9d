/**
 * Tells whether a snapshot still exists in an image that a running machine writes. What belongs to an existing snapshot never
 * changes: the machine writes elsewhere. QEMU deletes a snapshot by one write of the header, which names a table without it, and
 * uses its clusters anew only after that write. So bytes that were read before the header still named it are the snapshot's.
 *
 * The freed L1 table of a deleted snapshot keeps its bytes for some time, so tables say nothing about that.
 */
import { ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import type { SnapshotGuard, SnapshotTable } from '../format.js'
import { rounded64be, u32be } from '../../binary.js'
import type { Qcow2Header } from './header.js'
import { FIELD_AT } from './header-layout.js'
import type { SnapshotEntry } from './snapshot-entry.js'
import { walkSnapshotTable } from './snapshots.js'

/** The header's count of snapshots, and the place of their table: 4 and 8 bytes, which are written at once. */
const PLACE_BYTES = FIELD_AT.snapshotsOffset - FIELD_AT.snapshotCount + rounded64be.size
/** How often to begin anew because the table has moved meanwhile. A machine needs milliseconds for each move. */
const TRIES = 100

export class Qcow2SnapshotGuard implements SnapshotGuard {
  private readonly place = Buffer.alloc(PLACE_BYTES)
  /** The bytes of the entry, and where they are in the file, while `place` is what the header says. */
  private entry: { readonly at: number; readonly bytes: Buffer } | undefined
  private isGone = false

  constructor(
    private readonly store: Store,
    private readonly header: Qcow2Header,
    private readonly table: SnapshotTable,
  ) {}

  isThere(): boolean {
    if (this.isGone) return false
    if (this.entry !== undefined && this.isUnmoved(this.entry)) return true
    this.isGone = !this.find()
    return !this.isGone
  }

  /** Reports whether the header names the same table, and the table has the same entry at the same place. */
  private isUnmoved({ at, bytes }: { readonly at: number; readonly bytes: Buffer }): boolean {
    if (!this.readPlace().equals(this.place)) return false
    const now = Buffer.allocUnsafe(bytes.length)
    return this.store.read(now, 0, now.length, at) === now.length && now.equals(bytes)
  }

  /** Looks the snapshot up in the table that the header names now. */
  private find(): boolean {
    for (let tries = 0; tries < TRIES; tries++) {
      const place = this.readPlace()
      const entry = this.search(place)
      // While the table was read, it may have been freed.
      if (!this.readPlace().equals(place)) continue
      this.entry = entry
      place.copy(this.place)
      return entry !== undefined
    }
    const what = 'its snapshots change faster than they can be read'
    throw new ImageError('CORRUPT', what, { path: this.store.path })
  }

  private search(place: Buffer): { at: number; bytes: Buffer } | undefined {
    const snapshotCount = u32be.get(place, 0)
    const snapshotsOffset = rounded64be.get(place, 4)
    if (!Number.isSafeInteger(snapshotsOffset)) return undefined
    let found: { at: number; bytes: Buffer } | undefined
    const now = { ...this.header, snapshotCount, snapshotsOffset, defects: [] }
    walkSnapshotTable(this.store, now, ({ entry, entryAt, bytes }) => {
      if (found === undefined && this.isOurs(entry)) {
        found = { at: entryAt, bytes: Buffer.from(bytes) }
      }
    })
    return found
  }

  private isOurs(entry: SnapshotEntry): boolean {
    const { offset, entries, snapshot } = this.table
    return (
      entry.l1Offset === offset &&
      entry.l1Entries === entries &&
      entry.dateSeconds === snapshot.dateSeconds &&
      entry.dateNanoseconds === snapshot.dateNanoseconds &&
      entry.id.toString('utf8') === snapshot.id
    )
  }

  private readPlace(): Buffer {
    const place = Buffer.alloc(PLACE_BYTES)
    if (this.store.read(place, 0, PLACE_BYTES, FIELD_AT.snapshotCount) < PLACE_BYTES) {
      const what = 'it has been cut off within its header'
      throw new ImageError('CORRUPT', what, { path: this.store.path })
    }
    return place
  }
}
