/** Gives back to the file system what an image no longer uses. */
import type { WritableStore } from '../../../io/store.js'
import { getCount } from '../refcount-bits.js'
import { type MetadataMap, KIND } from '../metadata-map.js'
import { clusterBytes, type Qcow2Header } from '../header.js'
import type { NewCounts } from './new-counts.js'
import { type OldCounts, readWhole } from './old-counts.js'

/**
 * Punches out the clusters that the old counts have and the new ones do not. Both must be in the file. A file system that
 * cannot do that keeps the space.
 */
export function giveBack(
  store: WritableStore,
  header: Qcow2Header,
  old: OldCounts,
  counts: NewCounts,
  metadataMap: MetadataMap,
): void {
  const cluster = clusterBytes(header)
  const order = header.refcountOrder
  const before = Buffer.alloc(cluster)
  const after = Buffer.alloc(cluster)
  const runs = new Runs(store, cluster)
  for (let index = 0; index < old.places.length; index++) {
    if (!counts.hasChanged(index) || !(old.places[index] as number)) continue
    old.read(index, before)
    readWhole(store, after, counts.offsetOf(index))
    const first = index * old.perBlock
    for (let i = 0; i < old.perBlock; i++) {
      if (getCount(before, i, order) === 0 || getCount(after, i, order) !== 0) continue
      // Later blocks are still read.
      if (metadataMap.kindOf(first + i) !== KIND.refcountBlock) runs.add(first + i)
    }
  }
  old.places.forEach((at, index) => {
    if (at > 0 && counts.hasChanged(index)) runs.add(at / cluster)
  })
  runs.end()
}

/** Punches clusters in a row together. */
class Runs {
  private first = 0
  private next = 0

  constructor(
    private readonly store: WritableStore,
    private readonly clusterBytes: number,
  ) {}

  add(cluster: number): void {
    if (cluster !== this.next) {
      this.end()
      this.first = cluster
    }
    this.next = cluster + 1
  }

  end(): void {
    const at = this.first * this.clusterBytes
    const end = Math.min(this.next * this.clusterBytes, this.store.sizeBytes)
    if (end > at) this.store.punch(at, end - at)
    this.first = this.next
  }
}
