/**
 * Describes an image with the words and the order of `qemu-img info --output=json` (QEMU 7.2), so that programs that read that
 * can read this. The order is that of QEMU's hash table, which its human output shows, too.
 */
import fs from 'node:fs'
import type { ExternalSnapshot, InternalSnapshot, LayerSpec } from '../formats/format.js'
import { beside, cText, type InfoFields } from '../formats/info-fields.js'
import { formatOf } from '../formats/registry.js'
import { memberOfPath, pathInArchive, splitArchiveName } from '../io/archive-name.js'
import type { FileSpec } from '../io/file-spec.js'
import { type Chain, closeChain, type OpenOptions } from './opening/chain.js'
import { diskBytes, filesOf, referenceOf, storeOf } from './layer.js'
import { openChain } from './opening/open-chain.js'
import { SECTOR_BYTES } from '../sector.js'

/** Sizes in bytes. */
export type ImageInfo = {
  readonly snapshots: readonly SnapshotInfo[] | undefined
  readonly 'backing-filename-format': string | undefined
  readonly 'virtual-size': number
  readonly filename: string
  readonly 'cluster-size': number | undefined
  readonly format: string
  readonly 'actual-size': number
  readonly 'format-specific': { readonly type: string; readonly data: InfoFields } | undefined
  readonly 'full-backing-filename': string | undefined
  readonly encrypted: true | undefined
  readonly 'backing-filename': string | undefined
  readonly 'dirty-flag': boolean
}

export type SnapshotInfo = {
  readonly icount: bigint | undefined
  readonly 'vm-clock-nsec': number
  readonly name: string
  readonly 'date-sec': number
  readonly 'date-nsec': number
  readonly 'vm-clock-sec': number
  readonly id: string
  readonly 'vm-state-size': number
}

/**
 * Describes `image` and, on request, the backing files down to the last. Reads only headers and the structures that they
 * name. Calls `warn` for lost parts of an image. Throws ImageError.
 */
export function describe(
  image: string,
  options: Pick<OpenOptions, 'format' | 'allowPaths' | 'ignoreCid'>,
  withBackingChain: boolean,
  warn: (text: string) => void = () => {},
): ImageInfo[] {
  const chain = openChain(image, { ...options, describe: withBackingChain ? 'chain' : 'image' })
  try {
    let filename = nameOfDisk(image, chain.layers[0])
    return chain.layers.slice(0, chain.depth).map((layer, depth) => {
      const info = describeLayer(layer, filename, depth === 0 ? chain : undefined, warn)
      const reference = referenceOf(layer)
      if (reference) filename = besideFile(filename, reference.name)
      return info
    })
  } finally {
    closeChain(chain)
  }
}

type Warn = (text: string) => void

function describeLayer(
  layer: LayerSpec,
  filename: string,
  top: Chain | undefined,
  warn: Warn,
): ImageInfo {
  const format = formatOf(layer)
  const store = storeOf(layer)
  const { unitBytes, specific, isDirty = false } = format.describe(layer, { store, filename, warn })
  const own = top?.snapshots ?? format.internalSnapshots?.read(store, layer.spec) ?? []
  const external = top?.externalSnapshots ?? []
  const snapshots = [...own.map(describeSnapshot), ...external.map(describeExternalSnapshot)]
  const reference = referenceOf(layer)
  return {
    snapshots: snapshots.length > 0 ? snapshots : undefined,
    'backing-filename-format': reference?.statesFormat ? reference.format : undefined,
    'virtual-size': virtualBytes(layer),
    filename,
    'cluster-size': unitBytes,
    format: layer.format,
    'actual-size': filesOf(layer).reduce((sum, file) => sum + takenBytes(file), 0),
    'format-specific': specific,
    'full-backing-filename': reference && beside(filename, reference.name),
    encrypted: layer.encryption && true,
    'backing-filename': reference?.name,
    'dirty-flag': isDirty,
  }
}

/** Returns the size of a layer's disk in whole sectors, as QEMU shows it: it rounds a raw file up, and an image down. */
export function virtualBytes(layer: LayerSpec): number {
  const round = layer.format === 'raw' ? Math.ceil : Math.floor
  return round(diskBytes(layer) / SECTOR_BYTES) * SECTOR_BYTES
}

const takenBytes = ({ fd, source, part, sizeBytes, allocatedBytes }: FileSpec): number =>
  source
    ? sizeBytes
    : part
      ? allocatedBytes
      : Number(fs.fstatSync(fd, { bigint: true }).blocks) * SECTOR_BYTES

export function describeSnapshot(snapshot: InternalSnapshot): SnapshotInfo {
  const { icount, guestNanoseconds } = snapshot
  return {
    // In QEMU it is signed, and -1 means that there is none.
    icount: icount === undefined || icount === NO_ICOUNT ? undefined : BigInt.asIntN(64, icount),
    'vm-clock-nsec': Number(guestNanoseconds % NANOSECONDS),
    name: cText(snapshot.name, MAX_NAME_BYTES),
    'date-sec': snapshot.dateSeconds,
    'date-nsec': snapshot.dateNanoseconds,
    'vm-clock-sec': Number(guestNanoseconds / NANOSECONDS),
    id: cText(Buffer.from(snapshot.id), MAX_ID_BYTES),
    'vm-state-size': snapshot.vmStateBytes,
  }
}

/** Describes a snapshot that QEMU does not know, with the fields of QEMU's own snapshots. */
export function describeExternalSnapshot({
  uid,
  displayName,
  created,
}: ExternalSnapshot): SnapshotInfo {
  return {
    icount: undefined,
    'vm-clock-nsec': 0,
    name: displayName,
    'date-sec': created?.seconds ?? 0,
    'date-nsec': created?.nanoseconds ?? 0,
    'vm-clock-sec': 0,
    id: String(uid),
    'vm-state-size': 0,
  }
}

const NO_ICOUNT = 2n ** 64n - 1n
const NANOSECONDS = 1_000_000_000n
/** The most bytes of a snapshot's name and of its id that QEMU keeps. */
const MAX_NAME_BYTES = 255
const MAX_ID_BYTES = 127

/**
 * Returns the name of a disk in an archive as paths are taken apart, with the archive as the user named it; of other images `name`
 * as it is.
 */
export function nameOfDisk(name: string, { part, path }: LayerSpec): string {
  if (!part) return name
  return pathInArchive(splitArchiveName(name)?.archive ?? name, memberOfPath(path, part.path))
}

/** Returns the path of the backing file relative to the folder from which `file` was named. After `file:` all is a path. */
export const besideFile = (file: string, name: string): string => {
  const plain = name.replace(/^file:/, '')
  const isPath = plain !== name && !plain.startsWith('/')
  return isPath ? file.slice(0, file.lastIndexOf('/') + 1) + plain : beside(file, plain)
}
