/**
 * The anti-forensic splitter spreads a key over many stripes, so that overwriting any part of a key slot destroys
 * the key (cryptsetup, "LUKS1 On-Disk Format Specification", version 1.2.3, section 2.4).
 */
import { createHash, randomFillSync } from 'node:crypto'

/** Joins the stripes in `material`, each of `key.length` bytes, and puts the key into `key`. */
export function mergeKey(material: Buffer, hash: string, key: Buffer): void {
  const digestBytes = createHash(hash).digest().length
  key.fill(0)
  const last = material.length - key.length
  for (let at = 0; at <= last; at += key.length) {
    for (let i = 0; i < key.length; i++) key[i]! ^= material[at + i]!
    if (at < last) diffuse(key, hash, digestBytes)
  }
}

/** Fills `material` with stripes that join to `key`. All but the last one are random. */
export function splitKey(key: Buffer, hash: string, material: Buffer): void {
  const digestBytes = createHash(hash).digest().length
  const last = material.length - key.length
  randomFillSync(material, 0, last)
  const block = Buffer.alloc(key.length)
  for (let at = 0; at < last; at += key.length) {
    for (let i = 0; i < key.length; i++) block[i]! ^= material[at + i]!
    diffuse(block, hash, digestBytes)
  }
  for (let i = 0; i < key.length; i++) material[last + i] = block[i]! ^ key[i]!
  block.fill(0)
}

/** Replaces each piece of `block`, as long as a digest, by the digest of its number and its bytes. */
function diffuse(block: Buffer, hash: string, digestBytes: number): void {
  const number = Buffer.alloc(4)
  let at = 0
  for (let index = 0; at < block.length; index++) {
    number.writeUInt32BE(index)
    const piece = block.subarray(at, at + digestBytes)
    const digest = createHash(hash).update(number).update(piece).digest()
    // The last piece may be shorter: the beginning of the digest replaces it.
    at += digest.copy(piece)
    digest.fill(0)
  }
}
