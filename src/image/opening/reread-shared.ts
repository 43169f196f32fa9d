/** Reads an image anew that is open, and that other programs write meanwhile. */
import { isDeepStrictEqual } from 'node:util'
import { ImageError } from '../../errors.js'
import type { InternalSnapshot, LayerSpec } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import type { Chain } from './chain.js'
import { fileNow, referenceOf, storeOf } from '../layer.js'
import { snapshotsBelow } from '../snapshots/layer-snapshots.js'

/** A machine needs milliseconds for each change of its snapshots, and reading them less than one. */
const TRIES = 50

/**
 * Returns `chain` with the headers and the snapshots that the files have now. Its descriptors and keys stay. Throws ImageError,
 * SystemError.
 */
export function rereadShared(chain: Chain): Chain {
  const [top, ...below] = chain.layers
  const first = settled(top)
  const layers = [first.layer, ...below.map(layer => settled(layer).layer)] as [
    LayerSpec,
    ...LayerSpec[],
  ]
  const { snapshots: layerSnapshots } = snapshotsBelow(layers.slice(0, chain.depth))
  return { ...chain, layers, snapshots: first.snapshots, layerSnapshots }
}

/** Reports whether two states of one image show the same snapshots. */
export const sameSnapshots = (one: Chain, other: Chain): boolean =>
  isDeepStrictEqual([one.snapshots, one.layerSnapshots], [other.snapshots, other.layerSnapshots])

interface Read {
  readonly layer: LayerSpec
  readonly snapshots: readonly InternalSnapshot[]
}

/** Reads a layer until two reads find the same snapshots: the table of one read may have been freed while it was read. */
function settled(layer: LayerSpec): Read {
  const reference = referenceOf(layer)?.name
  let last: Read | undefined
  for (let tries = 0; tries < TRIES; tries++) {
    const now = readOnce(layer)
    if (last && isDeepStrictEqual(now.snapshots, last.snapshots)) {
      if (referenceOf(now.layer)?.name === reference) return now
      const what = 'the machine that writes it has given it another backing file'
      throw new ImageError('REFUSED', what, { path: layer.path, hint: 'mount it anew' })
    }
    last = now
  }
  const what = 'its snapshots change faster than they can be read'
  throw new ImageError('CORRUPT', what, { path: layer.path })
}

function readOnce(layer: LayerSpec): Read {
  const { sizeBytes, allocatedBytes, modified } = fileNow(layer)
  const { internalSnapshots } = formatOf(layer)
  const store = storeOf({ ...layer, sizeBytes })
  const spec = internalSnapshots ? internalSnapshots.reread(store) : layer.spec
  const snapshots = internalSnapshots?.read(store, spec) ?? []
  return { layer: { ...layer, sizeBytes, allocatedBytes, modified, spec }, snapshots }
}
