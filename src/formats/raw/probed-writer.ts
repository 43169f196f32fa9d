/**
 * Writes a raw image whose format was found by probing. Its guest writes the bytes that the next mount probes. So no write may
 * give it the header of another format: that mount would open the files that the header names.
 *
 * Writes to the probed bytes become reservations, which the engine fills completely, with the disk alone. So the new bytes are
 * checked before they are in the file, in whatever pieces a header is written. All other writes are ordinary ones.
 */
import { ImageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import { PROBED_BYTES } from '../format.js'
import { RawWriter } from './writer.js'
import type { InPlace, Reservation } from '../writable.js'

export class ProbedRawWriter extends RawWriter {
  override readonly fillBytes = PROBED_BYTES
  private readonly staged: StagedBytes
  private readonly refusals: Int32Array

  /**
   * @param probedName returns the name of the format that probing finds for these first bytes
   * @param refusals the threads' count of refused writes, 4 bytes
   */
  constructor(
    dataStore: WritableStore,
    private readonly probedName: (head: Buffer) => string,
    refusals: SharedArrayBuffer,
  ) {
    super(dataStore)
    this.staged = new StagedBytes(dataStore.path)
    this.refusals = new Int32Array(refusals)
  }

  override overwritable(offset: number, length: number): InPlace | undefined {
    return offset < PROBED_BYTES ? undefined : super.overwritable(offset, length)
  }

  override reserve(): Reservation {
    const length = Math.min(PROBED_BYTES, this.sizeBytes)
    return { offset: 0, length, store: this.staged, at: 0, isZeroed: false }
  }

  override link({ length }: Reservation): void {
    const { bytes } = this.staged
    const format = this.probedName(bytes.subarray(0, length))
    if (format !== 'raw') this.refuse(format)
    this.dataStore.write(bytes, 0, length, 0)
  }

  private refuse(format: string): never {
    const isRepeated = Atomics.add(this.refusals, 0, 1) > 0
    const what = `a write to sector 0 would make it a ${format} image at the next mount, since its format was guessed as raw`
    throw new ImageError('NOT_PERMITTED', `${what}; mount it with --format raw to allow that`, {
      path: this.dataStore.path,
      offset: 0,
      isRepeated,
    })
  }
}

/** The new content of the probed bytes. */
class StagedBytes implements WritableStore {
  readonly bytes = Buffer.alloc(PROBED_BYTES)
  readonly sizeBytes = PROBED_BYTES

  constructor(readonly path: string) {}

  read(target: Buffer, start: number, length: number, at: number): number {
    return this.bytes.copy(target, start, at, at + length)
  }

  write(source: Buffer, start: number, length: number, at: number): void {
    source.copy(this.bytes, at, start, start + length)
  }

  nextData(at: number): number {
    return at
  }

  nextHole(): number {
    return PROBED_BYTES
  }

  sync(): void {}

  punch(): boolean {
    return false
  }

  truncate(): void {
    throw new TypeError('it has one size')
  }
}
