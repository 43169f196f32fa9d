/**
 * Walks a stream-optimized extent: each grain has a marker with its place on the disk and the size of its stream (VMware,
 * Virtual Disk Format 5.0, "Stream-Optimized Compressed Sparse Extents").
 */
import { maxPackedBytes } from '../grain.js'
import { Inspection, sectorsOf } from './inspection.js'
import { SECTOR_BYTES } from '../../../sector.js'

/** The marker: the grain's sector on the disk, a u64, and the size of the stream in bytes, a u32. */
const MARKER_BYTES = 12

interface Packed {
  /** The sector after it, as far as that is known. */
  readonly end: number
  readonly problem: string | undefined
}

export class PackedInspection extends Inspection {
  private readonly marker = Buffer.alloc(MARKER_BYTES)

  /** Inspects each grain: neighbours in the table are not neighbours in the file. */
  protected override endRun(end: number): void {
    const { runStart: start, grainSectors } = this
    for (let at = start, grain = this.runGrain; at < end; at += grainSectors, grain++) {
      this.takePacked(at, grain)
    }
  }

  private takePacked(sector: number, grain: number): void {
    const { map, isFirst } = this
    const most = sectorsOf(maxPackedBytes(this.layout.grainBytes))
    if (!isFirst && (sector >= map.end || sector + most <= map.first)) return
    const { end, problem } = this.packed(sector, grain)
    if (isFirst) {
      this.count(sector, end, 1)
      if (problem !== undefined) this.blame(grain, sector, () => problem, false)
    }
    this.claim(sector, end, grain, problem !== undefined)
  }

  private packed(sector: number, grain: number): Packed {
    const at = sector * SECTOR_BYTES
    const cutOff = { end: sector + 1, problem: 'which the end of it cuts off' }
    if (sector >= this.fileSectors) return { ...cutOff, problem: 'beyond the end of it' }
    if (this.store.read(this.marker, 0, MARKER_BYTES, at) < MARKER_BYTES) return cutOff
    const own = BigInt(grain) * BigInt(this.grainSectors)
    const said = this.marker.readBigUInt64LE(0)
    const streamBytes = this.marker.readUInt32LE(8)
    const bytes = MARKER_BYTES + streamBytes
    const refuse = (problem: string) => ({ end: sector + 1, problem })
    if (streamBytes === 0) return refuse('where no grain is')
    if (said !== own) return refuse(`where that of sector ${said} is`)
    if (bytes > maxPackedBytes(this.layout.grainBytes)) {
      return refuse(`which has ${streamBytes} bytes, too many`)
    }
    if (at + bytes > this.store.sizeBytes) return cutOff
    return { end: sector + sectorsOf(bytes), problem: undefined }
  }
}
