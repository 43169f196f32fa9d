/**
 * The LUKS header, version 1: what it says about the encryption, and how a passphrase leads to the key (cryptsetup,
 * "LUKS1 On-Disk Format Specification", version 1.2.3; the section numbers below are from there).
 */
import { createHash, pbkdf2, timingSafeEqual } from 'node:crypto'
import { promisify } from 'node:util'
import { bytes, layout, u16be, u32be } from '../binary.js'
import { ImageError } from '../errors.js'
import type { Store } from '../io/store.js'
import { mergeKey } from './anti-forensic.js'
import { createSectorCipher, fastEngine } from './sector-cipher.js'
import {
  CIPHER_MODES,
  CIPHER_SECTOR_BYTES,
  type CipherMode,
  type CipherSpec,
  type SectorCipher,
} from './spec.js'

// Section 4, figures 1 and 3.
export const HEADER = layout({
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
export const SLOT = layout({
  state: u32be,
  iterations: u32be,
  salt: bytes(32),
  keySectors: u32be,
  stripes: u32be,
})
export const SLOTS = 8
export const SLOT_ACTIVE = 0x00ac71f3
export const SLOT_INACTIVE = 0x0000dead
export const HEADER_BYTES = HEADER.size + SLOTS * SLOT.size
export const MAGIC = Buffer.from('LUKS\xba\xbe', 'latin1')

/** The number that every writer uses; QEMU and cryptsetup refuse all others. */
export const STRIPES = 4000
/**
 * The largest number of hash rounds that trying all key slots may take. cryptsetup and QEMU choose the iterations so
 * that a slot takes two seconds on the machine that makes it: 10 to 20 million on fast processors, twice as many if the
 * key is longer than a digest. 2^30 allows eight such slots with a factor of three to spare, and takes about ten minutes
 * of one processor at worst, outside the event loop.
 */
export const MAX_ROUNDS = 2 ** 30

/** The hashes that QEMU knows, by names that node:crypto uses, too. cryptsetup knows more. */
export const HASHES: readonly string[] = [
  'md5',
  'sha1',
  'sha224',
  'sha256',
  'sha384',
  'sha512',
  'ripemd160',
]
const AES_KEY_BYTES: readonly number[] = [16, 24, 32]

/** A part of a file, in bytes. */
export interface LuksArea {
  readonly offset: number
  readonly length: number
}

export interface Luks1Header {
  /** The cipher with the bits of its key: "aes-256". */
  readonly cipher: string
  readonly cipherName: string
  /** The mode: "xts", "cbc". */
  readonly mode: string
  /** How initialization vectors are made: "plain64", "essiv"; "none" where the header does not say. */
  readonly ivGenerator: string
  /** The hash of the generator, if it has one. */
  readonly ivHash: string | undefined
  /** The hash of the key slots and of the key's digest. */
  readonly hash: string
  readonly uuid: string
  /** Where the data begin, in bytes from the LUKS header. qcow2 ignores it: its tables say where clusters are. */
  readonly payloadOffset: number
  /** The size of the master key, both keys of XTS together. */
  readonly keyBytes: number
  readonly masterKeyDigest: Buffer
  readonly masterKeySalt: Buffer
  readonly masterKeyIterations: number
  readonly slots: readonly Luks1Slot[]
}

export interface Luks1Slot {
  readonly isActive: boolean
  readonly iterations: number
  readonly salt: Buffer
  /** In bytes from the LUKS header. */
  readonly keyOffset: number
  readonly stripes: number
}

/**
 * Reads the LUKS header at the start of `area`. It does not decide whether the cipher that the header describes is
 * supported. Throws ImageError if the header is missing or damaged.
 */
export function readLuks1(store: Store, area: LuksArea): Luks1Header {
  const fail = failing(store)
  const b = Buffer.alloc(HEADER_BYTES)
  if (area.length < b.length || store.read(b, 0, b.length, area.offset) < b.length) {
    return fail('CORRUPT', 'the LUKS header is cut off')
  }
  const header = HEADER.decode(b)
  if (!header.magic.equals(MAGIC)) {
    return fail('CORRUPT', `there is no LUKS header at ${area.offset}`)
  }
  if (header.version !== 1) {
    return fail('CORRUPT', `the LUKS header has version ${header.version}, not 1`)
  }
  // For example "xts-plain64", "cbc-essiv:sha256" or, without initialization vectors, "ecb".
  const [, mode, ivGenerator = 'none', ivHash] =
    /^([^-]+)(?:-([^:]+)(?::(.+))?)?$/.exec(text(header.cipherMode)) ?? []
  if (mode === undefined) return fail('CORRUPT', 'the LUKS header names no cipher mode')
  const cipherName = text(header.cipherName)
  return {
    // The header counts both keys of XTS.
    cipher: `${cipherName}-${(mode === 'xts' ? header.keyBytes / 2 : header.keyBytes) * 8}`,
    cipherName,
    mode,
    ivGenerator,
    ivHash,
    hash: text(header.hash),
    uuid: text(header.uuid),
    payloadOffset: header.payloadSectors * CIPHER_SECTOR_BYTES,
    keyBytes: header.keyBytes,
    masterKeyDigest: header.keyDigest,
    masterKeySalt: header.keySalt,
    masterKeyIterations: header.keyIterations,
    slots: Array.from({ length: SLOTS }, (_, i) => {
      const slot = SLOT.decode(b, HEADER.size + i * SLOT.size)
      if (slot.state !== SLOT_ACTIVE && slot.state !== SLOT_INACTIVE) {
        return fail('CORRUPT', `its LUKS key slot ${i} is damaged`)
      }
      return {
        isActive: slot.state === SLOT_ACTIVE,
        iterations: slot.iterations,
        salt: slot.salt,
        keyOffset: slot.keySectors * CIPHER_SECTOR_BYTES,
        stripes: slot.stripes,
      }
    }),
  }
}

/**
 * Throws ImageError unless the image can be unlocked: the cipher is supported, and the active key slots lie in `area`
 * and stay within the limits. Call it before asking for a passphrase.
 */
export function checkLuks1(store: Store, area: LuksArea, header: Luks1Header): void {
  const fail = failing(store)
  cipherOf(store, header)
  if (!isHash(header.hash)) fail('UNSUPPORTED', `its LUKS header uses the hash "${header.hash}"`)
  const active = header.slots.flatMap((slot, index) => (slot.isActive ? [{ slot, index }] : []))
  if (active.length === 0) {
    fail('CORRUPT', 'all key slots of its LUKS header are empty, so no passphrase opens it')
  }
  if (header.masterKeyIterations === 0) {
    fail('CORRUPT', 'its LUKS header has no iterations for the digest of the key')
  }
  const materialBytes = header.keyBytes * STRIPES
  const blocksOf = (bytes: number) => Math.ceil(bytes / digestBytes(header.hash))
  let rounds = 0
  for (const { slot, index } of active) {
    const { iterations, stripes, keyOffset } = slot
    const damaged = (what: string) => fail('CORRUPT', `its LUKS key slot ${index} ${what}`)
    if (stripes !== STRIPES) damaged(`has ${stripes} stripes, not ${STRIPES}`)
    if (iterations === 0) damaged('has no iterations')
    if (keyOffset < HEADER_BYTES) damaged('lies over the LUKS header')
    if (keyOffset + materialBytes > area.length) damaged('reaches beyond the LUKS header')
    if (area.offset + keyOffset + materialBytes > store.sizeBytes) {
      damaged('reaches beyond the end of the file')
    }
    for (const other of active) {
      if (other.index > index && Math.abs(other.slot.keyOffset - keyOffset) < materialBytes) {
        damaged(`lies over key slot ${other.index}`)
      }
    }
    rounds += iterations * blocksOf(header.keyBytes)
    rounds += header.masterKeyIterations * blocksOf(header.masterKeyDigest.length)
  }
  if (rounds > MAX_ROUNDS) {
    fail(
      'UNSUPPORTED',
      `a passphrase would take ${rounds} rounds of ${header.hash}, more than ${MAX_ROUNDS}`,
    )
  }
}

export const derive = promisify(pbkdf2)

/**
 * Returns the cipher with the master key if `passphrase` opens one of the key slots, else undefined. It tries the slots
 * in order; each takes the time of its iterations. Throws ImageError as {@link checkLuks1} does. (Section 5.3, figure 6.)
 */
export async function unlockLuks1(
  store: Store,
  area: LuksArea,
  header: Luks1Header,
  passphrase: Uint8Array,
): Promise<CipherSpec | undefined> {
  checkLuks1(store, area, header)
  const cipher = cipherOf(store, header)
  for (const slot of header.slots) {
    if (!slot.isActive) continue
    const key = new SharedArrayBuffer(header.keyBytes)
    let isFound = false
    try {
      await openSlot(store, area, header, slot, passphrase, cipher, Buffer.from(key))
      isFound = await isMasterKey(header, Buffer.from(key))
    } finally {
      if (!isFound) Buffer.from(key).fill(0)
    }
    if (isFound) return { ...cipher, key }
  }
  return undefined
}

/** Returns the cipher with a key that is known already; undefined if it is not the key of this header. Throws as `checkLuks1`. */
export async function reuseLuks1(
  store: Store,
  area: LuksArea,
  key: SharedArrayBuffer,
): Promise<CipherSpec | undefined> {
  const header = readLuks1(store, area)
  checkLuks1(store, area, header)
  if (key.byteLength !== header.keyBytes) return undefined
  return (await isMasterKey(header, Buffer.from(key)))
    ? { ...cipherOf(store, header), key }
    : undefined
}

/** A cipher without its key. */
type Cipher = Omit<CipherSpec, 'key'>

/** Fills `key` with the result of opening the slot with `passphrase`: the master key, or noise. */
async function openSlot(
  store: Store,
  area: LuksArea,
  header: Luks1Header,
  slot: Luks1Slot,
  passphrase: Uint8Array,
  cipher: Cipher,
  key: Buffer,
): Promise<void> {
  const { hash } = header
  await withSlotCipher(header, cipher, slot, passphrase, (slotCipher, material, bytes) => {
    try {
      if (store.read(material, 0, bytes, area.offset + slot.keyOffset) < bytes) {
        failing(store)('CORRUPT', 'its LUKS key slots are cut off')
      }
      slotCipher.decrypt(material, 0, material.length, material, 0, 0)
      mergeKey(material.subarray(0, bytes), hash, key)
    } finally {
      material.fill(0)
    }
  })
}

/**
 * Calls `use` with the cipher of a key slot, a buffer of zeros for the slot's key material, and the material's size in
 * bytes. The material may end within the buffer's last sector; the rest of that sector is unused.
 */
export async function withSlotCipher(
  { keyBytes, hash }: Pick<Luks1Header, 'keyBytes' | 'hash'>,
  cipher: Cipher,
  { salt, iterations }: Pick<Luks1Slot, 'salt' | 'iterations'>,
  passphrase: Uint8Array,
  use: (slotCipher: SectorCipher, material: Buffer, bytes: number) => void,
): Promise<void> {
  const materialBytes = keyBytes * STRIPES
  const sectors = Math.ceil(materialBytes / CIPHER_SECTOR_BYTES)
  const slotKey = new SharedArrayBuffer(keyBytes)
  // This one is not shared, because parts of the key remain in its workspace.
  const engine = fastEngine()
  try {
    const derived = await derive(passphrase, salt, iterations, keyBytes, hash)
    Buffer.from(slotKey).set(derived)
    derived.fill(0)
    const slotCipher = createSectorCipher({ ...cipher, key: slotKey }, engine)
    use(slotCipher, Buffer.alloc(sectors * CIPHER_SECTOR_BYTES), materialBytes)
  } finally {
    Buffer.from(slotKey).fill(0)
    engine.workspace.memory.fill(0)
  }
}

async function isMasterKey(header: Luks1Header, key: Buffer): Promise<boolean> {
  const { masterKeyDigest, masterKeySalt, masterKeyIterations, hash } = header
  const digest = await derive(key, masterKeySalt, masterKeyIterations, masterKeyDigest.length, hash)
  return timingSafeEqual(digest, masterKeyDigest)
}

/** Returns the cipher of `header`. Throws ImageError if it is not supported. */
function cipherOf(store: Store, header: Luks1Header): Cipher {
  const { cipherName, mode, ivGenerator, ivHash, keyBytes } = header
  const unsupported = (what: string): never =>
    failing(store)('UNSUPPORTED', `its LUKS header uses the ${what}`)
  if (cipherName !== 'aes') return unsupported(`cipher "${cipherName}"`)
  if (!isMode(mode)) return unsupported(`cipher mode "${mode}"`)
  const keys = mode === 'xts' ? 2 : 1
  if (!AES_KEY_BYTES.includes(keyBytes / keys)) {
    return failing(store)(
      'CORRUPT',
      `its LUKS header has a key of ${keyBytes} bytes for aes-${mode}`,
    )
  }
  if (mode === 'ecb') return { mode, ivGenerator: 'none', ivHash: undefined }
  switch (ivGenerator) {
    // dm-crypt and QEMU ignore a hash that is given for these.
    case 'plain':
    case 'plain64':
      return { mode, ivGenerator, ivHash: undefined }
    case 'essiv': {
      if (ivHash === undefined) {
        return failing(store)('CORRUPT', 'its LUKS header names no hash for essiv')
      }
      // The digest of this hash is an AES key.
      if (!isHash(ivHash) || !AES_KEY_BYTES.includes(digestBytes(ivHash))) {
        return unsupported(`hash "${ivHash}" for essiv`)
      }
      return { mode, ivGenerator, ivHash }
    }
    default:
      return unsupported(`generator "${ivGenerator}" of initialization vectors`)
  }
}

const isMode = (name: string): name is CipherMode =>
  (CIPHER_MODES as readonly string[]).includes(name)

/** Reports whether LUKS and this node both know the hash: OpenSSL may be built or configured without some. */
function isHash(name: string): boolean {
  try {
    return HASHES.includes(name) && digestBytes(name) > 0
  } catch {
    return false
  }
}

export const digestBytes = (hash: string): number => createHash(hash).digest().length

const IF_DAMAGED = 'restore it from a copy; without this header its data cannot be decrypted'
const IF_UNSUPPORTED = 'copy its disk with qemu-img convert to an image that is encrypted as usual'

type Fail = (code: 'CORRUPT' | 'UNSUPPORTED', message: string) => never

const failing =
  ({ path }: Store): Fail =>
  (code, message) => {
    const hint = code === 'CORRUPT' ? IF_DAMAGED : IF_UNSUPPORTED
    throw new ImageError(code, message, { path, hint })
  }

/** Returns the text of a field up to its first NUL, or all of it. */
function text(field: Buffer): string {
  const nul = field.indexOf(0)
  return field.toString('utf8', 0, nul < 0 ? field.length : nul)
}
