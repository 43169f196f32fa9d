/** Kinds of encrypted qcow2 images: those that are encrypted neither way, made by QEMU, then encrypted. */
import { type KindEncryption, type Recipe, RECIPES } from './kinds.js'
import { AES_XTS, LEGACY_AES, PASSPHRASE } from './reference-cipher.js'

const K = 1024

/** QEMU finds no header to take the key from, so it treats the image as not encrypted. */
const LUKS: KindEncryption = AES_XTS
export const SECRET = `--object secret,id=key,data=${PASSPHRASE}`
const AES: KindEncryption = { ...LEGACY_AES, qemuOptions: 'encrypt.key-secret=key' }

const CRYPT_METHOD_AT = 32
const SIZE_AT = 24

const luks = (recipe: Recipe): Recipe => ({
  ...recipe,
  title: `LUKS, ${recipe.title}`,
  encryption: LUKS,
})

const aes = (recipe: Recipe): Recipe => {
  const patch = (image: Buffer) => void image.writeUInt32BE(1, CRYPT_METHOD_AT)
  const steps = [...(recipe.steps ?? []), { patch }]
  return { ...recipe, title: `AES, ${recipe.title}`, encryption: AES, steps }
}

const named = (title: string): Recipe => {
  const found = RECIPES.find(recipe => recipe.title === title)
  if (!found) throw new Error(`no kind ${title}`)
  return found
}

/** The disk ends within a sector. */
const RAGGED: Recipe = {
  title: 'a size of part of a sector more',
  sizeK: 130,
  cluster: 4 * K,
  parentK: 200,
  steps: [
    { io: ['write -P 1 0 20k', 'write -P 2 126k 4k'] },
    { patch: image => void image.writeBigUInt64BE(BigInt(129 * K + 700), SIZE_AT) },
  ],
}

/** Bytes missing from the file decrypt as if zeros were stored there, so they read as noise. QEMU does the same. */
const CUT_OFF: Recipe = {
  title: 'the file ends within a sector of its last cluster',
  sizeK: 512,
  cluster: 4 * K,
  steps: [{ io: ['write -P 1 0 20k', 'write -P 2 40k 4k'] }],
  missingBytes: 1500,
}
const CUT_OFF_DATA: Recipe = {
  title: 'the data file ends within a sector',
  sizeK: 512,
  cluster: 4 * K,
  dataFile: 'mapped',
  steps: [{ io: ['write -P 1 0 512k'] }],
  missingBytes: 1500,
}

export const ENCRYPTED_RECIPES: readonly Recipe[] = [
  ...[
    'v3, 512, empty',
    'snapshots',
    'a parent, snapshots, 512',
    'compressed, 512',
    'subclusters and snapshots',
    'subclusters over a parent',
    'data file',
    'a shorter parent',
    'a longer parent',
    'preallocated tables',
  ].map(title => luks(named(title))),
  luks(RAGGED),
  luks(CUT_OFF),
  luks(CUT_OFF_DATA),
  ...[
    'v2, 4 KiB',
    'snapshots, 512',
    'snapshots over compressed clusters',
    'subclusters and snapshots',
    'data file, subclusters',
    'a parent, v2',
    'a longer parent',
    'it grows under snapshots',
    'bitmaps',
  ].map(title => aes(named(title))),
  aes(RAGGED),
  aes(CUT_OFF),
]
