/**
 * Reads pieces of a disk into memory, several at once: plain data by the threads of libuv's pool, compressed units by the
 * system's decompressors in the same threads. What these cannot do, or refuse, the engine does, which has the last word on
 * what is damage.
 */
import { atOffset } from '../../errors.js'
import type { PackedPlace } from '../../formats/driver.js'
import { packedFormat, packedPlace } from '../../formats/packed-places.js'
import { type Unpackers, unpackers } from '../../io/codecs.js'
import type { FileSpec } from '../../io/file-spec.js'
import { clear } from '../../io/libc.js'
import type { OnLoss } from '../reading/walk-layers.js'
import { allDone } from './all-done.js'
import { readFileAt } from './read-file.js'
import { withPlace } from './damage-place.js'
import type { ConvertedDisk, Piece } from './piece-cursor.js'

type Packed = Extract<Piece['extent'], { kind: 'packed' }>

/** Smaller reads are done at once: handing them over costs more. */
const ASYNC_BYTES = 32 * 1024
/** Compressed units are read together up to so many bytes, and gaps between them up to so many. */
const GROUP_BYTES = 2 ** 20
const GAP_BYTES = 16 * 1024

/** A compressed unit that is decompressed to `target`. */
interface Unit {
  /** The file of the compressed bytes, and their place in it. */
  readonly file: FileSpec
  readonly place: PackedPlace
  readonly offset: number
  readonly target: Buffer
}

export class DiskReader {
  private decompressors: Unpackers | undefined
  /** Buffers of GROUP_BYTES that are not in use: new ones for each group keep the garbage collector busy. */
  private readonly spare: Buffer[] = []

  constructor(
    private readonly disk: ConvertedDisk,
    private readonly onLoss: OnLoss | undefined,
  ) {}

  /**
   * Fills `target` with the disk from `offset` on. Rejects with ImageError, SystemError; then, too, nothing is in flight.
   * @param pieces those that touch the range, in order
   */
  async fill(target: Buffer, offset: number, pieces: readonly Piece[]): Promise<void> {
    const end = offset + target.length
    const reads: Promise<void>[] = []
    const units: Unit[] = []
    try {
      for (const { offset: start, length, extent } of pieces) {
        const from = Math.max(start, offset)
        const part = target.subarray(from - offset, Math.min(start + length, end) - offset)
        const place = part.length >= ASYNC_BYTES ? this.disk.placeOf(extent) : undefined
        if (extent.kind === 'zero') clear(part, 0, part.length)
        else if (place && extent.kind === 'data' && place.isPlain) {
          reads.push(this.readData(place.file, place.at + (from - start), part, from))
        } else if (place && extent.kind === 'packed' && part.length === extent.wholeBytes) {
          const packed = placeOf(extent)
          const { file, at } = place
          if (packed) {
            const inFile = { ...packed, at: at + packed.at }
            units.push({ file, place: inFile, offset: from, target: part })
          } else this.readNow(part, from)
        } else this.readNow(part, from)
      }
      for (const group of groupsOf(units)) reads.push(this.unpackGroup(group))
    } finally {
      await allDone(reads)
    }
  }

  private async readData(
    file: FileSpec,
    at: number,
    target: Buffer,
    offset: number,
  ): Promise<void> {
    try {
      if ((await readFileAt(file, target, at)) === target.length) return
    } catch (error) {
      this.requireLocal(file, error, offset)
      // The engine reads again, and reports the error.
    }
    // The engine knows where a file may end, and what that means.
    this.readNow(target, offset)
  }

  /** Throws the error of a file that is not on this machine: trying again would take as long again. */
  private requireLocal({ source }: FileSpec, error: unknown, offset: number): void {
    if (source && !this.onLoss) throw atOffset(error, offset)
  }

  /** Reads in this thread. */
  private readNow(target: Buffer, offset: number): void {
    const { disk, onLoss } = this
    if (onLoss) disk.salvage(target, 0, target.length, offset, onLoss)
    else withPlace(offset, () => disk.read(target, 0, target.length, offset))
  }

  /** Reads the compressed bytes of neighbouring units in one go, and decompresses each. */
  private async unpackGroup(units: readonly Unit[]): Promise<void> {
    const [first] = units as [Unit]
    const { at } = first.place
    const { file } = first
    const end = Math.max(...units.map(unit => packedEnd(unit)))
    const length = end - at
    const isSmall = length <= GROUP_BYTES
    const whole =
      (isSmall && this.spare.pop()) || Buffer.allocUnsafeSlow(Math.max(length, GROUP_BYTES))
    const packed = whole.subarray(0, length)
    let got = 0
    try {
      got = await readFileAt(file, packed, at)
    } catch (error) {
      this.requireLocal(file, error, first.offset)
      // The engine reads again, and reports the error.
    }
    const bytes = packed.subarray(0, got)
    try {
      await allDone(units.map(unit => this.unpack(unit, bytes.subarray(unit.place.at - at))))
    } finally {
      if (isSmall) this.spare.push(whole)
    }
  }

  private async unpack(unit: Unit, from: Buffer): Promise<void> {
    const { target, offset } = unit
    if (!(await this.tryToUnpack(unit, from))) this.readNow(target, offset)
  }

  /** @param from begins with the unit's compressed bytes */
  private async tryToUnpack({ place, target }: Unit, from: Buffer): Promise<boolean> {
    const stream = place.streamOf(from.subarray(0, place.length))
    const unpack = stream && (this.decompressors ??= unpackers())[stream.type]
    if (!stream || !unpack) return false
    const made = await unpack(stream.bytes, target)
    if (made < stream.neededBytes) return false
    clear(target, made, target.length)
    return true
  }
}

function placeOf({ job: { format, numbers }, wholeBytes }: Packed): PackedPlace | undefined {
  const known = packedFormat(format)
  return known < 0 ? undefined : packedPlace(known, numbers, wholeBytes)
}

const packedEnd = ({ place }: Unit): number => place.at + place.length

/** Returns units whose compressed bytes lie close together in one file, in groups. */
function groupsOf(units: readonly Unit[]): Unit[][] {
  const groups: Unit[][] = []
  const sorted = units.toSorted((a, b) => a.file.fd - b.file.fd || a.place.at - b.place.at)
  for (const unit of sorted) {
    const group = groups.at(-1)
    const first = group?.[0]
    const last = group?.at(-1)
    const isNear =
      first &&
      last &&
      first.file.fd === unit.file.fd &&
      unit.place.at - packedEnd(last) <= GAP_BYTES &&
      packedEnd(unit) - first.place.at <= GROUP_BYTES
    if (isNear) group?.push(unit)
    else groups.push([unit])
  }
  return groups
}
