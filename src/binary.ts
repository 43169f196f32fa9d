/**
 * Structures of files and protocols, each declared once, to read and to write.
 *
 * Declared structures are for headers and requests. A table of a thousand entries stays the Buffer that it is on the
 * disk.
 */
import { ImageError } from './errors.js'

export interface Field<T> {
  /** Bytes. */
  readonly size: number
  get(b: Buffer, at: number): T
  put(b: Buffer, at: number, value: T): void
}

/** Returns `value`. Throws if a number of 64 bits would silently be rounded. */
export function exact(value: number): number {
  if (!Number.isSafeInteger(value)) {
    throw new ImageError('CORRUPT', `a 64-bit field holds about ${value}, more than 2^53`)
  }
  return value
}

export const u8: Field<number> = {
  size: 1,
  get: (b, at) => b.readUInt8(at),
  put: (b, at, v) => void b.writeUInt8(v, at),
}
export const u16be: Field<number> = {
  size: 2,
  get: (b, at) => b.readUInt16BE(at),
  put: (b, at, v) => void b.writeUInt16BE(v, at),
}
export const u32be: Field<number> = {
  size: 4,
  get: (b, at) => b.readUInt32BE(at),
  put: (b, at, v) => void b.writeUInt32BE(v, at),
}
/** A 64-bit count or offset, 0 to 2^53 - 1. */
export const u64be: Field<number> = {
  size: 8,
  get: (b, at) => exact(b.readUInt32BE(at) * 2 ** 32 + b.readUInt32BE(at + 4)),
  put: (b, at, v) => {
    b.writeUInt32BE(Math.floor(exact(v) / 2 ** 32), at)
    b.writeUInt32BE(v % 2 ** 32, at + 4)
  },
}
/** A 64-bit number of a file that is checked for damage later: numbers above 2^53 are rounded. */
export const rounded64be: Field<number> = {
  size: 8,
  get: (b, at) => Number(b.readBigUInt64BE(at)),
  put: u64be.put,
}
/** 64 bits that are not a number, such as feature flags. */
export const bits64be: Field<bigint> = {
  size: 8,
  get: (b, at) => b.readBigUInt64BE(at),
  put: (b, at, v) => void b.writeBigUInt64BE(v, at),
}
/** Any 64 bits of a file, exactly: for messages about damage, which `u64le` would round. */
export const bits64le: Field<bigint> = {
  size: 8,
  get: (b, at) => b.readBigUInt64LE(at),
  put: (b, at, v) => void b.writeBigUInt64LE(v, at),
}
export const u16le: Field<number> = {
  size: 2,
  get: (b, at) => b.readUInt16LE(at),
  put: (b, at, v) => void b.writeUInt16LE(v, at),
}
export const u32le: Field<number> = {
  size: 4,
  get: (b, at) => b.readUInt32LE(at),
  put: (b, at, v) => void b.writeUInt32LE(v, at),
}
export const i32le: Field<number> = {
  size: 4,
  get: (b, at) => b.readInt32LE(at),
  put: (b, at, v) => void b.writeInt32LE(v, at),
}
/** A 64-bit count or offset. Reading rounds above 2^53: other code bounds the kernel's requests. */
export const u64le: Field<number> = {
  size: 8,
  get: (b, at) => b.readUInt32LE(at) + b.readUInt32LE(at + 4) * 2 ** 32,
  put: (b, at, v) => {
    b.writeUInt32LE(v % 2 ** 32, at)
    b.writeUInt32LE(Math.floor(v / 2 ** 32), at + 4)
  },
}
/** A signed 64-bit number of at most 53 bits. */
export const i64le: Field<number> = {
  size: 8,
  get: (b, at) => Number(b.readBigInt64LE(at)),
  put: (b, at, v) => void b.writeBigInt64LE(BigInt(v), at),
}
/** Bytes that are only stored or echoed. */
export const bytes = (size: number): Field<Buffer> => ({
  size,
  get: (b, at) => b.subarray(at, at + size),
  put: (b, at, v) => void v.copy(b, at, 0, size),
})

type Value<F> = { [K in keyof F]: F[K] extends Field<infer T> ? T : never }

export interface Layout<F> {
  /** Bytes. */
  readonly size: number
  /** Where each field begins, in bytes from the structure's start. */
  readonly at: { readonly [K in keyof F]: number }
  decode(b: Buffer, base?: number): Value<F>
  /** Writes `value` at `base` of `b`. */
  put(b: Buffer, base: number, value: Value<F>): void
  encode(value: Value<F>): Buffer
}

export function layout<const F extends Record<string, Field<any>>>(fields: F): Layout<F> {
  let size = 0
  const places = Object.entries(fields).map(([name, field]) => {
    const at = size
    size += field.size
    return { name, field, at }
  })
  const put = (b: Buffer, base: number, value: Value<F>) => {
    for (const p of places) p.field.put(b, base + p.at, value[p.name])
  }
  return {
    size,
    at: Object.fromEntries(places.map(p => [p.name, p.at])) as Layout<F>['at'],
    decode: (b, base = 0) =>
      Object.fromEntries(places.map(p => [p.name, p.field.get(b, base + p.at)])) as Value<F>,
    put,
    encode: value => {
      const b = Buffer.alloc(size)
      put(b, 0, value)
      return b
    },
  }
}
