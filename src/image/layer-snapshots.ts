/** The internal snapshots of the layers that an image stands on. */
import { type LayerSpec, storeOf } from './layer.js'
import { MAX_LAYER_SNAPSHOTS } from '../formats/limits.js'
import { type Qcow2Snapshot, readSnapshots } from '../formats/qcow2/snapshots.js'

export interface LayerSnapshot {
  /** The place of its layer in the chain, from 1 on. */
  readonly layer: number
  readonly snapshot: Qcow2Snapshot
}

/**
 * The snapshots of all layers but the first, up to MAX_LAYER_SNAPSHOTS of them. What is damaged of a layer's
 * table is left out; the warnings of the layer itself say so (qcow2/losses.ts).
 */
export function snapshotsBelow(layers: readonly LayerSpec[]): {
  snapshots: LayerSnapshot[]
  warnings: string[]
} {
  const snapshots: LayerSnapshot[] = []
  const warnings: string[] = []
  for (const [place, layer] of layers.entries()) {
    if (place === 0 || !layer.qcow2 || layer.qcow2.snapshotCount === 0) continue
    const found = readSnapshots(storeOf(layer), layer.qcow2)
    for (const snapshot of found.snapshots) {
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
