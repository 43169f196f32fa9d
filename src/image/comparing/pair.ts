/** Two disks side by side: what each piece of both is, and whether the tables show that both read the same there. */
import fs from 'node:fs'
import type { LayerSpec } from '../../formats/format.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { Part, Source } from '../reading/source.js'

export interface Pair {
  readonly offset: number
  readonly length: number
  readonly a: Part
  readonly b: Part
  /** Whether the bytes are equal: both are zeros, or both come from one place. */
  readonly isSame: boolean
}

/** Yields the pairs of `length` bytes at the start of both disks. Reads no data. Throws ImageError for damaged tables. */
export function* pairsOf(a: Source, b: Source, length: number): Generator<Pair> {
  const origins = new Origins(a, b)
  const parts = [a.parts(0, length), b.parts(0, length)] as const
  const next = (side: 0 | 1) => parts[side].next().value as Part
  let [one, other] = length > 0 ? [next(0), next(1)] : []
  for (let offset = 0; one && other && offset < length; ) {
    const ends = [one.offset + one.length, other.offset + other.length] as const
    const end = Math.min(...ends)
    yield {
      offset,
      length: end - offset,
      a: one,
      b: other,
      isSame: origins.areSame(one, other),
    }
    offset = end
    if (offset === length) return
    if (ends[0] === end) one = next(0)
    if (ends[1] === end) other = next(1)
  }
}

/** Compares where the bytes of two disks come from. */
class Origins {
  private readonly ids = new Map<number, string>()

  constructor(
    private readonly a: Source,
    private readonly b: Source,
  ) {}

  areSame(a: Part, b: Part): boolean {
    if (a.kind !== 'data' || b.kind !== 'data') return a.kind !== 'data' && b.kind !== 'data'
    if (!a.origin || !b.origin || !isSamePlace(a, b)) return false
    if (this.idOf(a.origin.file) !== this.idOf(b.origin.file)) return false
    if (a.place && b.place) return true
    // Only the same image decompresses and decrypts in the same way.
    return this.isSameLayer(this.a.layers[a.depth], this.b.layers[b.depth])
  }

  private isSameLayer(a: LayerSpec | undefined, b: LayerSpec | undefined): boolean {
    return (
      a !== undefined && b !== undefined && a.format === b.format && this.idOf(a) === this.idOf(b)
    )
  }

  /** Returns the device and the inode of an open file, and which part of it it is. */
  private idOf({ fd, part }: Pick<FileSpec, 'fd' | 'part'>): string {
    const known = this.ids.get(fd)
    if (known !== undefined) return known
    const { dev, ino } = fs.fstatSync(fd, { bigint: true })
    const id = `${dev}:${ino}:${part?.startAt ?? 0}`
    this.ids.set(fd, id)
    return id
  }
}

function isSamePlace(a: Part, b: Part): boolean {
  const [one, other] = [a.origin?.packed, b.origin?.packed]
  const places = [a, b].map(part => (one ? part.skip : (part.origin?.at ?? 0)) - part.offset)
  if (places[0] !== places[1]) return false
  if (!one || !other) return one === other
  return one.length === other.length && one.every((number, i) => number === other[i])
}
