/** qcow images over stores, with the passphrase of encrypted ones. */
import { legacyAesSpec } from '../../../src/crypto/legacy-aes.js'
import { createSectorCipher } from '../../../src/crypto/sector-cipher.js'
import type { View } from '../../../src/formats/driver.js'
import { clusterBytes, isEncrypted, readQcowHeader } from '../../../src/formats/qcow/header.js'
import type { StoreCipher } from '../../../src/io/cipher-store.js'
import type { Store, WritableStore } from '../../../src/io/store.js'
import { type OpenDisk, openRead, openWritten } from '../../support/store-image.js'

function cipherOf(store: Store): StoreCipher | undefined {
  const header = readQcowHeader(store)
  if (!isEncrypted(header)) return undefined
  const cipher = createSectorCipher(legacyAesSpec(Buffer.from('12345678')))
  return { cipher, countsBy: 'disk', unitBytes: clusterBytes(header) }
}

/** The image for reading. Throws ImageError where its header is damaged. */
export const viewQcow = (store: Store, parent?: Buffer): View =>
  openRead('qcow', { store, parent, cipher: cipherOf(store) }).view

/** The image for writing, by one thread. */
export const openQcow = (store: WritableStore, parent?: Buffer): OpenDisk =>
  openWritten('qcow', { store, parent, cipher: cipherOf(store) })
