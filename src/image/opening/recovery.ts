/** The last step of opening an image for writing, and the only one that changes it. */
import { ImageError } from '../../errors.js'
import { WriteProtected } from '../../io/named-file.js'
import type { Chain } from './chain.js'
import { OPENED_FILES, type StoreSource } from './store-source.js'
import { formatOf } from '../../formats/registry.js'
import { readOnlyWarning } from '../../formats/way-out.js'

/**
 * Corrects the counts of an image that was not closed cleanly. Everything that can refuse the image must come before. If it
 * fails, the chain becomes read-only with a warning, or, if writing is required, it throws ImageError.
 */
export function recoverChain(chain: Chain, source: StoreSource = OPENED_FILES): Chain {
  const { recovery, ...rest } = chain
  const [top, ...below] = chain.layers
  const format = formatOf(top)
  if (recovery === undefined || !format.recover) return chain
  const size = new BigInt64Array(new SharedArrayBuffer(8))
  size[0] = BigInt(top.sizeBytes)
  const store = source.writable(top, size)
  try {
    const { spec, warning } = format.recover(store)
    const recovered = { ...top, sizeBytes: store.sizeBytes, spec }
    const warnings = warning === undefined ? chain.warnings : [...chain.warnings, warning]
    return { ...rest, layers: [recovered, ...below], warnings }
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    if (recovery === 'required') {
      throw new WriteProtected(top.path, error.message, 'mount it with -o ro, or repair a copy')
    }
    const readOnly = readOnlyWarning(top.path, error.message)
    return { ...rest, isWritable: false, warnings: [readOnly, ...chain.warnings] }
  }
}
