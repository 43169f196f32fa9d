/** Unlocks the encrypted layers of a chain with their passphrases. */
import { legacyAesSpec } from '../../crypto/legacy-aes.js'
import { checkLuks1, readLuks1, reuseLuks1, unlockLuks1 } from '../../crypto/luks1.js'
import { createSectorCipher } from '../../crypto/sector-cipher.js'
import { ImageError } from '../../errors.js'
import type { StoreCipher } from '../../io/cipher-store.js'
import type { EncryptionMethod, LayerEncryption, LayerSpec } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import type { Chain } from './chain.js'
import { isPossibleLuks } from '../../formats/luks-area.js'
import { recoverChain } from './recovery.js'
import { OPENED_FILES, type StoreSource } from './store-source.js'

/** One or more candidates, the likeliest first. They are wiped after use. */
export type Passphrases = readonly Buffer[] & {
  /** Whether somebody has typed it, who may try again. */
  readonly isTyped?: boolean
  /** Called when they have been used, whether one was right or not. */
  readonly whenUsed?: () => void
}

/** Asks for the passphrase of the image at `path`; again for the same path, if what was typed is wrong. */
export type AskPassphrase = (path: string, method: EncryptionMethod) => Promise<Passphrases>

/** How often a passphrase may be typed. */
const MAX_TRIES = 3

/**
 * Returns the chain with the keys of all encrypted layers. Asks for each passphrase by the layer's path, the image's first.
 * Then it recovers an image that was not closed cleanly: nothing after that may refuse the image. Throws ImageError if a
 * passphrase is wrong or a header is damaged; and what `ask` throws.
 */
export async function unlockChain(
  chain: Chain,
  ask: AskPassphrase,
  source: StoreSource = OPENED_FILES,
): Promise<Chain> {
  const layers: LayerSpec[] = []
  const warnings = [...chain.warnings]
  try {
    for (const layer of chain.layers) {
      const { encryption } = layer
      layers.push(
        encryption ? { ...layer, encryption: await unlock(layer, encryption, ask, source) } : layer,
      )
      if (encryption?.method === 'AES') warnings.push(`${layer.path}: ${UNPROVEN}`)
    }
  } catch (error) {
    lockChain({ layers })
    throw error
  }
  const [top, ...below] = layers as [LayerSpec, ...LayerSpec[]]
  const unlocked = { ...chain, layers: [top, ...below] as Chain['layers'], warnings }
  try {
    return recoverChain(unlocked, source)
  } catch (error) {
    lockChain(unlocked)
    throw error
  }
}

/**
 * Returns `chain`, an image that was opened again, with the keys that it had as `before`. Throws ImageError if they may not be the
 * right ones.
 */
export async function unlockAgain(chain: Chain, before: Chain): Promise<Chain> {
  const layers = await Promise.all(
    chain.layers.map(async (layer, index) => {
      if (!layer.encryption) return layer
      const { method, headerArea } = layer.encryption
      const known = before.layers[index]?.encryption
      const spec =
        known?.spec && headerArea && method === known.method
          ? await reuseLuks1(OPENED_FILES.readable(layer), headerArea, known.spec.key)
          : undefined
      if (spec) return { ...layer, encryption: { ...layer.encryption, spec } }
      throw new ImageError('REFUSED', 'it is encrypted, and may have another key now', {
        path: layer.path,
        hint: 'unmount it, and mount it with its passphrase',
      })
    }),
  )
  return { ...chain, layers: layers as unknown as Chain['layers'] }
}

/** Wipes the keys: encrypted layers cannot be read or written any more. */
export function lockChain({ layers }: { readonly layers: readonly LayerSpec[] }): void {
  for (const { encryption } of layers) {
    if (encryption?.spec) new Uint8Array(encryption.spec.key).fill(0)
  }
}

const UNPROVEN =
  'it is encrypted with legacy AES, which cannot tell a wrong passphrase: with a wrong one its disk reads as noise, and writing destroys it'

async function unlock(
  layer: LayerSpec,
  encryption: LayerEncryption,
  ask: AskPassphrase,
  source: StoreSource,
): Promise<LayerEncryption> {
  const { method, headerArea } = encryption
  const { path } = layer
  if (method === 'AES') {
    const passphrases = await ask(path, method)
    try {
      return { method, spec: legacyAesSpec(passphrases[0] as Buffer) }
    } finally {
      for (const passphrase of passphrases) passphrase.fill(0)
    }
  }
  if (!headerArea) {
    const what = 'it is encrypted with LUKS but says nowhere where the LUKS header is'
    throw new ImageError('CORRUPT', what, { path, hint: 'restore it from a copy' })
  }
  const store = source.readable(layer)
  if (!isPossibleLuks(headerArea, layer.sizeBytes, sizesOf(layer).unitBytes)) {
    const { offset, length } = headerArea
    const what = `a LUKS header of ${length} bytes at ${offset} is impossible`
    throw new ImageError('CORRUPT', what, { path, hint: 'restore it from a copy' })
  }
  // Check the header before asking for a passphrase that would be useless.
  const header = readLuks1(store, headerArea)
  checkLuks1(store, headerArea, header)
  for (let tries = 1; tries <= MAX_TRIES; tries++) {
    const passphrases = await ask(path, method)
    try {
      for (const passphrase of passphrases) {
        const spec = await unlockLuks1(store, headerArea, header, passphrase)
        if (spec) return { method, headerArea, spec }
      }
    } finally {
      for (const passphrase of passphrases) passphrase.fill(0)
      passphrases.whenUsed?.()
    }
    if (passphrases.isTyped !== true) break
  }
  throw new ImageError('REFUSED', 'the passphrase is wrong: it opens none of its key slots', {
    path,
    hint: 'each encrypted layer of a chain has its own; see --passphrase-file in vimgfs help mount',
  })
}

/** Returns the cipher for a layer's clusters, for this thread; undefined if they are not encrypted. */
export function cipherOf(layer: LayerSpec): StoreCipher | undefined {
  const { encryption, path } = layer
  if (!encryption) return undefined
  const { method, spec } = encryption
  if (!spec) throw new TypeError(`${path} is encrypted and was not unlocked`)
  return {
    cipher: createSectorCipher(spec),
    countsBy: method === 'AES' ? 'disk' : 'file',
    ...sizesOf(layer),
  }
}

const sizesOf = (layer: LayerSpec) => ({ unitBytes: formatOf(layer).unitBytes(layer.spec) })
