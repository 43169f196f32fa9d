/**
 * The seam between the formats and the rest of the program: everything that the program asks of a format. A format is a
 * folder with one such object, and a row in registry.ts.
 *
 * `S` is the result of the format's `open`, from the image's header. It must be plain data, so that it can be sent to threads
 * as a message.
 */
import type { ClusterCache } from '../cache/cluster-cache.js'
import type { MetadataCache } from '../cache/metadata-cache.js'
import type { TablePool } from '../cache/table-pool.js'
import type { CipherSpec } from '../crypto/spec.js'
import type { ImageError } from '../errors.js'
import type { FileSpec, Timestamp } from '../io/file-spec.js'
import type { Folder } from '../io/folders.js'
import type { Access, Naming, OpenedFile, ReadersProblem } from '../io/named-file.js'
import type { BaseNote } from './base-note.js'
import type { Store, WritableStore } from '../io/store.js'
import type { CheckOptions, CheckResult, RepairKind, RepairResult } from './check/report.js'
import type { FormatCreating, OptionValues } from './creating.js'
import type { FormatDriver } from './driver.js'
import type { ForeignLock } from './foreign-lock.js'
import type { InfoFields } from './info-fields.js'
import type { FormatResizing } from './resizing.js'
import type { SnapshotWriter } from './snapshot-writer.js'
import type { Mapping } from './mapping.js'
import type { FormatUsage } from './usage.js'
import type { WritableDriver } from './writable.js'

/** How many of an image's first bytes decide its format. */
export const PROBED_BYTES = 512

export interface Format<S = unknown> {
  /** The name for `--format`: QEMU's name if QEMU knows the format. */
  readonly name: string
  /** Suffixes of file names that promise this format, with the dot; none if names say nothing. */
  readonly suffixes: readonly string[]
  /** The name of the unit in messages. */
  readonly unit: 'cluster' | 'grain' | 'sector'
  /** Reports whether an image has this format that begins with `head`: PROBED_BYTES, or all of a shorter file. */
  matches(head: Buffer): boolean
  /** Does the same for a format that the first bytes do not show. Asked only if no format matches. Throws SystemError. */
  matchesStore?(store: Store): boolean
  /**
   * Throws WriteProtected if the first bytes show an image that is never written. Asked before other programs are locked out of
   * the image.
   */
  requireWritableKind?(store: Store): void
  /** Returns the error for a file that no format matches, if its name is that of a part of such an image. */
  explainUnmatched?(path: string): ImageError | undefined
  /** Reads the header, and opens the files that hold the rest of the layer. Throws ImageError. */
  open(file: FileSpec, context: OpenContext): OpenedLayer<S>
  /** Returns the size of the disk, in bytes. */
  sizeBytes(layer: LayerSpec<S>): number
  /** Returns the reference to the backing file or parent. Throws ImageError if the header does not say where it is. */
  reference?(layer: LayerSpec<S>): Reference | undefined
  /** Checks the layer below after it is opened. Throws ImageError if the two do not belong together. */
  checkBelow?(layer: LayerSpec<S>, below: LayerSpec, context: BelowContext): void
  /** Returns the number by which images that stand on this one know its content; undefined if it has none. */
  contentId?(layer: LayerSpec<S>): number | undefined
  /** Returns the role and the name of another file that the image names, for messages. */
  namedFile?(layer: LayerSpec<S>): { readonly role: string; readonly name: string } | undefined
  readonly internalSnapshots?: InternalSnapshots<S>
  readonly externalSnapshots?: ExternalSnapshots
  /** Returns the locks beside the file at `path` of programs that do not know QEMU's locks. */
  foreignLocks?(path: string, allowed: readonly Folder[]): ForeignLock[]
  /**
   * Returns the names of the files that an image of this format says it needs as they are: backing file, data file, extents. The
   * names are as they are in the file; they may go on after a NUL. The image may be damaged, encrypted or of an unknown version.
   * None if the first bytes are not of this format.
   * @param head the first bytes, at most 8192
   */
  filesNeeded?(head: Buffer, read: ReadPart): Buffer[]
  /** Returns the names of images in `folders` that need this one and say so in this format's own way. */
  children?(layer: LayerSpec<S>, folders: readonly Folder[]): string[]
  driver(parts: DriverParts<S>): FormatDriver
  /** Decompresses a cluster of `store` into `target`, by a packed extent's `job.numbers`. Throws ImageError, SystemError. */
  unpack?(store: Store, numbers: readonly number[], target: Buffer): void
  /**
   * Returns what `map` shows besides the answers of `driver`, which reads the layer, or a snapshot in it; by default nothing.
   * @param store the layer's own file
   */
  mapping?(layer: LayerSpec<S>, driver: FormatDriver, store: Store): Mapping
  /** Undefined for formats that are only read. */
  readonly writing?: FormatWriting<S>
  /** Undefined if the disk's size never changes. */
  readonly resizing?: FormatResizing
  /** Undefined if no new images are made. */
  readonly creating?: FormatCreating
  /** Recovers the image for writing, if `open` said that it needs that. Throws ImageError. */
  recover?(store: WritableStore): { readonly spec: S; readonly warning: string | undefined }
  /** Undefined if there is nothing to check. */
  readonly checking?: FormatChecking
  /** Undefined if only its driver tells which parts of the disk take space. */
  readonly usage?: FormatUsage
  describe(layer: LayerSpec<S>, context: DescribeContext): Description
  /** Returns extended attributes for the disk's file. */
  attributes?(layer: LayerSpec<S>): Readonly<Record<string, string>>
  /** Returns the size of all tables that the disk can have, in bytes. */
  tableBytes(layer: LayerSpec<S>): number
  /** Returns the unit within which a file of the image may end, in bytes; 1 if it may not. Used for encrypted data. */
  unitBytes(spec: S): number
}

/** Reads `length` bytes of a file at `at`; fewer, or none, at its end. Throws SystemError. */
export type ReadPart = (at: number | bigint, length: number) => Buffer

/** A layer of an image as it was opened: plain data. */
export interface LayerSpec<S = unknown> extends FileSpec {
  /** The name of its format. */
  readonly format: string
  /** Whether the format was not stated, and was found by the file's bytes. */
  readonly isProbed?: boolean
  readonly spec: S
  /** Present if its data are encrypted. */
  readonly encryption?: LayerEncryption
  /** The file with all data, if that is not the layer's own file. */
  readonly dataFile?: FileSpec
  /** The files of the layer's extents, in order. The layer's own file may be among them. */
  readonly extentFiles?: readonly FileSpec[]
  /** The index of the layer that is read where this one is unallocated. */
  readonly below?: number
}

/** 'AES' is the method of old images: 128 bits. It cannot tell a wrong passphrase. */
export type EncryptionMethod = 'AES' | 'LUKS'

export interface LayerEncryption {
  readonly method: EncryptionMethod
  /** The place of the LUKS header in the file, in bytes. */
  readonly headerArea?: { readonly offset: number; readonly length: number }
  /** Present after unlocking. */
  readonly spec?: CipherSpec
}

export type OpenedLayer<S> = Pick<
  LayerSpec<S>,
  'spec' | 'encryption' | 'dataFile' | 'extentFiles'
> & {
  /** Whether `recover` has to run before the first write. */
  readonly needsRecovery?: boolean
}

export interface OpenContext {
  readonly access: Access
  /** Whether the image is only described: data files stay closed. */
  readonly isDescribed: boolean
  readonly isDevice: boolean
  /** Whether to write an image whose changes are tracked, and give the tracking up. */
  readonly dropsChangeTracking: boolean
  /** The problem that keeps the image from being written. The user knows it already: do not warn again. */
  readonly known: ReadersProblem | undefined
  warn(text: string): void
  storeOf(file: FileSpec): Store
  /** Opens the file with all data. Throws ImageError. */
  openDataFile(name: string): FileSpec
  /** Opens an extent by its name in the image; `names` are its possible places. Throws ImageError. */
  openExtent(name: string, names: readonly string[], isWritable: boolean): FileSpec
}

/** The backing file or parent of a layer, as the layer names it. */
export interface Reference {
  readonly role: 'backing file' | 'parent'
  /** The name in the image. */
  readonly name: string
  /** The possible places of the file, likeliest first. */
  readonly names: readonly string[]
  /** Whether to skip a name that leads to a layer which is already open above. */
  readonly skipsOpen: boolean
  /** The name of its format; undefined if it is not stated. */
  readonly format: string | undefined
  /** Whether the image itself states the format. */
  readonly statesFormat: boolean
  /** Returns what the user can do if there is no file at the absolute path `file`. */
  hint(file: string): string
  /** The way out if the reference leads back to a layer above. */
  readonly loopHint: string
}

export interface BelowContext {
  /** Whether to read a parent that has changed since the child was made. */
  readonly ignoreCid: boolean
  warn(text: string): void
}

/** A snapshot within an image's file. */
export interface InternalSnapshot {
  /** Unique by the specification, but a damaged table may repeat it. */
  readonly id: string
  /** The name's bytes: usually without NUL, in an unknown encoding. */
  readonly name: Buffer
  /** Seconds since 1970. */
  readonly dateSeconds: number
  readonly dateNanoseconds: number
  /** How long the guest had run, in nanoseconds. */
  readonly guestNanoseconds: bigint
  readonly vmStateBytes: number
  /** The disk's size at that time, in bytes. */
  readonly sizeBytes: number
  /** The number of executed instructions, for record and replay; undefined if the entry does not contain it. */
  readonly icount: bigint | undefined
}

/** The place of a snapshot's tables: plain data. */
export interface SnapshotTable {
  /** In bytes of the file. */
  readonly offset: number
  readonly entries: number
  /** The size of the disk that the table maps. */
  readonly sizeBytes: number
  /** The snapshot that it belongs to. */
  readonly snapshot: Pick<InternalSnapshot, 'id' | 'dateSeconds' | 'dateNanoseconds'>
}

/** Tells whether a snapshot still exists that another program may delete at any moment. */
export interface SnapshotGuard {
  /**
   * Returns whether it does. If so, all that was read of it before is right: its tables and its data never change. Throws
   * ImageError, SystemError.
   */
  isThere(): boolean
}

export interface InternalSnapshots<S> {
  /** Returns the snapshots that can be shown, in the order of the image's table. Throws SystemError. */
  read(store: Store, spec: S): InternalSnapshot[]
  /** Reads the header anew, after snapshots have changed. Throws ImageError, SystemError. */
  reread(store: Store): S
  tableOf(snapshot: InternalSnapshot): SnapshotTable
  /** Returns the table of a snapshot's VM state, and where the state begins in it; undefined if that is impossible. */
  vmStateOf(
    spec: S,
    snapshot: InternalSnapshot,
  ): { readonly table: SnapshotTable; readonly startOffset: number } | undefined
  driver(parts: DriverParts<S>, table: SnapshotTable): FormatDriver
  /** Returns the guard of the snapshot that `table` belongs to. @param store the layer's own file */
  guard(store: Store, spec: S, table: SnapshotTable): SnapshotGuard
  /** Undefined if snapshots are only read. */
  readonly writing?: { load(): Promise<SnapshotWriter> }
}

/** A snapshot that has frozen a disk file: plain data. */
export interface ExternalSnapshot {
  readonly uid: number
  /** The snapshot before it. */
  readonly parent: number | undefined
  readonly displayName: string
  readonly description: string
  readonly created: Timestamp | undefined
  /** The file that it has frozen, as the list of snapshots names it. */
  readonly fileName: string
  /** The index of that file's layer. */
  readonly layer: number
}

/** The same, before its file is searched. */
export type NamedSnapshot = Omit<ExternalSnapshot, 'layer'>

export interface ExternalSnapshots {
  /** Returns the options for the new disk that a snapshot of `layer` makes, to hold what is written after it. */
  childOptions(layer: LayerSpec): OptionValues
  /**
   * Returns the snapshots of the disk with these `layers`, parents first.
   * @param names the names of the files beside the disk
   */
  list(
    names: readonly string[],
    layers: readonly LayerSpec[],
    read: (name: string) => Buffer | undefined,
    warn: (text: string) => void,
  ): NamedSnapshot[]
  /**
   * Opens the disk file that a snapshot has frozen: one of `layers`, or another one, which it searches. Throws ImageError.
   * @param isSame reports whether a file is a layer's file
   */
  open(
    fileName: string,
    naming: Naming,
    layers: readonly LayerSpec[],
    isSame: (file: OpenedFile, layer: FileSpec) => boolean,
  ): OpenedFile
}

/** A store with its number in the caches, 0 to 511. */
export interface NumberedStore<T extends Store = Store> {
  readonly store: T
  readonly storeId: number
}

export interface DriverParts<S> extends NumberedStore {
  readonly layer: LayerSpec<S>
  /** The store of the data. It decrypts encrypted data. */
  readonly dataStore: Store
  /** The stores of `layer.extentFiles`. */
  readonly extentStores: readonly NumberedStore[]
  readonly metadata: MetadataCache
  readonly clusters: ClusterCache
  /** Whether the disk is written, so that its files may become longer. */
  readonly isWritten: boolean
}

export interface WriterParts<S> extends DriverParts<S> {
  readonly store: WritableStore
  readonly dataStore: WritableStore
  readonly extentStores: readonly NumberedStore<WritableStore>[]
  /** The driver that `driver` made of the same parts. */
  readonly driver: FormatDriver
  /** The pool that `metadata` asks first; undefined if the format has no tables. */
  readonly pool: TablePool | undefined
  /** The result of `createMemory`. */
  readonly memory: unknown
  /** Whether there is a lower layer. */
  readonly hasParent: boolean
  /** Returns the name of the format that probing finds for these first bytes. */
  probedName(head: Buffer): string
  /** The threads' count of refused writes, 4 bytes. */
  readonly refusals: SharedArrayBuffer
}

/** Another backing file or parent for a layer. */
export interface NewReference {
  /** The name as the image is to have it. */
  readonly name: string
  /** The name of its format. */
  readonly format: string
  /** The layer, if it is open. */
  readonly below: LayerSpec | undefined
}

export interface FormatWriting<S> {
  /** Whether writing changes tables of the image. */
  readonly hasTables: boolean
  /** Whether nothing else of the image changes when programs write to the file of its bytes through maps. False by default. */
  readonly allowsUnseenWrites?: boolean
  /** Makes the memory that the writing threads share: plain data. Throws SystemError if `store` cannot be read. */
  createMemory?(
    spec: S,
    store: Store,
  ): { readonly memory: unknown; readonly warnings: readonly string[] }
  writer(parts: WriterParts<S>): WritableDriver
  /**
   * Makes `reference` the backing file or parent of an image that is not in use, and syncs it; undefined removes it. `store` is
   * the image's own file. Undefined if the format's images cannot change it. Throws ImageError, SystemError.
   */
  changeReference?(
    layer: LayerSpec<S>,
    store: WritableStore,
    reference: NewReference | undefined,
  ): void
  /** Undefined if the format's images have no room for a note. */
  readonly baseNote?: BaseNote<S>
  /**
   * Makes the whole disk of an image that is not in use unallocated, and syncs it. It may leave leaks. Undefined if it cannot.
   */
  makeEmpty?(layer: LayerSpec<S>, store: WritableStore): Promise<void>
  /** Makes an empty disk in an empty file, for a layer that is thrown away; writes of 4 KiB to it copy nothing from below. */
  scratch?(store: WritableStore, diskBytes: number): S
}

/** An image that is checked. */
export interface CheckedImage {
  /** The image's own file; open for writing if it is repaired. */
  readonly store: WritableStore
  /** Undefined if the format also checks images that cannot be opened. */
  readonly layer: LayerSpec | undefined
  storeOf(file: FileSpec): WritableStore
  /** Whether the image's own file is a device, which cannot be cut off. */
  readonly isDevice: boolean
  /** Reports the same for a file of its extents. */
  isDeviceFile(file: FileSpec): boolean
  /** Why it may not be written. */
  readonly obstacle: string | undefined
}

export interface FormatChecking {
  /** Whether the image is opened first. If not, the checker reads the header itself, damaged or not. */
  readonly needsLayer: boolean
  /** Returns the warnings of opening that the check repeats. */
  repeated?(layer: LayerSpec): readonly string[]
  load(): Promise<FormatChecker>
}

export interface FormatChecker {
  check(image: CheckedImage, options: CheckOptions): CheckResult
  repair(image: CheckedImage, what: RepairKind, options: CheckOptions): RepairResult
}

export interface DescribeContext {
  readonly store: Store
  /** The image's file as the user named it, or as the image above names it. */
  readonly filename: string
  warn(text: string): void
}

export interface Description {
  /** The size of a unit, in bytes. */
  readonly unitBytes: number | undefined
  /** QEMU's name of the type, and its fields; undefined if there are none. */
  readonly specific?: { readonly type: string; readonly data: InfoFields } | undefined
  readonly isDirty?: boolean
}
