/** Lists the snapshots of an image, those of its machine, and the layers that it stands on. */
import { type Chain, closeChain, type OpenOptions } from './chain.js'
import {
  describeExternalSnapshot,
  describeSnapshot,
  type SnapshotInfo,
  virtualBytes,
} from './info.js'
import { storeOf } from './layer.js'
import { openChain } from './open-chain.js'
import { formatOf } from '../formats/registry.js'
import type { LayerSpec } from '../formats/format.js'

/** A snapshot that has frozen a disk file. */
export type FrozenInfo = SnapshotInfo & {
  /** The ID of the snapshot before it. */
  readonly parent: string | undefined
  readonly description: string
  /** The file that it has frozen, as the machine's list names it. */
  readonly filename: string
}

export type LayerInfo = {
  /** 0 is the image itself. */
  readonly layer: number
  readonly filename: string
  readonly format: string
  readonly 'virtual-size': number
  readonly snapshots: readonly SnapshotInfo[]
}

export type SnapshotList = {
  readonly filename: string
  readonly format: string
  readonly snapshots: readonly SnapshotInfo[]
  /** The snapshots of the machine to which the disk belongs. */
  readonly 'machine-snapshots': readonly FrozenInfo[] | undefined
  /** The layers from the image down, if they were asked for. */
  readonly layers: readonly LayerInfo[] | undefined
}

/** Lists the snapshots of `image`. Calls `warn` for lost parts. Throws ImageError. */
export function listSnapshots(
  image: string,
  options: Pick<OpenOptions, 'format' | 'allowPaths' | 'ignoreCid'>,
  withLayers: boolean,
  warn: (text: string) => void,
): SnapshotList {
  const chain = openChain(image, { ...options, describe: withLayers ? 'chain' : 'image' })
  try {
    for (const warning of chain.warnings) warn(warning)
    const [top] = chain.layers
    const frozen = frozenBy(chain)
    return {
      filename: image,
      format: top.format,
      snapshots: chain.snapshots.map(describeSnapshot),
      'machine-snapshots': frozen.length > 0 ? frozen : undefined,
      layers: withLayers ? chain.layers.slice(0, chain.depth).map(describeLayer) : undefined,
    }
  } finally {
    closeChain(chain)
  }
}

const frozenBy = ({ externalSnapshots }: Chain): FrozenInfo[] =>
  externalSnapshots.map(snapshot => ({
    ...describeExternalSnapshot(snapshot),
    parent: snapshot.parent === undefined ? undefined : String(snapshot.parent),
    description: snapshot.description,
    filename: snapshot.fileName,
  }))

function describeLayer(layer: LayerSpec, place: number): LayerInfo {
  const snapshots = formatOf(layer).internalSnapshots?.read(storeOf(layer), layer.spec) ?? []
  return {
    layer: place,
    filename: layer.path,
    format: layer.format,
    'virtual-size': virtualBytes(layer),
    snapshots: snapshots.map(describeSnapshot),
  }
}
