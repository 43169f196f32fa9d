/** Finds the internal snapshots of an image's lower layers. */
import type { InternalSnapshot, LayerSpec } from '../../formats/format.js'
import { MAX_LAYER_SNAPSHOTS } from '../../formats/limits.js'
import { formatOf } from '../../formats/registry.js'
import { storeOf } from '../layer.js'

export interface LayerSnapshot {
  /** The place of its layer in the chain, from 1 on. */
  readonly layer: number
  readonly snapshot: InternalSnapshot
}

/**
 * Returns the snapshots of all layers but the first, at most MAX_LAYER_SNAPSHOTS. Leaves out the damaged part of a layer's
 * table; the warnings of the layer itself mention it (qcow2/losses.ts).
 */
export function snapshotsBelow(layers: readonly LayerSpec[]): {
  snapshots: LayerSnapshot[]
  warnings: string[]
} {
  const snapshots: LayerSnapshot[] = []
  const warnings: string[] = []
  for (const [place, layer] of layers.entries()) {
    if (place === 0) continue
    const { internalSnapshots } = formatOf(layer)
    for (const snapshot of internalSnapshots?.read(storeOf(layer), layer.spec) ?? []) {
      if (snapshots.length < MAX_LAYER_SNAPSHOTS) snapshots.push({ layer: place, snapshot })
      else {
        warnings.push(
          `${layer.path}: not all snapshots of the layers below are shown: there are more than ${MAX_LAYER_SNAPSHOTS}`,
        )
        return { snapshots, warnings }
      }
    }
  }
  return { snapshots, warnings }
}
