/**
 * Opening an image with all that it stands on: its backing files and data files, as plain data that
 * is handed to worker threads. Nothing is read but headers and the top's snapshot table.
 */
import fs from 'node:fs'
import { ImageError, printable } from '../errors.js'
import { closeFolders, type Folder, namesIn } from '../io/folders.js'
import { isWrittenByOthers, lockImage } from '../io/locks.js'
import {
  type Access,
  type OpenedFile,
  openFirst,
  openImage,
  openNamed,
  readIfThere,
  WriteProtected,
} from '../io/named-file.js'
import type { Store } from '../io/store.js'
import {
  backingNameOf,
  type FileSpec,
  fileSpec,
  filesOf,
  type LayerEncryption,
  type LayerSpec,
  storeOf,
} from './layer.js'
import {
  MAX_CHAIN_DEPTH,
  MAX_LAYERS,
  MAX_REFUSED_SNAPSHOTS,
  MAX_VMSD_BYTES,
} from '../formats/limits.js'
import { type CowHeader, readCowHeader } from '../formats/cow/header.js'
import { FORMATS, FORMATS_READ, type Format, probe } from '../formats/probe.js'
import { probedWarning } from './probed.js'
import { guessFormat, requireWritableFormat } from '../formats/raw/guess.js'
import { readQcowHeader } from '../formats/qcow/header.js'
import { CRYPT, INCOMPATIBLE, type Qcow2Header, readHeader } from '../formats/qcow2/header.js'
import { requireWhole } from '../formats/qcow2/losses.js'
import { backInPlace, backingHint, besideImage, loopAt, withReadOnlyWarning } from './way-out.js'
import { type LayerSnapshot, snapshotsBelow } from './layer-snapshots.js'
import { requireRecoverable } from '../formats/qcow2/recovery.js'
import { type Qcow2Snapshot, readSnapshots } from '../formats/qcow2/snapshots.js'
import { openVmdk, type VmdkSpec } from '../formats/vmdk/image.js'
import { type MachineSnapshot, openFrozen, snapshotsOfDisk } from '../formats/vmdk/machine.js'
import { vmwareLocks } from '../formats/vmdk/vmware-lock.js'
import { requireWritable } from '../formats/vmdk/writability.js'
import {
  checkCid,
  extentNames,
  type ParentLink,
  parentLink,
  parentNames,
} from '../formats/vmdk/parent.js'
import { requireUnneeded } from './write-protection.js'

export interface Chain {
  /**
   * The image first, then its backing file, and so on, `depth` of them; then what only snapshots of
   * other branches stand on. Never empty.
   */
  readonly layers: readonly [LayerSpec, ...LayerSpec[]]
  readonly depth: number
  /** The snapshots of the image itself. */
  readonly snapshots: readonly Qcow2Snapshot[]
  /** Those of the layers that it stands on, with the layer's place, from the nearest layer down. */
  readonly layerSnapshots: readonly LayerSnapshot[]
  /** Those of the machine whose disk it is: each is a disk file, frozen since. */
  readonly machineSnapshots: readonly MachineSnapshot[]
  /** What the user should know, a line each. */
  readonly warnings: readonly string[]
  /** Whether the first layer, with its data file, is open for writing. */
  readonly isWritable: boolean
  /** Whether recovery.ts has to make the image's counts right first, and whether reading will do otherwise. */
  readonly recovery?: 'required' | 'if possible' | undefined
}

export interface OpenOptions {
  /** The image's format; found by its first bytes where it is not given. */
  readonly format?: Format
  /** Folders besides the image's own that it may name files in. */
  readonly allowPaths?: readonly string[]
  /** Layers at most, 1 to MAX_CHAIN_DEPTH.highest. */
  readonly maxDepth?: number
  /**
   * What the image is opened for; all that it stands on is read only. 'write if possible' falls back to
   * reading, with a warning, where the image is write-protected or marked corrupt. Reading is the default.
   */
  readonly access?: Access | 'write if possible'
  /** Whether a vmdk image is read whose parent has changed since; with a warning. */
  readonly ignoreCid?: boolean
  /** Whether a vmdk image whose changes are tracked gives that up to be written. */
  readonly dropsChangeTracking?: boolean
  /** Whether an image is written that others stand on, which breaks them. */
  readonly force?: boolean
  /** Whether QEMU's locks are taken; without, an image that others write is read with a warning. */
  readonly takesLocks?: boolean
  /**
   * Opens it only to describe it, alone or with its backing files: data files stay closed.
   */
  readonly describe?: 'image' | 'chain'
}

/** Opens `image` and what it stands on. Throws ImageError, and then leaves nothing open. */
export function openChain(image: string, options: OpenOptions = {}): Chain {
  const { access = 'read' } = options
  if (access !== 'write if possible') return openFor(access, image, options)
  try {
    return openFor('write', image, options)
  } catch (error) {
    if (!(error instanceof WriteProtected)) throw error
    const chain = openFor('read', image, options)
    const { context, message } = error
    const warnings = withReadOnlyWarning(context.path ?? image, message, chain.warnings)
    return { ...chain, warnings }
  }
}

function openFor(access: Access, image: string, options: OpenOptions): Chain {
  const opener = new ChainOpener(image, options, access)
  try {
    return opener.open()
  } catch (error) {
    opener.close()
    throw error
  } finally {
    opener.letGo()
  }
}

export function closeChain(chain: Chain): void {
  for (const layer of chain.layers) {
    for (const { fd } of filesOf(layer)) fs.closeSync(fd)
  }
}

class ChainOpener {
  private readonly opened: OpenedFile[] = []
  /** The extents' files of those that are opened for writing. */
  private readonly written: OpenedFile[] = []
  private readonly warnings: string[] = []
  private allowed: readonly Folder[] = []
  private recovery: Chain['recovery']
  private own: readonly Folder[] = []

  constructor(
    private readonly image: string,
    private readonly options: OpenOptions,
    private readonly access: Access,
  ) {}

  open(): Chain {
    const file = openImage(this.image, this.access, this.options.allowPaths ?? [])
    this.opened.push(file)
    this.allowed = file.folders
    this.own = file.own
    const top = this.layer(file, this.options.format, this.access)
    const layers: [LayerSpec, ...LayerSpec[]] = [this.withDataFile(top, this.access)]
    if (this.options.describe !== 'image') this.openBelowLast(layers)
    const depth = layers.length
    const machineSnapshots = top.vmdk ? this.machine(layers) : []
    const [{ qcow2 }] = layers
    const snapshots = qcow2 ? readSnapshots(storeOf(top), qcow2).snapshots : []
    const isWritable = this.access === 'write'
    if (top.vmdk && (isWritable || !this.options.describe)) this.judgeVmwareLocks(layers[0])
    const { describe, force } = this.options
    if (isWritable && !describe && !force && !file.stat.isBlockDevice()) {
      const frozen = machineSnapshots.filter(({ layer }) => layer === 0)
      requireUnneeded(layers[0], frozen, this.own)
    }
    const found = this.options.describe ? undefined : snapshotsBelow(layers.slice(0, depth))
    this.warnings.push(...(found?.warnings ?? []))
    const own = { snapshots, layerSnapshots: found?.snapshots ?? [], machineSnapshots }
    const { warnings, recovery } = this
    return { layers, depth, ...own, warnings, isWritable, recovery }
  }

  /** Adds what the last of `layers` stands on, down to the lowest, or to one that is among them. */
  private openBelowLast(layers: LayerSpec[]): void {
    const first = layers.length - 1
    const maxDepth = this.options.maxDepth ?? MAX_CHAIN_DEPTH.default
    for (;;) {
      const at = layers.length - 1
      const last = layers[at] as LayerSpec
      if (!standsOnAnother(last)) return
      if (at - first >= maxDepth - 1 || (first > 0 && at >= MAX_LAYERS - 1)) {
        const what = `its chain of backing files is longer than ${maxDepth}`
        throw new ImageError('UNSUPPORTED', what, {
          path: (layers[first] as LayerSpec).path,
          hint: 'raise --max-chain, or shorten it with qemu-img commit or rebase',
        })
      }
      const known = last.vmdk && first > 0 ? this.knownParent(last, last.vmdk, layers) : -1
      if (known >= first) throw loopAt(last, `parent ${(layers[known] as LayerSpec).path}`)
      layers[at] = { ...last, below: known >= 0 ? known : at + 1 }
      if (known >= 0) return
      layers.push(last.vmdk ? this.parent(last, last.vmdk) : this.backing(last))
    }
  }

  /** A disk's snapshots by its machine's own list, with the disks that they froze among `layers`. */
  private machine(layers: LayerSpec[]): MachineSnapshot[] {
    const [top] = layers as [LayerSpec]
    const found: MachineSnapshot[] = []
    let refused = 0
    const naming = { by: top.path, role: 'list of snapshots', allowed: this.allowed }
    const read = (name: string) =>
      readIfThere(name, { ...naming, hint: besideImage }, MAX_VMSD_BYTES)
    const warn = (text: string) => this.warnings.push(text)
    const beside = namesIn(this.own[0] as Folder)
    for (const snapshot of snapshotsOfDisk(beside, layers, read, warn)) {
      if (layers.length >= MAX_LAYERS || refused >= MAX_REFUSED_SNAPSHOTS) {
        this.warnings.push(
          `${top.path}: snapshots from "${printable(snapshot.displayName)}" on are not shown: there are too many, or too many of them are damaged`,
        )
        break
      }
      const before = { layers: layers.length, files: this.opened.length }
      try {
        // To describe them their disks need not be there.
        const layer = this.options.describe ? 0 : this.frozen(snapshot.fileName, layers)
        found.push({ ...snapshot, layer })
      } catch (error) {
        if (!(error instanceof ImageError)) throw error
        refused++
        layers.length = before.layers
        for (const { fd } of this.opened.splice(before.files)) fs.closeSync(fd)
        const name = printable(snapshot.displayName)
        this.warnings.push(`${top.path}: the snapshot "${name}" is not shown: ${error.message}`)
      }
    }
    return found
  }

  /**
   * The place of a disk file among the layers, where it is put if it is not there yet. Throws ImageError
   * where it stands on none of them: then it is another disk's.
   */
  private frozen(fileName: string, layers: LayerSpec[]): number {
    const [top] = layers as [LayerSpec]
    const naming = { by: top.path, role: 'snapshot', allowed: this.allowed, hint: besideImage }
    const file = openFrozen(fileName, naming, layers, isSame)
    const known = layers.findIndex(layer => isSame(file, layer))
    if (known >= 0) {
      fs.closeSync(file.fd)
      return known
    }
    this.opened.push(file)
    layers.push(this.layer(file, 'vmdk', 'read'))
    const place = layers.length - 1
    this.openBelowLast(layers)
    if ((layers.at(-1)?.below ?? place) >= place) {
      const what = `its disk "${fileName}" has nothing in common with this one`
      throw new ImageError('CORRUPT', what, { path: top.path })
    }
    return place
  }

  /** Where the parent of a vmdk layer is among those that are open; -1 where it is not. */
  private knownParent(child: LayerSpec, spec: VmdkSpec, layers: readonly LayerSpec[]): number {
    const link = parentLink(spec, child.path) as ParentLink
    const naming = { by: child.path, role: 'parent', allowed: this.allowed, hint: besideImage }
    const file = openFirst(parentNames(link.hint), naming, file => !isSame(file, child))
    if (!file) return -1
    const known = layers.findIndex(layer => isSame(file, layer))
    fs.closeSync(file.fd)
    if (known >= 0) this.judgeParent(child, spec, link, layers[known] as LayerSpec)
    return known
  }

  close(): void {
    for (const file of this.opened) fs.closeSync(file.fd)
  }

  /** Ends what only opening needs. */
  letGo(): void {
    closeFolders(this.allowed)
  }

  private backing(overlay: LayerSpec): LayerSpec {
    const name = backingNameOf(overlay) as string
    const format = this.statedFormat(overlay, name)
    const naming = { by: overlay.path, role: 'backing file', allowed: this.allowed }
    const file = openNamed(name, { ...naming, hint: backingHint(overlay) })
    const isLoop = this.isOpen(file)
    this.opened.push(file)
    if (isLoop) throw loopAt(overlay, `backing file "${name}"`)
    const layer = this.withDataFile(this.layer(file, format, 'read'), 'read')
    if (overlay.cow) this.judgeAge(overlay, overlay.cow, layer)
    return layer
  }

  private parent(child: LayerSpec, spec: VmdkSpec): LayerSpec {
    const link = parentLink(spec, child.path) as ParentLink
    const naming = { by: child.path, role: 'parent', allowed: this.allowed, hint: besideImage }
    // One that stands above has the parent's name, perhaps, and is another disk.
    const file = openFirst(parentNames(link.hint), naming, file => !this.isOpen(file))
    if (!file) throw loopAt(child, `parent "${link.hint}"`)
    this.opened.push(file)
    const layer = this.layer(file, 'vmdk', 'read')
    this.judgeParent(child, spec, link, layer)
    return layer
  }

  private judgeParent(child: LayerSpec, spec: VmdkSpec, link: ParentLink, layer: LayerSpec): void {
    const parent = layer.vmdk as VmdkSpec
    try {
      checkCid(link, parent, child.path, layer.path)
    } catch (error) {
      if (!this.options.ignoreCid || !(error instanceof ImageError)) throw error
      this.warnings.push(`${child.path}: ${error.message}; what is read may be nonsense`)
    }
    if (parent.sizeBytes !== spec.sizeBytes) {
      const sizes = `${spec.sizeBytes} bytes and ${parent.sizeBytes}`
      this.warnings.push(`${child.path}: it and its parent differ in size (${sizes})`)
    }
  }

  /** What lies below must not change with what lies above. */
  private requireUnwritten(file: OpenedFile, name: string, by: string): void {
    if (!this.written.some(({ stat }) => isSameStat(stat, file.stat))) return
    fs.closeSync(file.fd)
    const what = `its extent "${name}" is one of the disk above it, too`
    throw new ImageError('CORRUPT', what, {
      path: by,
      hint: 'correct the extent lines of the descriptors, or mount it with -o ro',
    })
  }

  private isOpen({ stat }: OpenedFile): boolean {
    return this.opened.some(other => other.stat.dev === stat.dev && other.stat.ino === stat.ino)
  }

  /** User-mode Linux refuses a backing file that has been written since, and QEMU did not look. */
  private judgeAge(
    { path }: LayerSpec,
    cow: CowHeader,
    { modified, path: below }: LayerSpec,
  ): void {
    if (!isUml(cow) || cow.backingSeconds === modified.seconds) return
    this.warnings.push(
      `${path}: its backing file ${below} has another time of last change than it had; if it was written since, what is read may be nonsense`,
    )
  }

  private statedFormat(overlay: LayerSpec, name: string): Format | undefined {
    // User-mode Linux knows no others.
    if (overlay.cow && isUml(overlay.cow)) return 'raw'
    const stated = overlay.qcow2?.backingFormat
    if (stated === undefined || stated === '') {
      this.warnings.push(
        `${overlay.path}: the format of its backing file "${name}" is not stated and was found by its first bytes`,
      )
      return undefined
    }
    // QEMU calls a raw file by the name of its protocol too.
    if (stated === 'file' || stated === 'host_device') return 'raw'
    const known = FORMATS.find(format => format === stated)
    if (known) return known
    throw new ImageError('UNSUPPORTED', `its backing file "${name}" has the format "${stated}"`, {
      path: overlay.path,
      hint: `${FORMATS_READ} are read; convert it with qemu-img convert`,
    })
  }

  private layer(file: OpenedFile, format: Format | undefined, access: Access): LayerSpec {
    const layer = this.readLayer(file, format, access)
    const warning = probedWarning(layer)
    if (warning !== undefined) this.warnings.push(warning)
    return layer
  }

  private readLayer(file: OpenedFile, format: Format | undefined, access: Access): LayerSpec {
    const isTop = this.opened.length === 1
    // Nobody has to be kept out of what is never written.
    if (access === 'write') requireWritableFormat(storeOf(fileSpec(file)), format)
    // First of all: what is read before others are kept out may change at once.
    this.lock(file, access)
    const spec = fileSpec(file)
    const store = storeOf(spec)
    const actual = format ?? (isTop ? guessFormat(store) : probe(store))
    const layer: LayerSpec = {
      ...spec,
      format: actual,
      isProbed: format === undefined,
    }
    if (actual === 'raw') return layer
    if (actual === 'vmdk') return this.vmdkLayer(layer, access, file.stat.isBlockDevice())
    if (actual === 'cow') {
      const cow = readCowHeader(store)
      for (const warning of cow.warnings) this.warnings.push(`${spec.path}: ${warning}`)
      return { ...layer, cow }
    }
    if (actual === 'qcow') {
      const qcow = readQcowHeader(store)
      return { ...layer, qcow, ...(qcow.cryptMethod === CRYPT.aes && { encryption: AES }) }
    }
    const header = readHeader(store)
    this.judge(header, store, access)
    if (header.incompatible & INCOMPATIBLE.dirty && access === 'write') {
      this.judgeRecovery(store)
    }
    return { ...layer, qcow2: header, ...encryptionOf(header) }
  }

  private vmdkLayer(layer: LayerSpec, access: Access, isDevice: boolean): LayerSpec {
    const known: { file: OpenedFile; spec: FileSpec; access: Access }[] = []
    const naming = { by: layer.path, role: 'extent', allowed: this.allowed, hint: besideImage }
    const vmdk = openVmdk(layer, {
      storeOf,
      warn: text => this.warnings.push(text),
      open: (name, isWritable) => {
        const extentAccess = isWritable ? access : 'read'
        const told = (_: OpenedFile, found: string) => {
          if (found !== name && found !== name.replaceAll('\\', '/')) {
            this.warnings.push(`${layer.path}: for its extent "${name}" "${found}" is used`)
          }
          return true
        }
        const file = openFirst(extentNames(name), naming, told, extentAccess) as OpenedFile
        // Many lines may name one file.
        const again = isSame(file, layer)
          ? { spec: layer, access }
          : known.find(({ file: { stat } }) => isSameStat(stat, file.stat))
        if (again) {
          fs.closeSync(file.fd)
          if (again.access === extentAccess || again.access === 'write') return again.spec
          const what = 'one part of it may be written, and another may not'
          throw new WriteProtected(again.spec.path, what, 'mount it with -o ro')
        }
        if (access === 'read') this.requireUnwritten(file, name, layer.path)
        this.opened.push(file)
        if (extentAccess === 'write') this.written.push(file)
        this.lock(file, extentAccess)
        const spec = fileSpec(file)
        known.push({ file, spec, access: extentAccess })
        return spec
      },
    })
    if (access === 'write') {
      const dropsChangeTracking = this.options.dropsChangeTracking === true
      requireWritable(vmdk, layer.path, { dropsChangeTracking, isDevice })
    }
    return { ...layer, vmdk }
  }

  /** Whether recovery.ts can make its counts right, which it does once nothing can refuse the image any more. */
  private judgeRecovery(store: Store): void {
    try {
      requireRecoverable(store)
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      throw new WriteProtected(store.path, error.message, 'mount it with -o ro, or repair a copy')
    }
    this.recovery = this.options.access === 'write' ? 'required' : 'if possible'
  }

  private lock(file: OpenedFile, access: Access): void {
    if (this.options.takesLocks) {
      const warning = lockImage(file.fd, file.path, access)
      if (warning !== undefined) this.warnings.push(warning)
    } else if (isWrittenByOthers(file.fd)) {
      this.warnings.push(
        `${file.path}: another program has it open for writing (a running machine?); what is read may be out of date or torn`,
      )
    }
  }

  /** VMware's programs know nothing of QEMU's locks, and QEMU nothing of theirs. */
  private judgeVmwareLocks(top: LayerSpec): void {
    for (const { path: file } of filesOf(top)) {
      for (const { path: lock, isLive, owner, writes } of vmwareLocks(file, this.allowed)) {
        if (!isLive) {
          this.warnings.push(
            `${file}: ${lock} was left behind by ${owner}, and is no lock any more`,
          )
        } else if (this.access === 'write') {
          const what = `it is in use by ${owner}, says ${lock}`
          throw new ImageError('REFUSED', what, {
            path: file,
            hint: 'end that, or read it with -o ro; where nobody uses it, delete the lock',
          })
        } else if (writes) {
          this.warnings.push(
            `${file}: it is in use by ${owner}, says ${lock}; what is read may be out of date or torn`,
          )
        }
      }
    }
  }

  private judge(header: Qcow2Header, store: Store, access: Access): void {
    const { path } = store
    requireWhole(store, header, access, text => this.warnings.push(text))
    const isCorrupt = (header.incompatible & INCOMPATIBLE.corrupt) !== 0n
    if (isCorrupt && access === 'write') {
      const hint = 'repair a copy of it with vimgfs check --repair all, or mount it with -o ro'
      throw new WriteProtected(path, 'it is marked corrupt', hint)
    }
    // Opened for writing it is repaired.
    if (header.incompatible & INCOMPATIBLE.dirty && access === 'read') {
      this.warnings.push(
        `${path}: it was not closed cleanly (its dirty bit is set); its data read as they are`,
      )
    }
    if (isCorrupt) {
      this.warnings.push(
        `${path}: it is marked corrupt; what is readable is shown, check it with vimgfs check`,
      )
    }
  }

  private withDataFile(layer: LayerSpec, access: Access): LayerSpec {
    const header = layer.qcow2
    if (!header || this.options.describe) return layer
    if ((header.incompatible & INCOMPATIBLE.externalData) === 0n) return layer
    const name = header.dataFileName as string
    const naming = { by: layer.path, role: 'data file', allowed: this.allowed, hint: backInPlace }
    const file = openNamed(name, naming, access)
    const isOpen = this.isOpen(file)
    this.opened.push(file)
    // Written to, it would write over tables.
    if (isOpen) {
      throw new ImageError('CORRUPT', `its data file "${name}" is an image of its own chain`, {
        path: layer.path,
        hint: 'restore the image from a copy',
      })
    }
    this.lock(file, access)
    return { ...layer, dataFile: fileSpec(file) }
  }
}

const standsOnAnother = (layer: LayerSpec): boolean =>
  backingNameOf(layer) !== undefined ||
  (layer.vmdk !== undefined && parentLink(layer.vmdk, layer.path) !== undefined)

const isUml = ({ layout }: CowHeader): boolean => layout.startsWith('uml')

const AES: LayerEncryption = { method: 'AES' }

function encryptionOf({ cryptMethod, encryption }: Qcow2Header): Pick<LayerSpec, 'encryption'> {
  if (cryptMethod === CRYPT.aes) return { encryption: AES }
  if (cryptMethod !== CRYPT.luks) return {}
  return { encryption: { method: 'LUKS', ...(encryption && { headerArea: encryption }) } }
}

const isSame = ({ stat }: OpenedFile, other: FileSpec): boolean =>
  isSameStat(stat, fs.fstatSync(other.fd, { bigint: true }))

const isSameStat = (a: fs.BigIntStats, b: fs.BigIntStats): boolean =>
  a.dev === b.dev && a.ino === b.ino
