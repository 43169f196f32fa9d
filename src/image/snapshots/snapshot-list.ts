/** Lists the snapshots of an image, those of its machine, and the layers that it stands on. */
import { type Chain, closeChain, type OpenOptions } from '../opening/chain.js'
import {
  describeExternalSnapshot,
  describeSnapshot,
  type SnapshotInfo,
  virtualBytes,
} from '../info.js'
import { storeOf } from '../layer.js'
import { openChain } from '../opening/open-chain.js'
import { formatOf } from '../../formats/registry.js'
import type { InternalSnapshot, LayerSpec } from '../../formats/format.js'

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
    return snapshotListOf(chain, image, chain.snapshots, withLayers)
  } finally {
    closeChain(chain)
  }
}

/**
 * Returns the list of an image that is open.
 * @param snapshots those of the image itself, as they are now
 */
export function snapshotListOf(
  chain: Chain,
  filename: string,
  snapshots: readonly InternalSnapshot[],
  withLayers: boolean,
): SnapshotList {
  const frozen = frozenBy(chain)
  const own = snapshots.map(describeSnapshot)
  return {
    filename,
    format: chain.layers[0].format,
    snapshots: own,
    'machine-snapshots': frozen.length > 0 ? frozen : undefined,
    layers: withLayers
      ? chain.layers
          .slice(0, chain.depth)
          .map((layer, place) => describeLayer(layer, place, place === 0 ? own : undefined))
      : undefined,
  }
}

const frozenBy = ({ externalSnapshots }: Chain): FrozenInfo[] =>
  externalSnapshots.map(snapshot => ({
    ...describeExternalSnapshot(snapshot),
    parent: snapshot.parent === undefined ? undefined : String(snapshot.parent),
    description: snapshot.description,
    filename: snapshot.fileName,
  }))

function describeLayer(
  layer: LayerSpec,
  place: number,
  known: readonly SnapshotInfo[] | undefined,
): LayerInfo {
  const read = () => formatOf(layer).internalSnapshots?.read(storeOf(layer), layer.spec) ?? []
  return {
    layer: place,
    filename: layer.path,
    format: layer.format,
    'virtual-size': virtualBytes(layer),
    snapshots: known ?? read().map(describeSnapshot),
  }
}
