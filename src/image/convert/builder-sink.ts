/** Fills a new image. */
import type { ImageBuilder, Place } from '../../formats/creating.js'
import type { FileSpec } from '../../io/file-spec.js'
import { clone, CLONED_BLOCK_BYTES, hasReflinks } from '../../io/reflinks.js'
import { WritableFileStore } from '../../io/store.js'
import type { ClonedPart, Sink } from './sink.js'

/** Reads the source's disk: used for what cannot be cloned. */
type ReadSource = (target: Buffer, offset: number) => void

/** How much is copied at once where cloning is refused, in bytes. */
const COPIED_BYTES = 2 ** 20

export class BuilderSink implements Sink {
  readonly unitBytes: number
  readonly packing: Sink['packing']
  readonly storesZeros = false
  readonly clone?: NonNullable<Sink['clone']>

  /**
   * @param isPacked whether units are stored compressed
   * @param target the descriptor of a file of the image
   */
  constructor(
    private readonly builder: ImageBuilder,
    isPacked: boolean,
    target: number,
    private readonly read: ReadSource,
  ) {
    this.unitBytes = builder.unitBytes
    const { packing, isPackedOnly: isAlways = false } = builder
    this.packing = isPacked && packing ? { ...packing, isAlways } : undefined
    if (hasReflinks(target)) this.clone = (...args) => this.cloneParts(...args)
  }

  write(bytes: Buffer, offset: number): void {
    let done = 0
    for (const { store, at, length } of this.builder.place(offset, bytes.length)) {
      store.write(bytes, done, length, at)
      done += length
    }
  }

  pack(packed: Buffer, offset: number): void {
    this.builder.pack(offset, packed)
  }

  zero(offset: number, length: number): void {
    this.builder.zero(offset, length)
  }

  private cloneParts(offset: number, length: number, parts: readonly ClonedPart[]): boolean {
    let isShared = false
    let start = offset
    for (const place of this.builder.place(offset, length)) {
      const end = start + place.length
      for (const part of parts) {
        const from = Math.max(part.offset, start)
        const bytes = Math.min(part.offset + part.length, end) - from
        if (bytes <= 0) continue
        const at = part.at + (from - part.offset)
        const to = { ...place, at: place.at + (from - start), length: bytes }
        const shared = share(to, part, at)
        if (shared > 0) isShared = true
        this.copy(to, from, shared)
      }
      start = end
    }
    return isShared
  }

  /** Copies what is left of a place, from its byte `done` on. */
  private copy({ store, at, length }: Place, offset: number, done: number): void {
    if (done === length) return
    const bytes = Buffer.allocUnsafeSlow(Math.min(length - done, COPIED_BYTES))
    for (let copied = done; copied < length; copied += bytes.length) {
      const part = bytes.subarray(0, Math.min(bytes.length, length - copied))
      this.read(part, offset + copied)
      store.write(part, 0, part.length, at + copied)
    }
  }
}

/** Returns where the bytes of a file end that `at` counts. */
const endOf = ({ sizeBytes, part }: FileSpec): number => (part?.startAt ?? 0) + sizeBytes

/** Clones the start of a place from `at` of the part's file. Returns how many bytes are done. */
function share({ store, at: to, length }: Place, { file }: ClonedPart, at: number): number {
  if (!(store instanceof WritableFileStore) || to % CLONED_BLOCK_BYTES !== 0) return 0
  // The file may end within its last unit.
  const inside = Math.max(0, Math.min(length, endOf(file) - at))
  const bytes = inside - (inside % CLONED_BLOCK_BYTES)
  if (bytes === 0 || !clone(store.fd, file.fd, at, bytes, to)) return 0
  store.wroteTo(to + bytes)
  return bytes
}
