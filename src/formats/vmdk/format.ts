/** VMDK images of VMware and VirtualBox; see image.ts. */
import { ImageError } from '../../errors.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { OptionValues } from '../creating.js'
import type {
  BelowContext,
  CheckedImage,
  DriverParts,
  Format,
  FormatChecking,
  FormatWriting,
  LayerSpec,
  NumberedStore,
  OpenContext,
  OpenedLayer,
  Reference,
} from '../format.js'
import { besideImage } from '../way-out.js'
import { childrenOf } from './children.js'
import { isDescriptor } from './descriptor.js'
import { describeVmdk } from './describe.js'
import { VmdkDriver } from './driver.js'
import { openVmdk, tableBytes, type VmdkSpec } from './open.js'
import { lonePart } from './lone-part.js'
import { openFrozen, snapshotsOfDisk } from './vm-snapshots.js'
import { vmdkMapping } from './mapping.js'
import { checkCid, extentNames, parentLink, type ParentLink, parentNames } from './parent.js'
import { extentKind } from './parts.js'
import { vmwareLocks } from './vmware-lock.js'
import { requireWritable, requireWritableKind } from './writability.js'
import { changeReference } from './reference-update.js'
import { createVmdkMemory, type VmdkMemory } from './write-memory.js'
import { VmdkWriter } from './writer.js'
import { unpackGrainJob } from './grain.js'
import { filesNeededByVmdk } from './files-needed.js'

function open(file: FileSpec, context: OpenContext): OpenedLayer<VmdkSpec> {
  const { access, storeOf, warn, isDevice, dropsChangeTracking } = context
  const spec = openVmdk(file, {
    storeOf,
    warn,
    open: (name, isWritable) => context.openExtent(name, extentNames(name), isWritable),
  })
  if (access === 'write') requireWritable(spec, file.path, { dropsChangeTracking, isDevice })
  return { spec, extentFiles: extentFilesOf(spec) }
}

const extentFilesOf = ({ extents }: VmdkSpec): FileSpec[] =>
  extents.flatMap(({ file }) => file ?? [])

function reference({ path, spec }: LayerSpec<VmdkSpec>): Reference | undefined {
  const link = parentLink(spec, path)
  return (
    link && {
      role: 'parent',
      name: link.hint,
      names: parentNames(link.hint),
      // A child in another folder may have the same name as the parent.
      skipsOpen: true,
      format: 'vmdk',
      statesFormat: true,
      hint: besideImage,
      loopHint: 'correct the line parentFileNameHint of its descriptor',
    }
  )
}

function checkBelow(
  { path, spec }: LayerSpec<VmdkSpec>,
  below: LayerSpec,
  { ignoreCid, warn }: BelowContext,
): void {
  const parent = below.spec as VmdkSpec
  try {
    checkCid(parentLink(spec, path) as ParentLink, parent, path, below.path)
  } catch (error) {
    if (!ignoreCid || !(error instanceof ImageError)) throw error
    warn(`${path}: ${error.message}; what is read may be nonsense`)
  }
  if (parent.sizeBytes !== spec.sizeBytes) {
    const sizes = `${spec.sizeBytes} bytes and ${parent.sizeBytes}`
    warn(`${path}: it and its parent differ in size (${sizes})`)
  }
}

/** Returns the stores of all extents; undefined for an extent without a file. */
function storesOf<T extends NumberedStore>(
  { extents }: VmdkSpec,
  files: readonly T[],
): (T | undefined)[] {
  let next = 0
  return extents.map(({ file }) => file && files[next++])
}

function driver({
  layer,
  storeId,
  extentStores,
  metadata,
  clusters,
  isWritten,
}: DriverParts<VmdkSpec>) {
  const { spec } = layer
  const stores = storesOf(spec, extentStores)
  return new VmdkDriver({ spec, stores, layerId: storeId, metadata, clusters, isWritten })
}

/** VMware's servers take children of their own kind only. */
function childOptions(layer: LayerSpec): OptionValues {
  const { descriptor, extents } = layer.spec as VmdkSpec
  const isServers =
    /^(?:vmfs|seSparse)/i.test(descriptor?.createType ?? '') ||
    extents.some(({ layout }) => layout.kind === 'cowd' || layout.kind === 'sesparse')
  return { subformat: isServers ? 'vmfsSparse' : 'monolithicSparse' }
}

const writing: FormatWriting<VmdkSpec> = {
  hasTables: true,
  createMemory: spec => ({ memory: createVmdkMemory(spec), warnings: [] }),
  writer: ({ layer, store, extentStores, driver, pool, memory, hasParent }) =>
    new VmdkWriter({
      spec: layer.spec,
      image: store,
      stores: storesOf(layer.spec, extentStores).map(extent => extent?.store),
      driver: driver as VmdkDriver,
      pool: pool as NonNullable<typeof pool>,
      memory: memory as VmdkMemory,
      hasParent,
    }),
  changeReference,
}

function checkedExtents({ layer, storeOf, isDeviceFile, obstacle }: CheckedImage) {
  const { extents } = (layer as LayerSpec<VmdkSpec>).spec
  return extents.map(({ file, layout, sizeBytes, isWritable }) => ({
    sizeBytes,
    layout,
    store: file && storeOf(file),
    obstacle: obstacle ?? (isWritable ? undefined : 'its descriptor says that it is not written'),
    isDevice: file !== undefined && isDeviceFile(file),
  }))
}

const checking: FormatChecking = {
  needsLayer: true,
  repeated: layer =>
    (layer as LayerSpec<VmdkSpec>).spec.extents.flatMap(({ file, layout }) =>
      'header' in layout ? layout.header.warnings.map(text => `${file?.path}: ${text}`) : [],
    ),
  load: async () => {
    const [{ checkVmdk }, { repairVmdk }] = await Promise.all([
      import('./check.js'),
      import('./repair.js'),
    ])
    return {
      check: (image, options) => checkVmdk(checkedExtents(image), options),
      repair: (image, what, options) => repairVmdk(checkedExtents(image), what, options),
    }
  },
}

export const vmdkFormat: Format<VmdkSpec> = {
  name: 'vmdk',
  suffixes: ['.vmdk'],
  unit: 'grain',
  matches: head => extentKind(head) !== undefined || isDescriptor(head),
  requireWritableKind,
  explainUnmatched: lonePart,
  open,
  sizeBytes: ({ spec }) => spec.sizeBytes,
  reference,
  checkBelow,
  namedFile: ({ fd, spec }) => {
    const extent = spec.extents.find(({ file }) => file && file.fd !== fd)
    return extent?.file && { role: 'extent', name: extent.file.path }
  },
  externalSnapshots: { childOptions, list: snapshotsOfDisk, open: openFrozen },
  foreignLocks: vmwareLocks,
  children: (layer, folders) => childrenOf(layer, layer.spec, folders),
  filesNeeded: filesNeededByVmdk,
  driver,
  unpack: unpackGrainJob,
  mapping: ({ spec }, driver) => vmdkMapping(spec, driver as VmdkDriver),
  writing,
  resizing: { load: async () => (await import('./resize.js')).vmdkResizer },
  creating: { load: async () => (await import('./create.js')).vmdkCreator },
  contentId: ({ spec }) => spec.descriptor?.cid,
  checking,
  describe: describeVmdk,
  attributes: ({ spec: { descriptor } }) =>
    descriptor
      ? {
          'create-type': descriptor.createType,
          cid: descriptor.cid.toString(16).padStart(8, '0'),
        }
      : {},
  tableBytes: ({ spec }) => tableBytes(spec),
  unitBytes: () => 1,
}
