/** Lists what a mount of an image shows: the disk, its snapshots and their VM states, its backing layers. */
import type {
  ExternalSnapshot,
  InternalSnapshot,
  LayerSpec,
  SnapshotTable,
} from '../formats/format.js'
import { formatOf } from '../formats/registry.js'
import type { Timestamp } from '../io/file-spec.js'
import type { Chain } from './opening/chain.js'
import { distinctNames, layerName, stemOf, type Tagged } from './file-names.js'
import { diskBytes, filesFrom, lastModified } from './layer.js'

/** Plain data, which can be sent to threads as a message. */
export interface CatalogEntry {
  readonly name: string
  readonly kind: 'disk' | 'snapshot' | 'vmstate' | 'layer' | 'partition'
  /** The layer of the chain from which it is read. */
  readonly layer: number
  /** The table of a snapshot in its layer's file. */
  readonly table?: SnapshotTable
  /**
   * The place of the file's first byte on the disk of its table, in bytes: VM states lie past the disk's end, partitions in it.
   */
  readonly startOffset: number
  /** Of a partition: the place in the catalog of the disk that it is part of. */
  readonly whole?: number
  readonly sizeBytes: number
  readonly modified: Timestamp
  readonly attributes: Readonly<Record<string, string>>
}

export function catalogOf(chain: Chain): { entries: CatalogEntry[]; warnings: string[] } {
  const [top] = chain.layers
  // A layer that a snapshot froze is shown as the snapshot.
  const frozen = new Set(chain.externalSnapshots.map(({ layer }) => layer))
  const below = chain.layers
    .map((layer, place) => ({ layer, place }))
    .slice(1, chain.depth)
    .filter(({ place }) => !frozen.has(place))
  const stem = stemOf(top.path)
  const modified = (layer: number) => lastModified(filesFrom(chain.layers, layer))
  const warnings: string[] = []
  const tags: Tagged[] = [
    ...chain.snapshots.map(({ name, id }) => ({ tag: name, id })),
    ...chain.externalSnapshots.map(({ displayName, uid }) => ({
      tag: Buffer.from(displayName),
      id: String(uid),
    })),
    ...below.map(({ layer, place }) => ({
      tag: Buffer.from(layerName(layer.path)),
      id: String(place),
    })),
    ...chain.layerSnapshots.map(({ layer, snapshot: { name, id } }) => {
      const { path } = chain.layers[layer] as LayerSpec
      return {
        tag: Buffer.concat([Buffer.from(`${layerName(path)}@`), name]),
        id: `${layer}.${id}`,
      }
    }),
  ]
  const names = distinctNames(stem, tags)
  const entries: CatalogEntry[] = [
    {
      name: `${stem}.raw`,
      kind: 'disk',
      layer: 0,
      startOffset: 0,
      sizeBytes: diskBytes(top),
      modified: modified(0),
      attributes: layerAttributes(top),
    },
  ]
  const addSnapshot = (name: string, snapshot: InternalSnapshot, place: number) => {
    const layer = chain.layers[place] as LayerSpec
    entries.push(snapshotEntry(name, snapshot, layer, place))
    if (snapshot.vmStateBytes === 0) return
    const state = vmStateEntry(name, snapshot, layer, place)
    if (state) entries.push(state)
    else
      warnings.push(`${layer.path}: the VM state of snapshot ${snapshot.id} has an impossible size`)
  }
  chain.snapshots.forEach((snapshot, index) => {
    addSnapshot(names[index] as string, snapshot, 0)
  })
  const shown = chain.snapshots.length
  chain.externalSnapshots.forEach((snapshot, index) => {
    const layer = chain.layers[snapshot.layer] as LayerSpec
    entries.push({
      name: `${names[shown + index]}.raw`,
      kind: 'snapshot',
      layer: snapshot.layer,
      startOffset: 0,
      sizeBytes: diskBytes(layer),
      modified: snapshot.created ?? modified(snapshot.layer),
      attributes: { ...layerAttributes(layer), path: layer.path, ...externalAttributes(snapshot) },
    })
  })
  below.forEach(({ layer, place }, index) => {
    entries.push({
      name: `${names[shown + chain.externalSnapshots.length + index]}.raw`,
      kind: 'layer',
      layer: place,
      startOffset: 0,
      sizeBytes: diskBytes(layer),
      modified: modified(place),
      attributes: { ...layerAttributes(layer), layer: String(place), path: layer.path },
    })
  })
  const last = shown + chain.externalSnapshots.length + below.length
  chain.layerSnapshots.forEach(({ layer, snapshot }, index) => {
    addSnapshot(names[last + index] as string, snapshot, layer)
  })
  return { entries, warnings }
}

const layerAttributes = (layer: LayerSpec): Record<string, string> => ({
  format: layer.format,
  ...(layer.encryption && { encryption: layer.encryption.method }),
  ...formatOf(layer).attributes?.(layer),
})

function snapshotEntry(
  name: string,
  snapshot: InternalSnapshot,
  layer: LayerSpec,
  place: number,
): CatalogEntry {
  const { internalSnapshots } = formatOf(layer)
  const below = place > 0 && { layer: String(place), path: layer.path }
  return {
    name: `${name}.raw`,
    kind: 'snapshot',
    layer: place,
    ...(internalSnapshots && { table: internalSnapshots.tableOf(snapshot) }),
    startOffset: 0,
    sizeBytes: snapshot.sizeBytes,
    modified: { seconds: snapshot.dateSeconds, nanoseconds: nanoseconds(snapshot) },
    attributes: { ...snapshotAttributes(snapshot, layer), ...below },
  }
}

/** Returns undefined for a state whose size is impossible. */
function vmStateEntry(
  name: string,
  snapshot: InternalSnapshot,
  layer: LayerSpec,
  place: number,
): CatalogEntry | undefined {
  const state = formatOf(layer).internalSnapshots?.vmStateOf(layer.spec, snapshot)
  if (!state) return undefined
  const disk = snapshotEntry(name, snapshot, layer, place)
  return {
    ...disk,
    ...state,
    name: `${name}.vmstate`,
    kind: 'vmstate',
    sizeBytes: snapshot.vmStateBytes,
  }
}

function snapshotAttributes(snapshot: InternalSnapshot, layer: LayerSpec): Record<string, string> {
  const date = new Date(snapshot.dateSeconds * 1000 + nanoseconds(snapshot) / 1e6)
  return {
    ...layerAttributes(layer),
    'snapshot-id': snapshot.id,
    'snapshot-name': snapshot.name.toString('utf8'),
    'snapshot-date': date.toISOString(),
    'snapshot-vm-clock-ns': String(snapshot.guestNanoseconds),
    'snapshot-vm-state-size': String(snapshot.vmStateBytes),
  }
}

function externalAttributes(snapshot: ExternalSnapshot): Record<string, string> {
  const { uid, parent, displayName, description, created } = snapshot
  const date = created && new Date(created.seconds * 1000 + created.nanoseconds / 1e6)
  return {
    'snapshot-id': String(uid),
    'snapshot-name': displayName,
    ...(description !== '' && { 'snapshot-description': description }),
    ...(parent !== undefined && { 'snapshot-parent': String(parent) }),
    ...(date && { 'snapshot-date': date.toISOString() }),
  }
}

/** Returns the nanoseconds of a date. A damaged table may have more than a second of them, which file systems refuse. */
const nanoseconds = (snapshot: InternalSnapshot): number =>
  Math.min(snapshot.dateNanoseconds, 999_999_999)
