import { type Luks1Header, readLuks1 } from '../../crypto/luks1.js'
import { ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import type { Qcow2Header } from './header.js'

/**
 * Reads the LUKS header of an encrypted image, which describes the encryption. That needs no passphrase. Throws ImageError if
 * the header is missing or damaged.
 */
export function readLuks(store: Store, { encryption }: Qcow2Header): Luks1Header {
  if (encryption) return readLuks1(store, encryption)
  throw new ImageError(
    'CORRUPT',
    'it is encrypted with LUKS but says nowhere where the LUKS header is',
    {
      path: store.path,
      hint: 'restore it from a copy; without this header its data cannot be decrypted',
    },
  )
}
