/**
 * The LUKS header of an encrypted image (cryptsetup's on-disk format, version 1), as far as it
 * describes the encryption: no passphrase is needed for that.
 */
import { bytes, layout, u16be, u32be } from '../../binary.js'
import { ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import type { Qcow2Header } from './header.js'

const HEADER = layout({
  magic: bytes(6),
  version: u16be,
  cipherName: bytes(32),
  cipherMode: bytes(32),
  hash: bytes(32),
  payloadSectors: u32be,
  keyBytes: u32be,
  keyDigest: bytes(20),
  keySalt: bytes(32),
  keyIterations: u32be,
  uuid: bytes(40),
})
const SLOT = layout({
  state: u32be,
  iterations: u32be,
  salt: bytes(32),
  keySectors: u32be,
  stripes: u32be,
})
const SLOTS = 8
const SLOT_ACTIVE = 0x00ac71f3
const SLOT_INACTIVE = 0x0000dead
const MAGIC = Buffer.from('LUKS\xba\xbe', 'latin1')
const SECTOR_BYTES = 512

export interface Luks {
  /** With the bits of its key: "aes-256". */
  readonly cipher: string
  /** "xts", "cbc". */
  readonly mode: string
  /** How initialization vectors are made: "plain64", "essiv". */
  readonly ivGenerator: string
  /** The hash that the generator is given, where it is given one. */
  readonly ivHash: string | undefined
  readonly hash: string
  readonly uuid: string
  /** Bytes from the LUKS header on. qcow2 does not use it: its clusters are where its tables say. */
  readonly payloadOffset: number
  readonly masterKeyIterations: number
  readonly slots: readonly LuksSlot[]
}

export interface LuksSlot {
  readonly isActive: boolean
  readonly iterations: number
  /** Bytes from the LUKS header on. */
  readonly keyOffset: number
  readonly stripes: number
}

/** Throws ImageError for a header that is missing or damaged. */
export function readLuks(store: Store, { encryption }: Qcow2Header): Luks {
  const fail = (message: string): never => {
    throw new ImageError('CORRUPT', message, {
      path: store.path,
      hint: 'restore it from a copy; without this header its data cannot be decrypted',
    })
  }
  if (!encryption)
    return fail('it is encrypted with LUKS but says nowhere where the LUKS header is')
  const area = Buffer.alloc(HEADER.size + SLOTS * SLOT.size)
  const got = store.read(area, 0, area.length, encryption.offset)
  if (got < area.length || encryption.length < area.length) fail('the LUKS header is cut off')
  const header = HEADER.decode(area)
  if (!header.magic.equals(MAGIC)) fail(`there is no LUKS header at ${encryption.offset}`)
  if (header.version !== 1) fail(`the LUKS header has version ${header.version}, not 1`)
  // For example "xts-plain64" or "cbc-essiv:sha256".
  const [, mode, ivGenerator, ivHash] =
    /^([^-]+)-([^:]+)(?::(.+))?$/.exec(text(header.cipherMode)) ?? []
  if (mode === undefined || ivGenerator === undefined)
    return fail('the LUKS header names no cipher mode')
  // XTS takes two keys, and both are counted.
  const keyBytes = mode === 'xts' ? header.keyBytes / 2 : header.keyBytes
  return {
    cipher: `${text(header.cipherName)}-${keyBytes * 8}`,
    mode,
    ivGenerator,
    ivHash,
    hash: text(header.hash),
    uuid: text(header.uuid),
    payloadOffset: header.payloadSectors * SECTOR_BYTES,
    masterKeyIterations: header.keyIterations,
    slots: Array.from({ length: SLOTS }, (_, i) => {
      const slot = SLOT.decode(area, HEADER.size + i * SLOT.size)
      if (slot.state !== SLOT_ACTIVE && slot.state !== SLOT_INACTIVE)
        fail(`its LUKS key slot ${i} is damaged`)
      return {
        isActive: slot.state === SLOT_ACTIVE,
        iterations: slot.iterations,
        keyOffset: slot.keySectors * SECTOR_BYTES,
        stripes: slot.stripes,
      }
    }),
  }
}

/** Up to the first NUL, if there is one. */
function text(field: Buffer): string {
  const nul = field.indexOf(0)
  return field.toString('utf8', 0, nul < 0 ? field.length : nul)
}
