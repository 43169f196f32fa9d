/** Numbers the files of a mount: a file keeps its number as long as it is the same thing, whatever its name. */
import type { CatalogEntry } from '../../image/catalog.js'
import { FIRST_FILE_ID } from './tree.js'

export class NodeIds {
  private known = new Map<string, number>()
  private next = FIRST_FILE_ID

  /** Gives the files with these numbers other ones in the next world. */
  renew(isStale: (id: number) => boolean): void {
    for (const [key, id] of this.known) if (isStale(id)) this.known.delete(key)
  }

  /** Returns the numbers of all files that there are now. A number never comes back for another thing. */
  of(entries: readonly CatalogEntry[]): number[] {
    const before = this.known
    this.known = new Map()
    return entries.map(entry => {
      const identity = identityOf(entry)
      // A damaged table may have two snapshots that look the same.
      let key = identity
      for (let twin = 1; this.known.has(key); twin++) key = `${identity} ${twin}`
      const id = before.get(key) ?? this.next++
      this.known.set(key, id)
      return id
    })
  }
}

/** Returns what makes a file the thing that it is: for a snapshot its ID and its date, not its tag. */
function identityOf(entry: CatalogEntry): string {
  const { kind, layer, attributes, modified, startOffset, sizeBytes } = entry
  const snapshot = attributes['snapshot-id']
  return JSON.stringify([
    kind,
    layer,
    ...(snapshot === undefined ? [] : [snapshot, modified.seconds, modified.nanoseconds]),
    ...(kind === 'partition' ? [attributes['partition-number'], startOffset, sizeBytes] : []),
  ])
}
