/**
 * The snapshots of the virtual machine that a disk belongs to. Each snapshot froze the disk file that was current at its time. Its
 * name is in the VM's .vmsd, beside the disk (see vmsd.ts).
 */
import path from 'node:path'
import { ImageError } from '../../errors.js'
import { type Naming, type OpenedFile, openFirst } from '../../io/named-file.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { LayerSpec, NamedSnapshot } from '../format.js'
import { parentNames } from './parent.js'
import { parseVmsd, parseVmxDisks, type VmsdSnapshot } from './vmsd.js'

/** The year 10000, in milliseconds: no real date is later. */
const END_OF_TIME = Date.UTC(10_000)
/** The most virtual machines of one folder that are read. */
const MAX_VMS = 64

/**
 * Returns the snapshots of the disk with these `layers`, parents first; none if no .vmsd among `names`, the files beside the
 * disk, mentions it. Calls `warn` about files that cannot be read.
 */
export function snapshotsOfDisk(
  names: readonly string[],
  layers: readonly LayerSpec[],
  read: (name: string) => Buffer | undefined,
  warn: (text: string) => void,
): NamedSnapshot[] {
  const own = new Set(layers.map(({ path: file }) => path.basename(file)))
  for (const file of listsOf(names)) {
    try {
      const { snapshots } = parseVmsd(read(file) ?? Buffer.alloc(0), file)
      const node = nodeOf(file, snapshots, own, read)
      if (node !== undefined) return snapshots.flatMap(snapshot => named(snapshot, node, own))
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      warn(`${file}: ${error.message}; snapshots are shown by their files' names`)
    }
  }
  return []
}

/** Returns the disk's device node, from a snapshot that froze one of its files, or from the VM's .vmx. */
function nodeOf(
  vmsd: string,
  snapshots: readonly VmsdSnapshot[],
  own: ReadonlySet<string>,
  read: (name: string) => Buffer | undefined,
): string | undefined {
  const isOwn = ({ fileName }: { fileName: string }) => own.has(baseName(fileName))
  for (const { disks } of snapshots) {
    const disk = disks.find(isOwn)
    if (disk) return disk.node
  }
  const vmx = `${vmsd.slice(0, -'.vmsd'.length)}.vmx`
  const bytes = read(vmx)
  return bytes && parseVmxDisks(bytes).find(isOwn)?.node
}

/** Chooses the snapshot's disk with that node, or one that is among the layers. */
function named(snapshot: VmsdSnapshot, node: string, own: ReadonlySet<string>): NamedSnapshot[] {
  const { disks } = snapshot
  const disk =
    disks.find(({ fileName }) => own.has(baseName(fileName))) ??
    disks.find(disk => node !== '' && disk.node === node)
  if (!disk) return []
  const { uid, parent, displayName, description, created } = snapshot
  const milliseconds = created?.getTime() ?? -1
  const isTime = milliseconds >= 0 && milliseconds < END_OF_TIME
  const time = isTime && {
    seconds: Math.floor(milliseconds / 1000),
    nanoseconds: (milliseconds % 1000) * 1e6,
  }
  const { fileName } = disk
  return [{ uid, parent, displayName, description, created: time || undefined, fileName }]
}

/**
 * Opens the disk file that a snapshot froze, also if its folder was moved: a linked clone's snapshot lies in the folder of
 * another VM. It prefers a layer of the disk to another file with the same name. Throws ImageError.
 */
export function openFrozen(
  fileName: string,
  naming: Naming,
  layers: readonly LayerSpec[],
  isSame: (file: OpenedFile, layer: FileSpec) => boolean,
): OpenedFile {
  const names = parentNames(fileName)
  const own = layers.filter(layer => path.basename(layer.path) === baseName(fileName))
  try {
    const isOwn = (file: OpenedFile) => own.some(layer => isSame(file, layer))
    const known = own.length > 0 && openFirst(names, naming, isOwn)
    if (known) return known
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
  }
  return openFirst(names, naming) as OpenedFile
}

const listsOf = (names: readonly string[]): string[] =>
  names
    .filter(name => name.toLowerCase().endsWith('.vmsd'))
    .sort()
    .slice(0, MAX_VMS)

const baseName = (name: string): string => name.replaceAll('\\', '/').split('/').at(-1) as string
