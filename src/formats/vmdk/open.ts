/**
 * Opens a VMDK image: a descriptor, in its own file or within a sparse extent, and the extents that it lists, which follow one
 * another on the disk (VMware, Virtual Disk Format 5.0).
 */
import path from 'node:path'
import { ImageError, printable } from '../../errors.js'
import type { Store } from '../../io/store.js'
import type { FileSpec } from '../../io/file-spec.js'
import { MAX_VMDK_DESCRIPTOR_BYTES } from '../limits.js'
import { lonePart } from './lone-part.js'
import { type CowdHeader, readCowdHeader } from './cowd.js'
import { type Descriptor, type ExtentLine, isDescriptor, parseDescriptor } from './descriptor.js'
import type { Region } from './grain-tables.js'
import { extentKind } from './parts.js'
import { isPadding } from './text.js'
import { readSesparseHeader, type SesparseHeader } from './sesparse.js'
import { readEmbeddedDescriptor, readSparseHeader, type SparseHeader } from './sparse-header.js'
import { SECTOR_BYTES } from '../../sector.js'

/** Plain data, which can be sent to threads as a message. */
export interface VmdkSpec {
  /** The size of the disk. */
  readonly sizeBytes: number
  /** Undefined for an extent that was opened without its descriptor. */
  readonly descriptor: Descriptor | undefined
  /** The place of its text in the image's file. */
  readonly descriptorPlace: Region | undefined
  readonly extents: readonly VmdkExtent[]
}

export interface VmdkExtent {
  /** The size of its part of the disk. */
  readonly sizeBytes: number
  /** Undefined if all of it is zeros. */
  readonly file: FileSpec | undefined
  /** Whether its line allows writing, and its kind of file can be written. */
  readonly isWritable: boolean
  readonly layout: ExtentLayout
}

export type ExtentLayout =
  | { readonly kind: 'zero' }
  | { readonly kind: 'flat'; readonly startBytes: number }
  | SparseLayout
type SparseLayout =
  | { readonly kind: 'sparse'; readonly header: SparseHeader }
  | { readonly kind: 'cowd'; readonly header: CowdHeader }
  | { readonly kind: 'sesparse'; readonly header: SesparseHeader }

export interface Opener {
  storeOf(file: FileSpec): Store
  /** Opens a file that the descriptor names; `isWritable` says whether the extent is. Throws ImageError. */
  open(fileName: string, isWritable: boolean): FileSpec
  warn(text: string): void
}

/** Opens all extents of the image in `file`. Throws ImageError. */
export function openVmdk(file: FileSpec, opener: Opener): VmdkSpec {
  const store = opener.storeOf(file)
  const kind = kindOf(store)
  if (kind === undefined) {
    const text = allOf(store)
    const place = { offset: 0, bytes: text.length }
    return described(parseDescriptor(text, file.path), place, file, opener)
  }
  const layout = layoutOf(store, kind, file.path, opener)
  const embedded =
    layout.kind === 'sparse' ? readEmbeddedDescriptor(store, layout.header) : undefined
  // An extent of a split disk has room for a descriptor, but that is empty.
  if (embedded === undefined || embedded.text.toString('latin1').trim() === '') {
    opener.warn(`${file.path}: it has no descriptor, and is shown as a disk of its own`)
    return { descriptor: undefined, descriptorPlace: undefined, ...whole(file, layout) }
  }
  const { text, offset } = embedded
  const sectors = capacityOf(layout) / SECTOR_BYTES
  const own = sectors > 0 ? { fileName: path.basename(file.path), sectors } : undefined
  const descriptor = parseDescriptor(text, file.path, own)
  const place = { offset, bytes: text.length }
  // The file may have been renamed: a single extent is the file itself.
  const [line, ...others] = descriptor.extents
  if (others.length > 0 || capacityOf(layout) === 0) {
    return described(descriptor, place, file, opener)
  }
  return { descriptor, descriptorPlace: place, ...lined(line as ExtentLine, file, layout) }
}

/** Returns the size of all tables that the disk can have, in bytes. */
export function tableBytes({ extents }: VmdkSpec): number {
  const bytesOf = ({ sizeBytes, layout }: VmdkExtent): number => {
    if (layout.kind === 'zero' || layout.kind === 'flat') return 0
    const entryBytes = layout.kind === 'sesparse' ? 8 : 4
    return Math.ceil(sizeBytes / layout.header.grainBytes) * entryBytes
  }
  return extents.reduce((sum, extent) => sum + bytesOf(extent), 0)
}

function described(
  descriptor: Descriptor,
  descriptorPlace: Region,
  file: FileSpec,
  opener: Opener,
): VmdkSpec {
  const layouts = new Map<number, SparseLayout>()
  const extents = descriptor.extents.map(line => extentOf(line, file, opener, layouts))
  const sizeBytes = extents.reduce((sum, extent) => sum + extent.sizeBytes, 0)
  return { descriptor, descriptorPlace, extents, sizeBytes }
}

type Disk = Pick<VmdkSpec, 'sizeBytes' | 'extents'>

function whole(file: FileSpec, layout: SparseLayout): Disk {
  const sizeBytes = capacityOf(layout)
  return { sizeBytes, extents: [{ sizeBytes, file, isWritable: true, layout }] }
}

function lined(line: ExtentLine, file: FileSpec, layout: SparseLayout): Disk {
  const sizeBytes = line.sectors * SECTOR_BYTES
  requireCapacity(line, file, layout)
  return { sizeBytes, extents: [{ sizeBytes, file, isWritable: line.access === 'RW', layout }] }
}

/** @param layouts the layouts of files that earlier lines have named, by file descriptor */
function extentOf(
  line: ExtentLine,
  image: FileSpec,
  opener: Opener,
  layouts: Map<number, SparseLayout>,
): VmdkExtent {
  const refuse = (what: string, hint: string): never => {
    const text = printable(line.line)
    throw new ImageError('UNSUPPORTED', `${what}: ${text}`, { path: image.path, hint })
  }
  if (line.access === 'NOACCESS')
    refuse('an extent may not be accessed', 'remove it where it is in use')
  if (line.type === 'VMFSRDM' || line.type === 'VMFSRAW') {
    refuse(
      'an extent is a raw device of an ESX host',
      'open it on that host, or clone it to a disk file',
    )
  }
  const sizeBytes = line.sectors * SECTOR_BYTES
  if (line.type === 'ZERO') {
    return { sizeBytes, file: undefined, isWritable: false, layout: { kind: 'zero' } }
  }
  const isWritable = line.access === 'RW'
  const file = opener.open(line.fileName as string, isWritable)
  const store = opener.storeOf(file)
  if (line.type === 'FLAT' || line.type === 'VMFS') {
    const startBytes = line.startSectors * SECTOR_BYTES
    if (startBytes + sizeBytes > file.sizeBytes) {
      const lost = startBytes + sizeBytes - file.sizeBytes
      opener.warn(`${file.path}: its last ${lost} bytes are missing; reading them fails`)
    }
    return { sizeBytes, file, isWritable, layout: { kind: 'flat', startBytes } }
  }
  const kind = kindOf(store)
  if (kind === undefined) {
    throw new ImageError(
      'CORRUPT',
      `the extent "${printable(line.fileName as string)}" is not sparse, as its line says`,
      {
        path: image.path,
        hint: 'restore the extent from a copy',
      },
    )
  }
  const layout = layouts.get(file.fd) ?? layoutOf(store, kind, file.path, opener)
  layouts.set(file.fd, layout)
  requireCapacity(line, file, layout)
  return { sizeBytes, file, isWritable, layout }
}

/** Throws if an extent holds less than its line says. It may hold more, since it has whole grains. */
function requireCapacity(line: ExtentLine, file: FileSpec, layout: SparseLayout): void {
  const held = capacityOf(layout)
  const sizeBytes = line.sectors * SECTOR_BYTES
  if (held > 0 && held >= sizeBytes) return
  throw new ImageError(
    'CORRUPT',
    `the extent holds ${held} bytes, and its line says ${sizeBytes}`,
    {
      path: file.path,
      hint: 'restore it from a copy',
    },
  )
}

const capacityOf = ({ header }: SparseLayout): number => header.capacityBytes

function layoutOf(
  store: Store,
  kind: SparseLayout['kind'],
  path: string,
  opener: Opener,
): SparseLayout {
  const layout: SparseLayout =
    kind === 'sparse'
      ? { kind, header: readSparseHeader(store) }
      : kind === 'cowd'
        ? { kind, header: readCowdHeader(store) }
        : { kind, header: readSesparseHeader(store) }
  for (const warning of layout.header.warnings) opener.warn(`${path}: ${warning}`)
  return layout
}

function kindOf(store: Store): SparseLayout['kind'] | undefined {
  const head = Buffer.alloc(8)
  store.read(head, 0, head.length, 0)
  return extentKind(head)
}

/** Reads a descriptor that takes its whole file. */
function allOf(store: Store): Buffer {
  const head = Buffer.alloc(SECTOR_BYTES)
  const isText = isDescriptor(head.subarray(0, store.read(head, 0, head.length, 0)))
  const part = isText ? undefined : lonePart(store.path)
  if (part) throw part
  if (store.sizeBytes > MAX_VMDK_DESCRIPTOR_BYTES) {
    const what = `a descriptor of ${store.sizeBytes} bytes is too long`
    throw new ImageError('CORRUPT', what, { path: store.path, hint: 'restore it from a copy' })
  }
  const buffer = Buffer.alloc(store.sizeBytes)
  const bytes = buffer.subarray(0, store.read(buffer, 0, buffer.length, 0))
  const nul = bytes.indexOf(0)
  // Extents after a NUL would be missing from the disk.
  if (nul >= 0 && !isPadding(bytes.subarray(nul))) {
    const what = `the descriptor has a NUL at ${nul}, before its end`
    throw new ImageError('CORRUPT', what, { path: store.path, hint: 'restore it from a copy' })
  }
  return bytes
}
