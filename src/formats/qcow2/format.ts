/** qcow2 images of versions 2 and 3; see header.ts. */
import { ImageError } from '../../errors.js'
import { WriteProtected } from '../../io/named-file.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { Store } from '../../io/store.js'
import type {
  DriverParts,
  Format,
  FormatWriting,
  InternalSnapshot,
  InternalSnapshots,
  LayerSpec,
  OpenContext,
  OpenedLayer,
} from '../format.js'
import { writeScratch } from './scratch.js'
import { qcow2BaseNote } from './base-note.js'
import { describeQcow2 } from './describe.js'
import { Qcow2Driver, type Qcow2Parts } from './driver.js'
import {
  CRYPT,
  clusterBytes,
  INCOMPATIBLE,
  l2CoverageBytes,
  MAGIC,
  type Qcow2Header,
  readHeader,
} from './header.js'
import { requireWhole } from './losses.js'
import { Qcow2Mapping } from './mapping.js'
import { recover, requireRecoverable } from './recovery.js'
import { changeReference } from './reference-update.js'
import { Qcow2SnapshotGuard } from './snapshot-guard.js'
import { type Qcow2Snapshot, readSnapshots } from './snapshots.js'
import { createQcow2Memory, type Qcow2Memory } from './write-memory.js'
import { Qcow2Writer } from './writer.js'
import { unpackCluster } from '../packed-cluster.js'
import { filesNeededByQcow2 } from './files-needed.js'
import { oneFileChecking } from '../check/one-file.js'
import { tableWriterParts } from '../table-writer.js'
import type { FormatUsage } from '../usage.js'

function open(file: FileSpec, context: OpenContext): OpenedLayer<Qcow2Header> {
  const store = context.storeOf(file)
  const spec = readHeader(store)
  checkState(spec, store, context)
  const needsRecovery = isDirty(spec) && context.access === 'write'
  if (needsRecovery) checkRecovery(store)
  const isExternal = (spec.incompatible & INCOMPATIBLE.externalData) !== 0n
  if (!isExternal || context.isDescribed) return { spec, needsRecovery, ...encryptionOf(spec) }
  const dataFile = context.openDataFile(spec.dataFileName as string)
  return { spec, needsRecovery, ...encryptionOf(spec), dataFile }
}

const isDirty = ({ incompatible }: Qcow2Header): boolean =>
  (incompatible & INCOMPATIBLE.dirty) !== 0n

function checkState(header: Qcow2Header, store: Store, context: OpenContext): void {
  const { path } = store
  const { access, known, warn } = context
  requireWhole(store, header, context)
  const isCorrupt = (header.incompatible & INCOMPATIBLE.corrupt) !== 0n
  if (isCorrupt && access === 'write') {
    const hint = 'repair a copy of it with vimgfs check --repair all, or mount it with -o ro'
    const forReaders = { problem: 'MARKED_CORRUPT', reading: READ_AS_IT_IS } as const
    throw new WriteProtected(path, 'it is marked corrupt', hint, forReaders)
  }
  // An image that is opened for writing is recovered.
  if (isDirty(header) && access === 'read') {
    warn(`${path}: it was not closed cleanly (its dirty bit is set); its data read as they are`)
  }
  if (isCorrupt && known !== 'MARKED_CORRUPT') {
    warn(`${path}: it is marked corrupt; ${READ_AS_IT_IS}`)
  }
}

const READ_AS_IT_IS = 'what is readable is shown, check it with vimgfs check'

/** Throws WriteProtected if recovery would fail. Recovery itself runs after everything that can refuse the image. */
function checkRecovery(store: Store): void {
  try {
    requireRecoverable(store)
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    throw new WriteProtected(store.path, error.message, 'mount it with -o ro, or repair a copy')
  }
}

function encryptionOf({ cryptMethod, encryption }: Qcow2Header): Pick<LayerSpec, 'encryption'> {
  if (cryptMethod === CRYPT.aes) return { encryption: { method: 'AES' } }
  if (cryptMethod !== CRYPT.luks) return {}
  return { encryption: { method: 'LUKS', ...(encryption && { headerArea: encryption }) } }
}

function partsOf({ layer, ...parts }: DriverParts<Qcow2Header>): Qcow2Parts {
  const { store, dataStore, storeId, metadata, clusters } = parts
  return { header: layer.spec, store, dataStore, storeId, metadata, clusters }
}

const keyOf = ({ id, dateSeconds, dateNanoseconds }: InternalSnapshot) => ({
  id,
  dateSeconds,
  dateNanoseconds,
})

const snapshots: InternalSnapshots<Qcow2Header> = {
  read: (store, header) =>
    header.snapshotCount === 0 ? [] : readSnapshots(store, header).snapshots,
  reread: readHeader,
  tableOf: snapshot => {
    const { l1Offset, l1Entries, sizeBytes } = snapshot as Qcow2Snapshot
    return { offset: l1Offset, entries: l1Entries, sizeBytes, snapshot: keyOf(snapshot) }
  },
  // It lies in the snapshot's table, from the first L2 table past the disk's end on.
  vmStateOf: (header, snapshot) => {
    const { l1Offset, l1Entries, sizeBytes, vmStateBytes } = snapshot as Qcow2Snapshot
    const coverage = l2CoverageBytes(header)
    const startOffset = Math.ceil(sizeBytes / coverage) * coverage
    const endOffset = startOffset + vmStateBytes
    if (endOffset > l1Entries * coverage) return undefined
    const place = { offset: l1Offset, entries: l1Entries, sizeBytes: endOffset }
    return { table: { ...place, snapshot: keyOf(snapshot) }, startOffset }
  },
  driver: (parts, table) => new Qcow2Driver(partsOf(parts), table, table.sizeBytes),
  guard: (store, header, table) => new Qcow2SnapshotGuard(store, header, table),
  writing: {
    load: async () => (await import('./snapshot/snapshot-writer.js')).qcow2SnapshotWriter,
  },
}

const writing: FormatWriting<Qcow2Header> = {
  hasTables: true,
  createMemory: (header, store) => {
    const memory = createQcow2Memory(header, store)
    return { memory, warnings: memory.bitmaps.warnings }
  },
  writer: parts =>
    new Qcow2Writer({ ...tableWriterParts(parts), memory: parts.memory as Qcow2Memory }),
  scratch: (store, diskBytes) => {
    writeScratch(store, diskBytes)
    return readHeader(store)
  },
  baseNote: qcow2BaseNote,
  changeReference: ({ spec }, store, reference) => changeReference(store, spec, reference),
  makeEmpty: async ({ spec }, store) => (await import('./make-empty.js')).makeEmpty(store, spec),
}

const usage: FormatUsage = {
  load: async () => {
    const { usageOfQcow2 } = await import('./usage/usage.js')
    return ({ store }, options) => usageOfQcow2(store, options)
  },
}

const checking = oneFileChecking(async () => ({
  check: (await import('./check.js')).checkQcow2,
  repair: (await import('./repair.js')).repairQcow2,
}))

export const qcow2Format: Format<Qcow2Header> = {
  name: 'qcow2',
  suffixes: ['.qcow2'],
  unit: 'cluster',
  matches: head =>
    head.length >= 4 &&
    head.readUInt32BE(0) === MAGIC &&
    !(head.length >= 8 && head.readUInt32BE(4) === 1),
  open,
  sizeBytes: ({ spec }) => spec.sizeBytes,
  reference: ({ spec }) => {
    if (spec.backingName === undefined) return undefined
    return {
      role: 'backing file',
      name: spec.backingName,
      names: [spec.backingName],
      skipsOpen: false,
      format: spec.backingFormat || undefined,
      statesFormat: Boolean(spec.backingFormat),
      hint: () => 'restore it, or name it with vimgfs rebase -u',
      loopHint: 'name the right file with vimgfs rebase -u',
    }
  },
  namedFile: ({ spec }) =>
    spec.dataFileName === undefined ? undefined : { role: 'data file', name: spec.dataFileName },
  filesNeeded: filesNeededByQcow2,
  internalSnapshots: snapshots,
  driver: parts => {
    const { l1Offset, l1Entries, sizeBytes } = parts.layer.spec
    return new Qcow2Driver(partsOf(parts), { offset: l1Offset, entries: l1Entries }, sizeBytes)
  },
  unpack: unpackCluster,
  mapping: (layer, driver, store) =>
    new Qcow2Mapping(layer.spec, driver as Qcow2Driver, store, layer.allocatedBytes),
  writing,
  resizing: { load: async () => (await import('./resize.js')).qcow2Resizer },
  creating: { load: async () => (await import('./create.js')).qcow2Creator },
  recover: store => {
    const warning = recover(store)
    return { spec: readHeader(store), warning }
  },
  checking,
  usage,
  describe: describeQcow2,
  attributes: ({ spec }) => ({
    'cluster-size': String(clusterBytes(spec)),
    'format-version': String(spec.version),
  }),
  tableBytes: ({ spec }) => Math.ceil(spec.sizeBytes / l2CoverageBytes(spec)) * clusterBytes(spec),
  unitBytes: clusterBytes,
}
