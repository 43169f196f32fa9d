/** Makes an image name another backing file or parent. Nothing else of it changes. */
import { ImageError } from '../../errors.js'
import type { LayerSpec, NewReference } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import { closeChain } from '../opening/chain.js'
import { openChain } from '../opening/open-chain.js'
import { OPENED_FILES } from '../opening/store-source.js'

/** Throws ImageError if the format of the image cannot change it. */
export function requireChangeable(top: LayerSpec): void {
  const { name, writing } = formatOf(top)
  if (writing?.changeReference) return
  throw new ImageError(
    'UNSUPPORTED',
    `a ${name} image keeps the backing file that it was made with`,
    {
      path: top.path,
      hint: 'convert it with vimgfs convert -B',
    },
  )
}

/**
 * Writes `reference` into the header of the image at `file`; undefined removes the reference. The caller holds the locks.
 * Throws ImageError, SystemError.
 */
export function rewriteReference(
  file: string,
  reference: NewReference | undefined,
  format: string,
): void {
  const opened = openChain(file, { format, describe: 'image', access: 'write' })
  try {
    const [layer] = opened.layers
    requireChangeable(layer)
    const store = OPENED_FILES.writable(layer, BigInt64Array.of(BigInt(layer.sizeBytes)))
    formatOf(layer).writing?.changeReference?.(layer, store, reference)
  } finally {
    closeChain(opened)
  }
}
