/**
 * The compressed clusters of a new image, one after the other, whatever cluster of the file they begin in (QEMU
 * docs/interop/qcow2.rst, "Compressed Clusters Descriptor"). A host cluster counts each of them that touches it.
 */
import type { WritableStore } from '../../../io/store.js'
import type { FreshClusters } from './clusters.js'

const BUFFER_BYTES = 2 ** 20
const SECTOR_BYTES = 512

export class PackedStream {
  /** The free rest of the clusters that were taken last, in bytes of the file. */
  private nextAt = 0
  private endAt = 0
  /** Bytes that are not written yet, and where they go. */
  private readonly buffer = Buffer.allocUnsafe(BUFFER_BYTES)
  private used = 0
  private bufferAt = 0

  constructor(
    private readonly store: WritableStore,
    private readonly clusters: FreshClusters,
    private readonly clusterBytes: number,
  ) {}

  /** Appends the bytes of a cluster: less than a cluster. Returns their place in the file. */
  append(packed: Buffer): number {
    const at = this.placeFor(packed.length)
    if (at !== this.bufferAt + this.used || this.used + packed.length > BUFFER_BYTES) {
      this.writeOut()
      this.bufferAt = at
    }
    if (packed.length > BUFFER_BYTES) {
      this.store.write(packed, 0, packed.length, at)
      this.bufferAt = at + packed.length
    } else {
      packed.copy(this.buffer, this.used)
      this.used += packed.length
    }
    return at
  }

  /** Writes what is left. The file ends with a whole sector, because readers read whole ones. */
  flush(): void {
    this.writeOut()
    const whole = Math.ceil(this.nextAt / SECTOR_BYTES) * SECTOR_BYTES
    if (whole > this.store.sizeBytes) this.store.truncate(whole)
  }

  private writeOut(): void {
    if (this.used === 0) return
    this.store.write(this.buffer, 0, this.used, this.bufferAt)
    this.used = 0
  }

  private placeFor(bytes: number): number {
    const room = this.endAt - this.nextAt
    // Only the cluster that begins before `nextAt` is shared.
    const shared = Math.floor(this.nextAt / this.clusterBytes) * this.clusterBytes
    const isShared = this.nextAt > shared
    const canShare = room > 0 && (!isShared || this.clusters.canShare(shared))
    const goesOn = canShare && (bytes <= room || this.clusters.nextAt === this.endAt)
    if (goesOn && isShared) this.clusters.share(shared)
    if (!goesOn || bytes > room) {
      const run = this.clusters.take(1)
      if (!goesOn) this.nextAt = run.at
      this.endAt = run.at + this.clusterBytes
    }
    const at = this.nextAt
    this.nextAt += bytes
    return at
  }
}
