/** The modes of disk encryption, a sector at a time and in the simplest way, from node:crypto's ECB and CBC. */
import { createCipheriv, createHash } from 'node:crypto'
import type { CipherSpec } from '../../src/crypto/spec.js'

export const SECTOR = 512
const BLOCK = 16

/** A cipher, its key in plain bytes. */
export type PlainSpec = Omit<CipherSpec, 'key'> & { readonly key: Buffer }

export function shared(spec: PlainSpec): CipherSpec {
  const key = new SharedArrayBuffer(spec.key.length)
  Buffer.from(key).set(spec.key)
  return { ...spec, key }
}

/** Encrypts whole sectors, the first of which has this number. */
export function encrypted(spec: PlainSpec, plain: Buffer, sector: number): Buffer {
  const sectors = []
  for (let at = 0; at < plain.length; at += SECTOR) {
    sectors.push(encryptedSector(spec, plain.subarray(at, at + SECTOR), sector + at / SECTOR))
  }
  return Buffer.concat(sectors)
}

function encryptedSector(spec: PlainSpec, plain: Buffer, sector: number): Buffer {
  const { mode, key } = spec
  if (mode === 'ecb') return aes('ecb', key, null, plain)
  const iv = ivOf(spec, sector)
  return mode === 'cbc' ? aes('cbc', key, iv, plain) : xts(key, iv, plain)
}

function aes(mode: 'ecb' | 'cbc', key: Buffer, iv: Buffer | null, plain: Buffer): Buffer {
  return createCipheriv(`aes-${key.length * 8}-${mode}`, key, iv)
    .setAutoPadding(false)
    .update(plain)
}

export function ivOf({ ivGenerator, ivHash, key }: PlainSpec, sector: number): Buffer {
  const iv = Buffer.alloc(BLOCK)
  iv.writeBigUInt64LE(BigInt(sector))
  switch (ivGenerator) {
    case 'plain64':
      return iv
    case 'plain':
      return iv.fill(0, 4)
    case 'essiv':
      return aes('ecb', createHash(`${ivHash}`).update(key).digest(), null, iv)
    case 'none':
      throw new Error('no initialization vector')
  }
}

/** IEEE 1619-2007, section 5.3, with the tweak as one number. */
function xts(keys: Buffer, iv: Buffer, plain: Buffer): Buffer {
  const half = keys.length / 2
  let tweak = number(aes('ecb', keys.subarray(half), null, iv))
  const blocks = []
  for (let at = 0; at < plain.length; at += BLOCK) {
    const inner = bytes(number(plain.subarray(at, at + BLOCK)) ^ tweak)
    blocks.push(bytes(number(aes('ecb', keys.subarray(0, half), null, inner)) ^ tweak))
    tweak <<= 1n
    if (tweak >> 128n) tweak = BigInt.asUintN(128, tweak) ^ 0x87n
  }
  return Buffer.concat(blocks)
}

const number = (block: Buffer): bigint =>
  block.readBigUInt64LE() | (block.readBigUInt64LE(8) << 64n)

function bytes(value: bigint): Buffer {
  const block = Buffer.alloc(BLOCK)
  block.writeBigUInt64LE(BigInt.asUintN(64, value))
  block.writeBigUInt64LE(value >> 64n, 8)
  return block
}
