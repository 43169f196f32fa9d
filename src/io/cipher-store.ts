/**
 * A store whose bytes are encrypted in its file, sector by sector. A write that is not aligned reads, changes and writes
 * the sectors at its ends. So threads that share a sector must exclude each other, as the stripes of a DiskLock do.
 */
import assert from 'node:assert'
import { CIPHER_SECTOR_BYTES as SECTOR_BYTES, type SectorCipher } from '../crypto/spec.js'
import type { Store, WritableStore } from './store.js'

export interface StoreCipher {
  readonly cipher: SectorCipher
  /**
   * The sector number that makes an initialization vector: that of the disk, or that of the file. With 'disk' every read and
   * write has to say where on the disk its bytes are.
   */
  readonly countsBy: 'disk' | 'file'
  /** The unit within which the file may end, in bytes: ciphertext that is missing there counts as zeros. */
  readonly unitBytes: number
}

/** How much is encrypted at once, in bytes. */
const PIECE_BYTES = 2 ** 20

/** Holds encrypted bytes for a moment; each thread has its own. */
let scratch = Buffer.alloc(0)

function scratchOf(bytes: number): Buffer {
  if (scratch.length < bytes) scratch = Buffer.allocUnsafeSlow(bytes)
  return scratch
}

export class CipherStore implements Store {
  /** False: a hole does not decrypt to zeros. */
  readonly holesReadAsZeros = false

  constructor(
    /** The file, with encrypted bytes. */
    readonly base: Store,
    protected readonly how: StoreCipher,
  ) {}

  get path(): string {
    return this.base.path
  }

  get sizeBytes(): number {
    return this.base.sizeBytes
  }

  read(target: Buffer, start: number, length: number, at: number, offset?: number): number {
    const counted = this.counted(at, offset)
    if (at % SECTOR_BYTES === 0 && length % SECTOR_BYTES === 0) {
      return this.readSectors(target, start, length, at, counted)
    }
    const head = at % SECTOR_BYTES
    const whole = Math.ceil((head + length) / SECTOR_BYTES) * SECTOR_BYTES
    const sectors = scratchOf(whole)
    const got = this.readSectors(sectors, 0, whole, at - head, counted - head)
    const bytes = Math.max(0, Math.min(length, got - head))
    sectors.copy(target, start, head, head + bytes)
    return bytes
  }

  /** Reports no holes: a hole does not decrypt to zeros. */
  nextData(at: number): number {
    return at
  }

  nextHole(_at: number): number {
    return Number.MAX_SAFE_INTEGER
  }

  /** Returns the place that sectors are counted by, in bytes. */
  protected counted(at: number, offset: number | undefined): number {
    if (this.how.countsBy === 'file') return at
    assert(offset !== undefined, 'an encrypted disk is read without a place on it')
    return offset
  }

  /** Reads and decrypts whole sectors. `counted`: where they are counted, in bytes. */
  protected readSectors(
    target: Buffer,
    start: number,
    length: number,
    at: number,
    counted: number,
  ): number {
    // The size before the read: meanwhile other threads may make the file longer within its last unit.
    const { sizeBytes } = this.base
    let got = this.base.read(target, start, length, at)
    if (got < length) {
      const filled = Math.min(length, this.readable(at, got, sizeBytes))
      target.fill(0, start + got, start + filled)
      got = filled
    }
    if (got > 0) {
      this.how.cipher.decrypt(target, start, got, target, start, counted / SECTOR_BYTES)
    }
    return got
  }

  /** Returns how many bytes can be decrypted at `at` if the file has `got`: whole sectors, up to the end of its last unit. */
  private readable(at: number, got: number, sizeBytes: number): number {
    // The file has become shorter: the caller reports that.
    if (at + got < sizeBytes) return got - (got % SECTOR_BYTES)
    const { unitBytes } = this.how
    return Math.max(got, Math.ceil(sizeBytes / unitBytes) * unitBytes - at)
  }
}

export class WritableCipherStore extends CipherStore implements WritableStore {
  constructor(
    override readonly base: WritableStore,
    how: StoreCipher,
  ) {
    super(base, how)
  }

  write(source: Buffer, start: number, length: number, at: number, offset?: number): void {
    const shift = this.counted(at, offset) - at
    for (let done = 0; done < length; ) {
      const head = (at + done) % SECTOR_BYTES
      const bytes = Math.min(length - done, PIECE_BYTES - head)
      this.writePiece(source, start + done, bytes, at + done - head, head, shift)
      done += bytes
    }
  }

  /** Writes `bytes` bytes, starting at byte `head` of the sector at `at`, which is counted as the one at `at + shift`. */
  private writePiece(
    source: Buffer,
    start: number,
    bytes: number,
    at: number,
    head: number,
    shift: number,
  ): void {
    const whole = Math.ceil((head + bytes) / SECTOR_BYTES) * SECTOR_BYTES
    const sectors = scratchOf(Math.max(whole, PIECE_BYTES))
    const { cipher } = this.how
    const sector = (at + shift) / SECTOR_BYTES
    if (whole === bytes) {
      cipher.encrypt(source, start, whole, sectors, 0, sector)
    } else {
      const last = whole - SECTOR_BYTES
      if (head > 0) this.readSector(sectors, 0, at, shift)
      const isSplit = (head + bytes) % SECTOR_BYTES !== 0
      if (isSplit && (last > 0 || head === 0)) {
        this.readSector(sectors, last, at + last, shift)
      }
      source.copy(sectors, head, start, start + bytes)
      cipher.encrypt(sectors, 0, whole, sectors, 0, sector)
    }
    this.base.write(sectors, 0, whole, at)
  }

  /** Reads one sector as a reader sees it; zeros past the end. */
  private readSector(target: Buffer, start: number, at: number, shift: number): void {
    const got = this.readSectors(target, start, SECTOR_BYTES, at, at + shift)
    target.fill(0, start + got, start + SECTOR_BYTES)
  }

  sync(): void {
    this.base.sync()
  }

  /** Refuses: a hole would not read as zeros. */
  punch(): boolean {
    return false
  }

  allocate(at: number, length: number): boolean {
    return this.base.allocate?.(at, length) ?? false
  }

  truncate(sizeBytes: number): void {
    this.base.truncate(sizeBytes)
  }
}
