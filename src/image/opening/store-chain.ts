/** Opening an image that lies in stores, not in files of this machine: in memory, behind a network, in a test. */
import { ImageError } from '../../errors.js'
import type { Format, LayerSpec, OpenContext } from '../../formats/format.js'
import { MAX_CHAIN_DEPTH } from '../../formats/limits.js'
import { probe } from '../../formats/probe.js'
import { findFormat, formatOf } from '../../formats/registry.js'
import { loopAt } from '../../formats/way-out.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { Store, WritableStore } from '../../io/store.js'
import type { Chain, OpenOptions } from './chain.js'
import { referenceOf } from '../layer.js'
import { statedFormat } from './stated-format.js'
import type { StoreSource } from './store-source.js'

export interface ImageStores {
  /** The image's own file. */
  readonly image: Store
  /** The files that the image and its layers may name, by these names: backing files, data files, extents. */
  readonly files?: Readonly<Record<string, Store>>
}

/** A file's number is its place among the stores. */
export class StoreFiles implements StoreSource {
  private readonly stores: Store[] = []

  /** Returns the plain data that stand for `store`. */
  add(store: Store): FileSpec {
    const known = this.stores.indexOf(store)
    const fd = known < 0 ? this.stores.push(store) - 1 : known
    const { path, sizeBytes } = store
    const modified = { seconds: 0, nanoseconds: 0 }
    return { path, fd, sizeBytes, allocatedBytes: sizeBytes, modified, mode: 0o600, gid: 0 }
  }

  readable({ fd }: FileSpec): Store {
    return this.stores[fd] as Store
  }

  writable({ fd }: FileSpec): WritableStore {
    return this.stores[fd] as WritableStore
  }
}

/**
 * Opens the image and what it stands on. Locks nothing and looks at nothing but the stores. Throws ImageError,
 * SystemError.
 */
export function openStores(
  { image, files = {} }: ImageStores,
  options: Pick<OpenOptions, 'format' | 'maxDepth' | 'ignoreCid' | 'dropsChangeTracking'> & {
    readonly access?: 'read' | 'write'
  } = {},
): { chain: Chain; source: StoreFiles } {
  const { access = 'read', maxDepth = MAX_CHAIN_DEPTH.default } = options
  const source = new StoreFiles()
  const warnings: string[] = []
  const warn = (text: string) => void warnings.push(text)
  let needsRecovery = false

  const named = (names: readonly string[], by: string, role: string): Store => {
    const name = names.find(each => Object.hasOwn(files, each))
    if (name !== undefined) return files[name] as Store
    throw new ImageError('MISSING', `its ${role} "${names[0]}" is not among the stores`, {
      path: by,
      hint: 'give it with the name that the image has for it',
    })
  }
  const layerOf = (store: Store, format: Format, isTop: boolean, isProbed: boolean): LayerSpec => {
    const file = source.add(store)
    const context: OpenContext = {
      access: isTop ? access : 'read',
      isDescribed: false,
      isDevice: false,
      dropsChangeTracking: options.dropsChangeTracking === true,
      known: undefined,
      warn,
      storeOf: spec => source.readable(spec),
      openDataFile: name => source.add(named([name], store.path, 'data file')),
      openExtent: (name, names) => source.add(named([...names, name], store.path, 'extent')),
    }
    const { needsRecovery: isUnclean, ...opened } = format.open(file, context)
    if (isUnclean) needsRecovery = true
    return { ...file, format: format.name, isProbed, ...opened }
  }
  const formatNamed = (store: Store, name: string | undefined) =>
    name === undefined ? probe(store) : (findFormat(name) as Format)

  const { format } = options
  if (access === 'write') formatNamed(image, format).requireWritableKind?.(image)
  const top = layerOf(image, formatNamed(image, format), true, format === undefined)
  const layers: [LayerSpec, ...LayerSpec[]] = [top]
  for (;;) {
    const last = layers.at(-1) as LayerSpec
    const reference = referenceOf(last)
    if (!reference) break
    if (layers.length >= maxDepth) {
      const what = `its chain of backing files is longer than ${maxDepth}`
      throw new ImageError('UNSUPPORTED', what, { path: top.path })
    }
    const stated = statedFormat(last, reference, warn)
    const store = named(reference.names, last.path, reference.role)
    if (layers.some(({ fd }) => source.readable({ ...last, fd }) === store)) {
      throw loopAt(last, reference)
    }
    const below = layerOf(store, formatNamed(store, stated), false, stated === undefined)
    formatOf(last).checkBelow?.(last, below, { ignoreCid: options.ignoreCid === true, warn })
    layers[layers.length - 1] = { ...last, below: layers.length }
    layers.push(below)
  }
  const snapshots = formatOf(top).internalSnapshots?.read(image, top.spec) ?? []
  const chain: Chain = {
    layers,
    depth: layers.length,
    snapshots,
    layerSnapshots: [],
    externalSnapshots: [],
    warnings,
    isWritable: access === 'write',
    recovery: needsRecovery ? 'required' : undefined,
  }
  return { chain, source }
}
