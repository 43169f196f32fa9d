/** The first cluster of a new image: header, extensions and the backing file's name, in the order in which QEMU writes them. */
import { UsageError } from '../../../errors.js'
import type { LuksArea } from '../../../crypto/luks1.js'
import { MAX_BACKING_NAME_BYTES } from '../../limits.js'
import { AUTOCLEAR, COMPATIBLE, CRYPT, INCOMPATIBLE, MAGIC } from '../header.js'
import {
  BITMAPS_EXTENSION,
  type BitmapsExtension,
  ENCRYPTION_EXTENSION,
  EXTENSION,
  EXTENSION_HEADER,
  FEATURE_NAME,
  FEATURE_NAME_BYTES,
} from '../header-extensions.js'
import { V2_HEADER, V3_FIELDS } from '../header-layout.js'
import type { ClusterRun } from './clusters.js'
import type { Qcow2Shape } from './options.js'

/** The parts of the header that depend on where the builder has put things; places are in bytes of the file. */
export interface Qcow2Places {
  readonly sizeBytes: number
  readonly l1: { readonly at: number; readonly entries: number }
  readonly refcountTable: ClusterRun
  readonly luks: LuksArea | undefined
  readonly bitmaps: BitmapsExtension | undefined
  readonly backing: { readonly name: string; readonly format: string | undefined } | undefined
}

/** The compression type and its padding, after the fields of version 3. */
const COMPRESSION_BYTES = 8
/** Images with clusters of this size or less have no names of features: QEMU leaves that room to the rest. */
const NO_NAMES_BYTES = 4096

/** By the kind of the feature: 0 incompatible, 1 compatible, 2 autoclear; with its bit. */
const FEATURE_NAMES: readonly (readonly [number, number, string])[] = [
  [0, 0, 'dirty bit'],
  [0, 1, 'corrupt bit'],
  [0, 2, 'external data file'],
  [0, 3, 'compression type'],
  [0, 4, 'extended L2 entries'],
  [1, 0, 'lazy refcounts'],
  [2, 0, 'bitmaps'],
  [2, 1, 'raw external data'],
]

/** Returns the first cluster, without the zeros at its end. Throws UsageError if the names do not fit into it. */
export function encodeFirstCluster(shape: Qcow2Shape, places: Qcow2Places): Buffer {
  const { backing, luks, bitmaps } = places
  const cluster = 2 ** shape.clusterBits
  const name = Buffer.from(backing?.name ?? '')
  if (name.length > MAX_BACKING_NAME_BYTES) {
    throw new UsageError(`the backing file's name has more than ${MAX_BACKING_NAME_BYTES} bytes`)
  }
  const extensions = [
    ...(backing?.format ? [extension(EXTENSION.backingFormat, Buffer.from(backing.format))] : []),
    ...(shape.dataFile ? [extension(EXTENSION.dataFile, Buffer.from(shape.dataFile.name))] : []),
    ...(luks ? [extension(EXTENSION.encryption, ENCRYPTION_EXTENSION.encode(luks))] : []),
    ...(shape.version === 3 && cluster > NO_NAMES_BYTES
      ? [extension(EXTENSION.featureNames, featureNames())]
      : []),
    ...(bitmaps
      ? [extension(EXTENSION.bitmaps, BITMAPS_EXTENSION.encode({ ...bitmaps, reserved: 0 }))]
      : []),
    extension(EXTENSION.end, Buffer.alloc(0)),
  ]
  const fieldBytes = V2_HEADER.size + (shape.version === 3 ? V3_FIELDS.size + COMPRESSION_BYTES : 0)
  const nameAt = fieldBytes + extensions.reduce((sum, { length }) => sum + length, 0)
  if (nameAt + name.length > cluster) {
    throw new UsageError(
      'the names of its files do not fit into its first cluster; give it larger ones',
    )
  }
  const fields = Buffer.alloc(fieldBytes)
  V2_HEADER.put(fields, 0, {
    magic: MAGIC,
    version: shape.version,
    backingNameOffset: name.length > 0 ? nameAt : 0,
    backingNameBytes: name.length,
    clusterBits: shape.clusterBits,
    sizeBytes: places.sizeBytes,
    cryptMethod: luks ? CRYPT.luks : CRYPT.none,
    l1Entries: places.l1.entries,
    l1Offset: places.l1.at,
    refcountTableOffset: places.refcountTable.at,
    refcountTableClusters: places.refcountTable.clusters,
    snapshotCount: 0,
    snapshotsOffset: 0,
  })
  if (shape.version === 3) {
    V3_FIELDS.put(fields, V2_HEADER.size, {
      ...featuresOf(shape, bitmaps !== undefined),
      refcountOrder: shape.refcountOrder,
      headerBytes: fieldBytes,
    })
    fields[V2_HEADER.size + V3_FIELDS.size] = shape.compression === 'zstd' ? 1 : 0
  }
  return Buffer.concat([fields, ...extensions, name])
}

function featuresOf(shape: Qcow2Shape, hasBitmaps: boolean) {
  const bits = (...all: (bigint | false)[]) =>
    all.reduce<bigint>((sum, bit) => (bit === false ? sum : sum | bit), 0n)
  return {
    incompatible: bits(
      shape.dataFile !== undefined && INCOMPATIBLE.externalData,
      shape.compression === 'zstd' && INCOMPATIBLE.compression,
      shape.isExtended && INCOMPATIBLE.extendedL2,
    ),
    compatible: bits(shape.hasLazyRefcounts && COMPATIBLE.lazyRefcounts),
    autoclear: bits(
      hasBitmaps && AUTOCLEAR.bitmaps,
      shape.dataFile?.isRaw === true && AUTOCLEAR.rawExternalData,
    ),
  }
}

function extension(type: number, data: Buffer): Buffer {
  const padding = Buffer.alloc((8 - (data.length % 8)) % 8)
  return Buffer.concat([EXTENSION_HEADER.encode({ type, length: data.length }), data, padding])
}

function featureNames(): Buffer {
  const table = Buffer.alloc(FEATURE_NAMES.length * FEATURE_NAME_BYTES)
  for (const [i, [type, bit, name]] of FEATURE_NAMES.entries()) {
    FEATURE_NAME.put(table, i * FEATURE_NAME_BYTES, { type, bit })
    table.write(name, i * FEATURE_NAME_BYTES + FEATURE_NAME.size)
  }
  return table
}
