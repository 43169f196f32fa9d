/** Sectors encrypted by OpenSSL one by one, and by nothing of src/: what others have to agree with. */
import { type Cipher, createCipheriv, createDecipheriv, type Decipher } from 'node:crypto'
import type { CipherSpec } from '../../src/crypto/spec.js'
import { createSectorCipher } from '../../src/crypto/sector-cipher.js'
import type { StoreCipher } from '../../src/io/cipher-store.js'
import { noise } from '../fixtures/model.js'

const SECTOR = 512
const IV_BYTES = 16

/** How the data of an image are encrypted. Initialization vectors are numbers of sectors in 64 bits. */
export interface Encryption {
  readonly spec: CipherSpec
  /** Which sector's number counts: that of the disk, or that of the file. */
  readonly countsBy: StoreCipher['countsBy']
}

export const PASSPHRASE = 'soundness'

/** What old images have, with that passphrase. */
export const LEGACY_AES: Encryption = {
  spec: specOf('cbc', Buffer.concat([Buffer.from(PASSPHRASE)], 16)),
  countsBy: 'disk',
}

/** What LUKS images mostly have, with a key of its own. */
export const AES_XTS: Encryption = { spec: specOf('xts', noise(64, 20)), countsBy: 'file' }

function specOf(mode: 'cbc' | 'xts', bytes: Buffer): CipherSpec {
  const key = new SharedArrayBuffer(bytes.length)
  bytes.copy(Buffer.from(key))
  return { mode, ivGenerator: 'plain64', ivHash: undefined, key }
}

/** The program's own, of clusters of so many bytes. */
export const storeCipher = ({ spec, countsBy }: Encryption, unitBytes: number): StoreCipher => ({
  cipher: createSectorCipher(spec),
  countsBy,
  unitBytes,
})

/** Whole sectors, of which the first has the number `sector`. */
export const encrypted = (how: Encryption, plain: Buffer, sector: number): Buffer =>
  translated(how, plain, sector, createCipheriv)

export function decrypted(how: Encryption, bytes: Buffer, sector: number): Buffer {
  const all = Buffer.alloc(bytes.length)
  for (let at = 0; at < bytes.length; at += SECTOR) {
    decryptedSector(how, bytes.subarray(at, at + SECTOR), sector + at / SECTOR).copy(all, at)
  }
  return all
}

interface Known {
  readonly bytes: Buffer
  readonly plain: Buffer
}

/** What sectors were when they were decrypted last: from one cut to the next few change. */
const known = new WeakMap<CipherSpec, Map<number, Known>>()

function decryptedSector(how: Encryption, bytes: Buffer, sector: number): Buffer {
  let sectors = known.get(how.spec)
  if (!sectors) {
    sectors = new Map()
    known.set(how.spec, sectors)
  }
  const last = sectors.get(sector)
  if (last?.bytes.equals(bytes)) return last.plain
  const plain = translated(how, bytes, sector, createDecipheriv)
  sectors.set(sector, { bytes: Buffer.from(bytes), plain })
  return plain
}

function translated(
  { spec: { mode, key } }: Encryption,
  bytes: Buffer,
  sector: number,
  create: (name: string, key: Buffer, iv: Buffer) => Cipher | Decipher,
): Buffer {
  const all = Buffer.alloc(bytes.length)
  const keyBits = (key.byteLength * 8) / (mode === 'xts' ? 2 : 1)
  const iv = Buffer.alloc(IV_BYTES)
  for (let at = 0; at < bytes.length; at += SECTOR) {
    iv.writeBigUInt64LE(BigInt(sector + at / SECTOR))
    const cipher = create(`aes-${keyBits}-${mode}`, Buffer.from(key), iv)
    cipher
      .setAutoPadding(false)
      .update(bytes.subarray(at, at + SECTOR))
      .copy(all, at)
  }
  return all
}
