/** Requests and replies as bytes; written from linux/fuse.h, apart from src/fs/protocol/protocol.ts. */

/** Hexadecimal digits; from a # to the end of its line is a comment. */
export const bytes = (text: string): Buffer => {
  const digits = text.replace(/#.*$/gm, '').replace(/\s+/g, '')
  if (!/^([0-9a-f]{2})*$/.test(digits)) throw new TypeError(`not hexadecimal: ${digits}`)
  return Buffer.from(digits, 'hex')
}

/** Little-endian, as hexadecimal digits. */
export const u32 = (value: number): string => little(BigInt(value), 4)
export const u64 = (value: number | bigint): string => little(BigInt(value), 8)
const little = (value: bigint, size: number): string => {
  const b = Buffer.alloc(8)
  b.writeBigUInt64LE(value)
  return b.toString('hex', 0, size)
}
export const text = (value: string): string => Buffer.from(value).toString('hex')
export const name = (value: string): string => text(`${value}\0`)

/** Over 2^53: it comes back to the bit or not at all. */
export const UNIQUE = 'fedcba9876543210'

export interface Asking {
  opcode: number
  node?: number
  uid?: number
  /** Hexadecimal digits. */
  args?: string
}

/** A request of which only `args` matter. */
export function message({ opcode, node = 1, uid = 1000, args = '' }: Asking): Buffer {
  const body = bytes(args)
  return bytes(`
    ${u32(40 + body.length)} ${u32(opcode)}
    ${UNIQUE}
    ${u64(node)}
    ${u32(uid)} ${u32(1001)} ${u32(4321)} # uid, gid, pid
    00000000                              # no extensions
    ${body.toString('hex')}`)
}

/** A reply: an error, or a payload of hexadecimal digits. */
export function reply({ error = 0, payload = '' }: { error?: number; payload?: string }): Buffer {
  const body = bytes(payload)
  const head = Buffer.alloc(16)
  head.writeUInt32LE(16 + body.length, 0)
  head.writeInt32LE(-error, 4)
  head.write(UNIQUE, 8, 'hex')
  return Buffer.concat([head, body])
}

/** fuse_read_in, for READ, READDIR and READDIRPLUS. */
export const readIn = ({ offset = 0, size = 4096, fh = 0 }): string => `
  ${u64(fh)} ${u64(offset)} ${u32(size)} 00000000
  ffffffffffffffff # lock owner: a hash, over 2^53
  00800000 00000000`
