/** Recognises disks that VMware has encrypted: their bytes must not be taken for plain ones. */
import { ImageError } from '../../errors.js'

/** Keys of a descriptor that only encrypted disks have, in lower case. */
export const ENCRYPTION_KEYS = [
  'encryptionkeys',
  'keyid',
  'encryption.keysafe',
  'encryption.data',
] as const

/** The filter that encrypts on ESX hosts. Other filters only watch or cache. */
const FILTER = 'vmwarevmcrypt'

/**
 * Throws ImageError if the disk is encrypted.
 *
 * @param keys the keys of the descriptor, in lower case
 * @param filters the value of `ddb.iofilters`, if it is there
 */
export function refuseEncrypted(
  keys: Pick<ReadonlyMap<string, string>, 'get'>,
  filters: string | undefined,
  path: string,
): void {
  const names = (filters ?? '').toLowerCase().split(/[^a-z0-9_-]+/)
  const hasKey = ENCRYPTION_KEYS.some(key => (keys.get(key) ?? '') !== '')
  if (!hasKey && !names.includes(FILTER)) return
  throw new ImageError('UNSUPPORTED', 'it is encrypted by VMware, and such disks are not read', {
    path,
    hint: 'decrypt it where its key is, or export the VM from there',
  })
}
