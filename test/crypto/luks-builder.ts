/** LUKS1 containers byte by byte, with whatever a test wants in them (LUKS1 On-Disk Format Specification 1.2.3). */
import { createHash, pbkdf2Sync } from 'node:crypto'
import { noise } from '../fixtures/model.js'
import { encrypted, type PlainSpec, SECTOR } from './reference.js'

export const STRIPES = 4000
export const SLOTS = 8

// Where the fields lie, in bytes (section 4, figures 1 and 3).
export const AT = {
  version: 6,
  cipherName: 8,
  cipherMode: 40,
  hash: 72,
  payload: 104,
  keyBytes: 108,
  digest: 112,
  digestSalt: 132,
  digestIterations: 164,
  uuid: 168,
  slots: 208,
} as const
/** From the start of a slot. */
export const SLOT_AT = { state: 0, iterations: 4, salt: 8, keySectors: 40, stripes: 44 } as const
export const SLOT_BYTES = 48
export const slotAt = (slot: number): number => AT.slots + slot * SLOT_BYTES
const ACTIVE = 0x00ac71f3
const INACTIVE = 0x0000dead

export interface LuksSpec extends PlainSpec {
  readonly hash: string
  /** Of the slots, from the first on; undefined for an empty one. */
  readonly passphrases: readonly (string | undefined)[]
  /** What the header says of the mode, where it is not what the data are encrypted with. */
  readonly modeText?: string
  readonly iterations?: number
}

/** A header with its key slots, and nothing after them. */
export function luksContainer(spec: LuksSpec): Buffer {
  const { key, hash, mode, ivGenerator, ivHash, passphrases, iterations = 3 } = spec
  const materialSectors = Math.ceil((key.length * STRIPES) / SECTOR)
  // Each on a page, the first after the header's page.
  const slotSectors = Math.ceil(materialSectors / 8) * 8
  const file = Buffer.alloc((8 + SLOTS * slotSectors) * SECTOR)
  file.write('LUKS\xba\xbe', 0, 'latin1')
  file.writeUInt16BE(1, AT.version)
  file.write('aes', AT.cipherName)
  const generator = `${ivGenerator}${ivHash === undefined ? '' : `:${ivHash}`}`
  file.write(spec.modeText ?? `${mode}${mode === 'ecb' ? '' : `-${generator}`}`, AT.cipherMode)
  file.write(hash, AT.hash)
  file.writeUInt32BE(file.length / SECTOR, AT.payload)
  file.writeUInt32BE(key.length, AT.keyBytes)
  const digestSalt = noise(32, 1)
  pbkdf2Sync(key, digestSalt, iterations, 20, hash).copy(file, AT.digest)
  digestSalt.copy(file, AT.digestSalt)
  file.writeUInt32BE(iterations, AT.digestIterations)
  file.write('00000000-0000-4000-8000-000000000000', AT.uuid)
  for (let slot = 0; slot < SLOTS; slot++) {
    const at = slotAt(slot)
    const keySectors = 8 + slot * slotSectors
    const passphrase = passphrases[slot]
    file.writeUInt32BE(passphrase === undefined ? INACTIVE : ACTIVE, at + SLOT_AT.state)
    file.writeUInt32BE(keySectors, at + SLOT_AT.keySectors)
    file.writeUInt32BE(STRIPES, at + SLOT_AT.stripes)
    if (passphrase === undefined) continue
    const salt = noise(32, slot + 2)
    const slotKey = pbkdf2Sync(passphrase, salt, iterations + slot, key.length, hash)
    file.writeUInt32BE(iterations + slot, at + SLOT_AT.iterations)
    salt.copy(file, at + SLOT_AT.salt)
    const material = Buffer.alloc(materialSectors * SECTOR)
    split(key, hash, slot).copy(material)
    encrypted({ ...spec, key: slotKey }, material, 0).copy(file, keySectors * SECTOR)
  }
  return file
}

/** Stripes of noise, and one that makes a key of them (section 2.4). */
function split(key: Buffer, hash: string, seed: number): Buffer {
  const stripes = noise(key.length * (STRIPES - 1), seed)
  let sum: Buffer = Buffer.alloc(key.length)
  for (let at = 0; at < stripes.length; at += key.length) {
    sum = diffused(xor(sum, stripes.subarray(at, at + key.length)), hash)
  }
  return Buffer.concat([stripes, xor(sum, key)])
}

function diffused(block: Buffer, hash: string): Buffer {
  const { length } = createHash(hash).digest()
  const pieces: Buffer[] = []
  for (let at = 0; at < block.length; at += length) {
    const piece = block.subarray(at, at + length)
    const number = Buffer.from([0, 0, 0, pieces.length])
    pieces.push(
      createHash(hash)
        .update(Buffer.concat([number, piece]))
        .digest(),
    )
  }
  return Buffer.concat(pieces).subarray(0, block.length)
}

const xor = (a: Buffer, b: Buffer): Buffer => Buffer.from(a.map((byte, i) => byte ^ b[i]!))
