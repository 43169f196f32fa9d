/** Reads an image anew that is open, after its snapshots have changed. */
import fs from 'node:fs'
import type { LayerSpec } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import type { Chain } from './chain.js'
import { fileSpec, storeOf } from '../layer.js'

/**
 * Returns `chain` with the header and the snapshots that the image's file has now. Its descriptors and keys stay. Throws
 * ImageError, SystemError.
 */
export function reread(chain: Chain): Chain {
  const [top, ...below] = chain.layers
  const { path, fd, source } = top
  const { sizeBytes, allocatedBytes, modified } = fileSpec({
    path,
    fd,
    stat: fs.fstatSync(fd, { bigint: true }),
    ...(source && { source }),
  })
  const { internalSnapshots } = formatOf(top)
  const store = storeOf({ path, fd, sizeBytes, ...(source && { source }) })
  const spec = internalSnapshots ? internalSnapshots.reread(store) : top.spec
  const layer: LayerSpec = { ...top, sizeBytes, allocatedBytes, modified, spec }
  const snapshots = internalSnapshots?.read(store, spec) ?? []
  return { ...chain, layers: [layer, ...below], snapshots }
}
