/**
 * Writes a new LUKS header, version 1, with a random key that one passphrase opens (cryptsetup, "LUKS1 On-Disk Format
 * Specification", version 1.2.3, section 5.1). Places, sizes and counts are those that QEMU and cryptsetup choose.
 */
import { randomBytes, randomFillSync, randomUUID } from 'node:crypto'
import { UsageError } from '../errors.js'
import type { WritableStore } from '../io/store.js'
import { splitKey } from './anti-forensic.js'
import {
  derive,
  digestBytes,
  HEADER,
  HEADER_BYTES,
  MAGIC,
  MAX_ROUNDS,
  SLOT,
  SLOT_ACTIVE,
  SLOT_INACTIVE,
  SLOTS,
  STRIPES,
  withSlotCipher,
} from './luks1.js'
import type { LuksChoice } from './luks1-options.js'
import { CIPHER_SECTOR_BYTES, type CipherSpec } from './spec.js'

/** Key slots begin here, and at multiples of this. */
const SLOT_ALIGNMENT = 4096
const SALT_BYTES = 32
const DIGEST_BYTES = 20
const MIN_ITERATIONS = 1000
/** As in cryptsetup, the digest of the key takes an eighth of the time of a slot. */
const DIGEST_SHARE = 8
const MEASURED_MICROSECONDS = 100_000

const slotBytesOf = (keyBytes: number): number =>
  Math.ceil((keyBytes * STRIPES) / SLOT_ALIGNMENT) * SLOT_ALIGNMENT

/** Returns the size of the header with all its slots, in bytes: where encrypted data may begin. */
export const luks1Bytes = ({ keyBytes }: Pick<LuksChoice, 'keyBytes'>): number =>
  SLOT_ALIGNMENT + SLOTS * slotBytesOf(keyBytes)

/** A header that is not in a file yet. */
export interface NewLuks {
  readonly cipher: CipherSpec
  /** Writes it at `at`, where the file has zeros. */
  write(store: WritableStore, at: number): void
}

/** Makes a header whose first slot `passphrase` opens. Throws UsageError if that would take too long to be opened again. */
export async function createLuks1(choice: LuksChoice, passphrase: Uint8Array): Promise<NewLuks> {
  const { keyBytes, hash, mode } = choice
  const key = new SharedArrayBuffer(keyBytes)
  const cipher: CipherSpec = {
    mode,
    ivGenerator: mode === 'ecb' ? 'none' : choice.ivGenerator,
    ivHash: mode === 'ecb' ? undefined : choice.ivHash,
    key,
  }
  randomFillSync(Buffer.from(key))
  const perSecond = await iterationsPerSecond(hash)
  // A derived key that is longer than a digest takes as many rounds for each digest that it begins.
  const blocks = Math.ceil(keyBytes / digestBytes(hash))
  const iterations = Math.floor((perSecond * choice.milliseconds) / 1000 / blocks)
  const keyIterations = Math.floor((perSecond * choice.milliseconds) / 1000 / DIGEST_SHARE)
  const rounds = iterations * blocks + keyIterations * Math.ceil(DIGEST_BYTES / digestBytes(hash))
  if (rounds > MAX_ROUNDS || Math.max(iterations, keyIterations) >= 2 ** 31) {
    throw new UsageError(`encrypt.iter-time=${choice.milliseconds} is too long`)
  }
  const header = await headerOf(choice, key, Math.max(keyIterations, MIN_ITERATIONS))
  const slot = {
    iterations: Math.max(iterations, MIN_ITERATIONS),
    salt: randomBytes(SALT_BYTES),
  }
  for (let i = 0; i < SLOTS; i++) {
    SLOT.put(header, HEADER.size + i * SLOT.size, {
      state: i === 0 ? SLOT_ACTIVE : SLOT_INACTIVE,
      iterations: i === 0 ? slot.iterations : 0,
      salt: i === 0 ? slot.salt : Buffer.alloc(SALT_BYTES),
      keySectors: (SLOT_ALIGNMENT + i * slotBytesOf(keyBytes)) / CIPHER_SECTOR_BYTES,
      stripes: STRIPES,
    })
  }
  const material = await materialOf(choice, cipher, slot, passphrase)
  return {
    cipher,
    write: (store, at) => {
      store.write(header, 0, header.length, at)
      store.write(material, 0, material.length, at + SLOT_ALIGNMENT)
    },
  }
}

/** Returns the header with the digest of the key, without its slots. */
async function headerOf(
  choice: LuksChoice,
  key: SharedArrayBuffer,
  keyIterations: number,
): Promise<Buffer> {
  const { mode, ivGenerator, ivHash, hash, keyBytes } = choice
  const salt = randomBytes(SALT_BYTES)
  const header = Buffer.alloc(HEADER_BYTES)
  const field = (text: string, bytes: number) => Buffer.concat([Buffer.from(text)], bytes)
  HEADER.put(header, 0, {
    magic: MAGIC,
    version: 1,
    cipherName: field(choice.cipherName, 32),
    cipherMode: field(`${mode}-${ivGenerator}${ivHash === undefined ? '' : `:${ivHash}`}`, 32),
    hash: field(hash, 32),
    payloadSectors: luks1Bytes(choice) / CIPHER_SECTOR_BYTES,
    keyBytes,
    keyDigest: await derive(Buffer.from(key), salt, keyIterations, DIGEST_BYTES, hash),
    keySalt: salt,
    keyIterations,
    uuid: field(randomUUID(), 40),
  })
  return header
}

/** Returns the split key, encrypted with what the passphrase makes. */
async function materialOf(
  choice: LuksChoice,
  cipher: CipherSpec,
  slot: { iterations: number; salt: Buffer },
  passphrase: Uint8Array,
): Promise<Buffer> {
  let made: Buffer = Buffer.alloc(0)
  await withSlotCipher(choice, cipher, slot, passphrase, (slotCipher, material, bytes) => {
    splitKey(Buffer.from(cipher.key), choice.hash, material.subarray(0, bytes))
    slotCipher.encrypt(material, 0, material.length, material, 0, 0)
    made = material
  })
  return made
}

/** Measures how many iterations, of one digest each, this machine makes in a second of a processor. */
async function iterationsPerSecond(hash: string): Promise<number> {
  for (let iterations = 2 ** 13; ; iterations *= 2) {
    const before = process.cpuUsage()
    await derive('measured', 'salt', iterations, 1, hash)
    const { user, system } = process.cpuUsage(before)
    const microseconds = user + system
    if (microseconds >= MEASURED_MICROSECONDS) return (iterations / microseconds) * 1e6
  }
}
