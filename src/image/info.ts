/**
 * What an image is, in the words and the order of `qemu-img info --output=json` (QEMU 7.2): a program
 * that reads that reads this. The order is that of QEMU's hash table, and its human output shows it.
 */
import fs from 'node:fs'
import { ImageError } from '../errors.js'
import { type Chain, closeChain, type OpenOptions, openChain } from './chain.js'
import {
  backingNameOf,
  diskBytes,
  type FileSpec,
  filesOf,
  type LayerSpec,
  storeOf,
} from './layer.js'
import type { CowHeader } from '../formats/cow/header.js'
import { type Qcow2Bitmap, readBitmaps } from '../formats/qcow2/bitmaps.js'
import {
  AUTOCLEAR,
  COMPATIBLE,
  clusterBytes,
  INCOMPATIBLE,
  isExtendedL2,
  type Qcow2Header,
} from '../formats/qcow2/header.js'
import { warningsOf } from '../formats/qcow2/losses.js'
import { readLuks } from '../formats/qcow2/luks.js'
import { type Qcow2Snapshot, readSnapshots } from '../formats/qcow2/snapshots.js'
import type { ExtentLayout, VmdkSpec } from '../formats/vmdk/image.js'
import type { MachineSnapshot } from '../formats/vmdk/machine.js'
import { parentLink } from '../formats/vmdk/parent.js'

/** A field that is undefined is not there. */
export type InfoValue = string | number | bigint | boolean | readonly InfoValue[] | InfoFields
export interface InfoFields {
  readonly [name: string]: InfoValue | undefined
}

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
 * Describes `image` and, if it is told to, the backing files down to the last. Only headers and what
 * they point at are read. Calls `warn` for what is lost of an image. Throws ImageError.
 */
export function describe(
  image: string,
  options: Pick<OpenOptions, 'format' | 'allowPaths' | 'ignoreCid'>,
  withBackingChain: boolean,
  warn: (text: string) => void = () => {},
): ImageInfo[] {
  const chain = openChain(image, { ...options, describe: withBackingChain ? 'chain' : 'image' })
  try {
    let filename = image
    return chain.layers.slice(0, chain.depth).map((layer, depth) => {
      const info = describeLayer(layer, filename, depth === 0 ? chain : undefined, warn)
      const backing = backingOf(layer)
      if (backing !== undefined) filename = besideFile(filename, backing)
      return info
    })
  } finally {
    closeChain(chain)
  }
}

const SECTOR_BYTES = 512

type Warn = (text: string) => void

function describeLayer(
  layer: LayerSpec,
  filename: string,
  top: Chain | undefined,
  warn: Warn,
): ImageInfo {
  const header = layer.qcow2
  if (header) for (const loss of warningsOf(storeOf(layer), header)) warn(`${layer.path}: ${loss}`)
  const own = top?.snapshots ?? (header ? readSnapshots(storeOf(layer), header).snapshots : [])
  const machine = top?.machineSnapshots ?? []
  const snapshots = [...own.map(describeSnapshot), ...machine.map(describeMachineSnapshot)]
  const backing = backingOf(layer)
  return {
    snapshots: snapshots.length > 0 ? snapshots : undefined,
    'backing-filename-format':
      backing === undefined
        ? undefined
        : (layer.vmdk ? 'vmdk' : header?.backingFormat) || undefined,
    'virtual-size': virtualBytes(layer),
    filename,
    'cluster-size': unitBytes(layer),
    format: layer.format,
    'actual-size': filesOf(layer).reduce((sum, file) => sum + takenBytes(file), 0),
    'format-specific': describeFormat(layer, filename, warn),
    'full-backing-filename': backing === undefined ? undefined : beside(filename, backing),
    encrypted: layer.encryption && true,
    'backing-filename': backing,
    'dirty-flag': header !== undefined && (header.incompatible & INCOMPATIBLE.dirty) !== 0n,
  }
}

/** Whole sectors, as QEMU shows a disk: an odd end counts as one in a raw file, not in an image. */
function virtualBytes(layer: LayerSpec): number {
  const round = layer.format === 'raw' ? Math.ceil : Math.floor
  return round(diskBytes(layer) / SECTOR_BYTES) * SECTOR_BYTES
}

/** What a layer's disk is divided into. */
function unitBytes({ qcow2, qcow, cow, vmdk }: LayerSpec): number | undefined {
  if (vmdk) return grainBytes(vmdk)
  if (qcow) return 2 ** qcow.clusterBits
  return cow ? cow.sectorBytes : qcow2 && clusterBytes(qcow2)
}

const backingOf = (layer: LayerSpec): string | undefined =>
  layer.vmdk ? parentLink(layer.vmdk, layer.path)?.hint : backingNameOf(layer)

/** QEMU has nothing to say of qcow. */
function describeFormat(
  layer: LayerSpec,
  filename: string,
  warn: Warn,
): ImageInfo['format-specific'] {
  const { qcow2, cow, vmdk } = layer
  if (vmdk) return { type: 'vmdk', data: describeVmdk(layer, vmdk, filename) }
  if (cow) return { type: 'cow', data: describeCow(cow) }
  return qcow2 && { type: 'qcow2', data: describeQcow2(layer, qcow2, warn) }
}

/** QEMU has forgotten the format; the names are ours. */
const describeCow = (cow: CowHeader): InfoFields => ({
  layout: cow.layout,
  'backing-mtime': cow.backingName === undefined ? undefined : cow.backingSeconds,
})

const takenBytes = ({ fd }: FileSpec): number =>
  Number(fs.fstatSync(fd, { bigint: true }).blocks) * SECTOR_BYTES

function describeSnapshot(snapshot: Qcow2Snapshot): SnapshotInfo {
  const { icount, guestNanoseconds } = snapshot
  return {
    // QEMU keeps it with a sign, and -1 says that there is none.
    icount: icount === undefined || icount === NO_ICOUNT ? undefined : BigInt.asIntN(64, icount),
    'vm-clock-nsec': Number(guestNanoseconds % NANOSECONDS),
    name: text(snapshot.name, MAX_NAME_BYTES),
    'date-sec': snapshot.dateSeconds,
    'date-nsec': snapshot.dateNanoseconds,
    'vm-clock-sec': Number(guestNanoseconds / NANOSECONDS),
    id: text(Buffer.from(snapshot.id), MAX_ID_BYTES),
    'vm-state-size': snapshot.vmStateBytes,
  }
}

/** QEMU knows nothing of these; the fields are those of its own. */
function describeMachineSnapshot({ uid, displayName, created }: MachineSnapshot): SnapshotInfo {
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
/** What QEMU keeps of a snapshot's name and of its id. */
const MAX_NAME_BYTES = 255
const MAX_ID_BYTES = 127

/** Up to the first NUL, as C has it, and `maxBytes` at most. */
function text(bytes: Buffer, maxBytes: number): string {
  const nul = bytes.indexOf(0)
  return bytes.toString('utf8', 0, Math.min(nul < 0 ? bytes.length : nul, maxBytes))
}

function describeQcow2(layer: LayerSpec, header: Qcow2Header, warn: Warn): InfoFields {
  const always = {
    compat: header.version === 2 ? '0.10' : '1.1',
    'compression-type': header.compression,
  }
  const refcounts = { 'refcount-bits': 2 ** header.refcountOrder }
  const encryption = { encrypt: describeEncryption(layer, header) }
  if (header.version === 2) return { ...always, ...refcounts, ...encryption }
  const isExternal = (header.incompatible & INCOMPATIBLE.externalData) !== 0n
  const isRaw = (header.autoclear & AUTOCLEAR.rawExternalData) !== 0n
  return {
    ...always,
    'lazy-refcounts': (header.compatible & COMPATIBLE.lazyRefcounts) !== 0n,
    bitmaps: describeBitmaps(layer, header, warn),
    ...refcounts,
    'data-file': header.dataFileName,
    ...encryption,
    'data-file-raw': isExternal ? isRaw : undefined,
    corrupt: (header.incompatible & INCOMPATIBLE.corrupt) !== 0n,
    'extended-l2': isExtendedL2(header),
  }
}

/** A layer's data file is not opened to describe it, but of a vmdk the extents are the image. */
function describeVmdk(
  { fd }: LayerSpec,
  { descriptor, extents }: VmdkSpec,
  filename: string,
): InfoFields {
  const described = extents.map(({ sizeBytes, file, layout }, index) => {
    const line = descriptor?.extents[index]
    // QEMU has no type for an extent that the descriptor stands in.
    const isOwn = file?.fd === fd
    return {
      compressed: layout.kind === 'sparse' && layout.header.isCompressed ? true : undefined,
      'virtual-size': sizeBytes,
      filename: file && (isOwn ? filename : beside(filename, line?.fileName ?? '')),
      'cluster-size': grainBytesOf(layout),
      format: isOwn ? '' : (line?.type ?? ''),
    }
  })
  return {
    cid: descriptor?.cid,
    'parent-cid': descriptor?.parentCid,
    'create-type': descriptor?.createType,
    extents: described,
  }
}

const grainBytesOf = (layout: ExtentLayout): number | undefined =>
  layout.kind === 'zero' || layout.kind === 'flat' ? undefined : layout.header.grainBytes

/** Where all extents agree. */
function grainBytes({ extents }: VmdkSpec): number | undefined {
  const sizes = new Set(extents.map(({ layout }) => grainBytesOf(layout)))
  return sizes.size === 1 ? [...sizes][0] : undefined
}

function describeBitmaps(
  layer: LayerSpec,
  header: Qcow2Header,
  warn: Warn,
): InfoFields[] | undefined {
  let found: readonly Qcow2Bitmap[] = []
  try {
    found = readBitmaps(storeOf(layer), header)
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    warn(`${layer.path}: its bitmaps are not listed: ${error.message}`)
  }
  const bitmaps = found.map(bitmap => ({
    flags: [...(bitmap.isInUse ? ['in-use'] : []), ...(bitmap.isAuto ? ['auto'] : [])],
    name: text(bitmap.name, bitmap.name.length),
    granularity: bitmap.granularityBytes,
  }))
  return bitmaps.length > 0 ? bitmaps : undefined
}

const CRYPT_LUKS = 2

function describeEncryption(layer: LayerSpec, header: Qcow2Header): InfoFields | undefined {
  if (header.cryptMethod === 0) return undefined
  if (header.cryptMethod !== CRYPT_LUKS) return { format: 'aes' }
  const luks = readLuks(storeOf(layer), header)
  return {
    'ivgen-alg': luks.ivGenerator,
    'hash-alg': luks.hash,
    'cipher-alg': luks.cipher,
    uuid: luks.uuid,
    'ivgen-hash-alg': luks.ivHash,
    format: 'luks',
    'cipher-mode': luks.mode,
    slots: luks.slots.map(slot => ({
      active: slot.isActive,
      iters: slot.isActive ? slot.iterations : undefined,
      'key-offset': slot.keyOffset,
      stripes: slot.isActive ? slot.stripes : undefined,
    })),
    'payload-offset': luks.payloadOffset,
    'master-key-iters': luks.masterKeyIterations,
  }
}

/** The same for the name of a backing file: after `file:` all of it is a path. */
const besideFile = (file: string, name: string): string => {
  const plain = name.replace(/^file:/, '')
  const isPath = plain !== name && !plain.startsWith('/')
  return isPath ? file.slice(0, file.lastIndexOf('/') + 1) + plain : beside(file, plain)
}

/** `name` as seen from where `file` was named: beside it, unless it is absolute or names a protocol. */
function beside(file: string, name: string): string {
  const isProtocol = /^[^/]*:/.test(name)
  if (isProtocol || name.startsWith('/')) return name
  return file.slice(0, file.lastIndexOf('/') + 1) + name
}
