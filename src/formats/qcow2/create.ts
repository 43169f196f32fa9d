/** Makes qcow2 images. */
import { copiedBitmaps } from './bitmap-copy.js'
import { createLuks1, luks1Bytes } from '../../crypto/luks1-write.js'
import { createSectorCipher } from '../../crypto/sector-cipher.js'
import { UsageError } from '../../errors.js'
import { WritableCipherStore } from '../../io/cipher-store.js'
import type { FormatCreator, NewImage } from '../creating.js'
import { type NewEncryption, Qcow2Builder } from './create/builder.js'
import { bitmapShapes, measureBitmaps, measureQcow2 } from './measure.js'
import { QCOW2_OPTIONS, type Qcow2Shape, shapeOf } from './create/options.js'

export const qcow2Creator: FormatCreator = {
  options: QCOW2_OPTIONS,
  copiedBitmaps,
  measure: measureQcow2,
  bitmapShapes,
  measureBitmaps,
  isEncrypted: options => options['encrypt.format'] !== undefined,
  begin: async image => {
    const shape = shapeOf(image)
    return new Qcow2Builder(image, shape, await encryptionOf(shape, image))
  },
}

async function encryptionOf(
  { luks, clusterBits }: Qcow2Shape,
  { passphrase }: NewImage,
): Promise<NewEncryption | undefined> {
  if (!luks) return undefined
  if (!passphrase) throw new UsageError('encrypt.format=luks needs a passphrase')
  const { cipher, write } = await createLuks1(luks, passphrase)
  const how = {
    cipher: createSectorCipher(cipher),
    countsBy: 'file' as const,
    unitBytes: 2 ** clusterBits,
  }
  return {
    luksBytes: luks1Bytes(luks),
    write,
    encrypted: store => new WritableCipherStore(store, how),
  }
}
