/**
 * AES over whole sectors in the modes of disk encryption: XTS (IEEE 1619-2007), CBC and ECB.
 *
 * A call for each sector would cost more than the encryption. So AES runs as ECB over many sectors at once, and the
 * masks that make it XTS or CBC are XORed before and after. Only CBC encryption needs a call for each sector.
 */
import { createHash } from 'node:crypto'
import {
  AES_BLOCK_BYTES,
  type BlockCipherMaker,
  type BlockTransform,
  evpBlockCipher,
  nodeBlockCipher,
} from './block-cipher.js'
import { simdWorkspace } from './simd-workspace.js'
import { CIPHER_SECTOR_BYTES, type CipherSpec, type SectorCipher } from './spec.js'
import { plainWorkspace, WORKSPACE, WORKSPACE_SECTORS, type Workspace } from './workspace.js'

/** The means that a cipher uses. Only its speed depends on them. */
export interface CipherEngine {
  readonly makeBlockCipher: BlockCipherMaker
  /** All ciphers of a thread may share it, because their calls do not overlap. */
  readonly workspace: Workspace
}

/** Returns an engine that works with every build of node. */
export const plainEngine = (): CipherEngine => ({
  makeBlockCipher: nodeBlockCipher,
  workspace: plainWorkspace(),
})

/** Returns the fastest engine that this machine supports. */
export const fastEngine = (): CipherEngine => ({
  makeBlockCipher: evpBlockCipher() ?? nodeBlockCipher,
  workspace: simdWorkspace() ?? plainWorkspace(),
})

let threads: CipherEngine | undefined
/** Returns this thread's engine. Making it takes milliseconds, so it is made only when an image is encrypted. */
const threadEngine = (): CipherEngine => (threads ??= fastEngine())

/** Returns a cipher for the calling thread. Do not wipe the key while the cipher is used. */
export function createSectorCipher(
  spec: CipherSpec,
  engine: CipherEngine = threadEngine(),
): SectorCipher {
  const key = Buffer.from(spec.key)
  switch (spec.mode) {
    case 'xts':
      return xts(key, ivMaker(spec, engine), engine)
    case 'cbc':
      return cbc(key, ivMaker(spec, engine), engine)
    case 'ecb':
      return ecb(key, engine)
  }
}

const SECTOR_WORDS = CIPHER_SECTOR_BYTES / 4
const BLOCK_WORDS = AES_BLOCK_BYTES / 4

/** The parts of a workspace: sectors, the masks that are XORed to them, and their initialization vectors. */
interface Parts {
  readonly data: Buffer
  readonly masks: Buffer
  readonly ivs: Buffer
  readonly dataWords: Uint32Array
  readonly maskWords: Uint32Array
  readonly ivWords: Uint32Array
}

function partsOf({ memory }: Workspace): Parts {
  const data = memory.subarray(WORKSPACE.data, WORKSPACE.masks)
  const masks = memory.subarray(WORKSPACE.masks, WORKSPACE.ivs)
  const ivs = memory.subarray(WORKSPACE.ivs, WORKSPACE.end)
  const words = (b: Buffer) => new Uint32Array(b.buffer, b.byteOffset, b.length / 4)
  return {
    data,
    masks,
    ivs,
    dataWords: words(data),
    maskWords: words(masks),
    ivWords: words(ivs),
  }
}

/** Puts the initialization vectors of `sectors` sectors from `sector` on into the workspace. */
type IvMaker = (sector: number, sectors: number) => void

function ivMaker({ ivGenerator, ivHash, key }: CipherSpec, engine: CipherEngine): IvMaker {
  const { ivs, ivWords } = partsOf(engine.workspace)
  const numbers = (sector: number, sectors: number, is64: boolean) => {
    let low = sector % 2 ** 32
    let high = is64 ? Math.floor(sector / 2 ** 32) : 0
    for (let at = 0; at < sectors * BLOCK_WORDS; at += BLOCK_WORDS) {
      ivWords[at] = low
      ivWords[at + 1] = high
      ivWords[at + 2] = 0
      ivWords[at + 3] = 0
      if (++low < 2 ** 32) continue
      low = 0
      if (is64) high++
    }
  }
  switch (ivGenerator) {
    case 'plain':
      return (sector, sectors) => numbers(sector, sectors, false)
    case 'plain64':
      return (sector, sectors) => numbers(sector, sectors, true)
    case 'essiv': {
      if (ivHash === undefined) throw new TypeError('essiv without a hash')
      // The whole digest is the key, whatever length the key of the data has: dm-crypt accepts no other.
      const salt = createHash(ivHash).update(Buffer.from(key)).digest()
      const encrypt = engine.makeBlockCipher('ecb-encrypt', salt)
      salt.fill(0)
      return (sector, sectors) => {
        numbers(sector, sectors, true)
        encrypt(ivs, ivs, sectors * AES_BLOCK_BYTES)
      }
    }
    case 'none':
      throw new TypeError('this mode needs initialization vectors')
  }
}

type CipherPass = SectorCipher['encrypt']

/**
 * Makes a run that copies as many sectors as the workspace holds to `from` in it, calls `work`, and copies the result
 * from the start of the workspace; then the next sectors.
 */
function inPieces(
  { memory }: Workspace,
  from: number,
  work: (bytes: number, sector: number) => void,
): CipherPass {
  const capacity = WORKSPACE_SECTORS * CIPHER_SECTOR_BYTES
  return (source, start, length, target, at, sector) => {
    check(source, start, length, target, at, sector)
    for (let done = 0; done < length; ) {
      const bytes = Math.min(capacity, length - done)
      source.copy(memory, from, start + done, start + done + bytes)
      work(bytes, sector + done / CIPHER_SECTOR_BYTES)
      memory.copy(target, at + done, WORKSPACE.data, WORKSPACE.data + bytes)
      done += bytes
    }
  }
}

/** Throws RangeError unless the bytes lie in the buffers: OpenSSL and libc do not check that. */
function check(
  source: Buffer,
  start: number,
  length: number,
  target: Buffer,
  at: number,
  sector: number,
): void {
  const isWithin = (b: Buffer, from: number) =>
    Number.isInteger(from) && from >= 0 && from + length <= b.length
  if (!(length > 0) || length % CIPHER_SECTOR_BYTES !== 0) {
    throw new RangeError(`${length} bytes are not whole sectors`)
  }
  if (!isWithin(source, start) || !isWithin(target, at)) {
    throw new RangeError(`${length} bytes are not in the buffers`)
  }
  const last = Number.MAX_SAFE_INTEGER - (length / CIPHER_SECTOR_BYTES - 1)
  if (!Number.isInteger(sector) || sector < 0 || sector > last) {
    throw new RangeError(`sector ${sector} is out of range`)
  }
}

function xts(
  key: Buffer,
  makeIvs: IvMaker,
  { workspace, makeBlockCipher }: CipherEngine,
): SectorCipher {
  const { data, ivs } = partsOf(workspace)
  const dataKey = key.subarray(0, key.length / 2)
  const encryptIvs = makeBlockCipher('ecb-encrypt', key.subarray(key.length / 2))
  const run = (transform: BlockTransform): CipherPass =>
    inPieces(workspace, WORKSPACE.data, (bytes, sector) => {
      const sectors = bytes / CIPHER_SECTOR_BYTES
      makeIvs(sector, sectors)
      encryptIvs(ivs, ivs, sectors * AES_BLOCK_BYTES)
      workspace.addTweaks(sectors)
      transform(data, data, bytes)
      workspace.addMasks(bytes)
    })
  return {
    encrypt: run(makeBlockCipher('ecb-encrypt', dataKey)),
    decrypt: run(makeBlockCipher('ecb-decrypt', dataKey)),
  }
}

function cbc(
  key: Buffer,
  makeIvs: IvMaker,
  { workspace, makeBlockCipher }: CipherEngine,
): SectorCipher {
  const { data, masks, dataWords, maskWords, ivWords } = partsOf(workspace)

  const decryptBlocks = makeBlockCipher('ecb-decrypt', key)
  // The ciphertext goes one block past the start of the masks: there, each block is the mask of the block after it.
  const ciphertext = masks.subarray(AES_BLOCK_BYTES)
  const decrypt = inPieces(workspace, WORKSPACE.masks + AES_BLOCK_BYTES, (bytes, sector) => {
    const sectors = bytes / CIPHER_SECTOR_BYTES
    decryptBlocks(ciphertext, data, bytes)
    makeIvs(sector, sectors)
    for (let i = 0; i < sectors; i++) {
      for (let word = 0; word < BLOCK_WORDS; word++) {
        maskWords[i * SECTOR_WORDS + word] = ivWords[i * BLOCK_WORDS + word]!
      }
    }
    workspace.addMasks(bytes)
  })

  const sectorViews = Array.from({ length: WORKSPACE_SECTORS }, (_, i) =>
    data.subarray(i * CIPHER_SECTOR_BYTES, (i + 1) * CIPHER_SECTOR_BYTES),
  )
  /** The last block that `chain` returned. It XORs this block to the next one. */
  const last = new Uint32Array(BLOCK_WORDS)
  let chain: BlockTransform | undefined
  const encrypt = inPieces(workspace, WORKSPACE.data, (bytes, sector) => {
    // After an error the state of the chain is unknown, so a new one is made.
    if (!chain) last.fill(0)
    const transform = chain ?? makeBlockCipher('cbc-encrypt', key)
    chain = undefined
    const sectors = bytes / CIPHER_SECTOR_BYTES
    makeIvs(sector, sectors)
    for (let i = 0; i < sectors; i++) {
      const first = i * SECTOR_WORDS
      // The chain XORs its last block to the first block. XORing it here, too, cancels that and leaves only the
      // initialization vector.
      for (let word = 0; word < BLOCK_WORDS; word++) {
        dataWords[first + word]! ^= last[word]! ^ ivWords[i * BLOCK_WORDS + word]!
      }
      const view = sectorViews[i]!
      transform(view, view, CIPHER_SECTOR_BYTES)
      const lastBlock = first + SECTOR_WORDS - BLOCK_WORDS
      for (let word = 0; word < BLOCK_WORDS; word++) last[word] = dataWords[lastBlock + word]!
    }
    chain = transform
  })
  return { encrypt, decrypt }
}

function ecb(key: Buffer, { makeBlockCipher }: CipherEngine): SectorCipher {
  const run =
    (transform: BlockTransform): CipherPass =>
    (source, start, length, target, at, sector) => {
      check(source, start, length, target, at, sector)
      transform(source.subarray(start, start + length), target.subarray(at, at + length), length)
    }
  return {
    encrypt: run(makeBlockCipher('ecb-encrypt', key)),
    decrypt: run(makeBlockCipher('ecb-decrypt', key)),
  }
}
