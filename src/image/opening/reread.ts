/** Reads an image anew that is open, after its snapshots have changed. */
import type { LayerSpec } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import type { Chain } from './chain.js'
import { fileNow, storeOf } from '../layer.js'

/**
 * Returns `chain` with the header and the snapshots that the image's file has now. Its descriptors and keys stay. Throws
 * ImageError, SystemError.
 */
export function reread(chain: Chain): Chain {
  const [top, ...below] = chain.layers
  const { sizeBytes, allocatedBytes, modified } = fileNow(top)
  const { internalSnapshots } = formatOf(top)
  const store = storeOf({ ...top, sizeBytes })
  const spec = internalSnapshots ? internalSnapshots.reread(store) : top.spec
  const layer: LayerSpec = { ...top, sizeBytes, allocatedBytes, modified, spec }
  const snapshots = internalSnapshots?.read(store, spec) ?? []
  return { ...chain, layers: [layer, ...below], snapshots }
}
