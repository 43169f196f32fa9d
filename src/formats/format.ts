/**
 * The seam between the formats and the rest of the program: all that is asked of a format. A format is a folder
 * that has one such object, and a row in registry.ts.
 *
 * `S` is what the format's `open` found in the image's header. It is plain data, since the threads get it
 * as a message.
 */
import type { ClusterCache } from '../cache/cluster-cache.js'
import type { MetadataCache } from '../cache/metadata-cache.js'
import type { TablePool } from '../cache/table-pool.js'
import type { CipherSpec } from '../crypto/spec.js'
import type { ImageError } from '../errors.js'
import type { FileSpec, Timestamp } from '../io/file-spec.js'
import type { Folder } from '../io/folders.js'
import type { Access, Naming, OpenedFile } from '../io/named-file.js'
import type { Store, WritableStore } from '../io/store.js'
import type { CheckOptions, CheckResult, RepairResult } from './check/report.js'
import type { FormatDriver } from './driver.js'
import type { InfoFields } from './info-fields.js'
import type { WritableDriver } from './writable.js'

/** How many of an image's first bytes tell its format. */
export const PROBED_BYTES = 512

export interface Format<S = unknown> {
  /** As `--format` takes it; QEMU's name where QEMU knows the format. */
  readonly name: string
  /** Endings of file names that promise this format, with the dot; none where the name says nothing. */
  readonly suffixes: readonly string[]
  /** What the disk is divided into, for messages. */
  readonly unit: 'cluster' | 'grain' | 'sector'
  /** Whether an image that begins with `head`, PROBED_BYTES or all of a shorter file, has this format. */
  matches(head: Buffer): boolean
  /** The same for what the first bytes do not tell; asked only where no format matches. Throws SystemError. */
  matchesStore?(store: Store): boolean
  /**
   * Throws WriteProtected for an image that is never written, by its first bytes alone. It is asked before
   * others are kept out of the image.
   */
  requireWritableKind?(store: Store): void
  /** Returns the error for a file that no format matches and whose name is that of a part of such an image. */
  explainUnmatched?(path: string): ImageError | undefined
  /** Reads the header, and opens the files that hold the rest of the layer. Throws ImageError. */
  open(file: FileSpec, context: OpenContext): OpenedLayer<S>
  /** The size of the disk, in bytes. */
  sizeBytes(layer: LayerSpec<S>): number
  /** The image that this one stands on. Throws ImageError where it cannot be found by what the header says. */
  reference?(layer: LayerSpec<S>): Reference | undefined
  /** Judges the layer below once it is open. Throws ImageError where the two do not belong together. */
  judgeBelow?(layer: LayerSpec<S>, below: LayerSpec, context: BelowContext): void
  /** The role and the name of a file that the image names besides its reference, for messages. */
  namedFile?(layer: LayerSpec<S>): { readonly role: string; readonly name: string } | undefined
  readonly internalSnapshots?: InternalSnapshots<S>
  readonly externalSnapshots?: ExternalSnapshots
  /** Locks that other programs hold beside the file at `path`, which know nothing of QEMU's. */
  foreignLocks?(path: string, allowed: readonly Folder[]): ForeignLock[]
  /** The names of images in `folders` that stand on this one and say so in a way of this format's own. */
  children?(layer: LayerSpec<S>, folders: readonly Folder[]): string[]
  driver(parts: DriverParts<S>): FormatDriver
  /** Missing for formats that are only read. */
  readonly writing?: FormatWriting<S>
  /** Makes the image fit to be written, where `open` said that it needs that. Throws ImageError. */
  recover?(store: WritableStore): { readonly spec: S; readonly warning: string | undefined }
  /** Missing where there is nothing to check. */
  readonly checking?: FormatChecking
  describe(layer: LayerSpec<S>, context: DescribeContext): Description
  /** What the extended attributes of the disk's file say of the format. */
  attributes?(layer: LayerSpec<S>): Readonly<Record<string, string>>
  /** Bytes of all tables that the disk can have. */
  tableBytes(layer: LayerSpec<S>): number
  /** What a file of the image may end within, in bytes; 1 where that is nothing. Encrypted data count by it. */
  unitBytes(spec: S): number
}

/** A layer of an image as it was opened: plain data. */
export interface LayerSpec<S = unknown> extends FileSpec {
  /** The name of its format. */
  readonly format: string
  /** Whether nobody stated the format: it was found by the file's bytes. */
  readonly isProbed?: boolean
  readonly spec: S
  /** Present where its data are encrypted. */
  readonly encryption?: LayerEncryption
  /** The file that all data are in, where that is not the layer's own. */
  readonly dataFile?: FileSpec
  /** The files of the layer's extents, in their order; its own file may be among them. */
  readonly extents?: readonly FileSpec[]
  /** The layer that shows through where this one is unallocated, by its place among the layers. */
  readonly below?: number
}

/** 'AES' is the method of old images: 128 bits, and nothing tells a wrong passphrase. */
export type EncryptionMethod = 'AES' | 'LUKS'

export interface LayerEncryption {
  readonly method: EncryptionMethod
  /** Where the LUKS header is in the file, in bytes. */
  readonly headerArea?: { readonly offset: number; readonly length: number }
  /** Present once it is unlocked. */
  readonly spec?: CipherSpec
}

export type OpenedLayer<S> = Pick<LayerSpec<S>, 'spec' | 'encryption' | 'dataFile' | 'extents'> & {
  /** Whether `recover` has to run before the first write. */
  readonly needsRecovery?: boolean
}

export interface OpenContext {
  readonly access: Access
  /** Whether only what describes the image is read: data files stay closed. */
  readonly isDescribed: boolean
  readonly isDevice: boolean
  /** Whether an image whose changes are tracked gives that up to be written. */
  readonly dropsChangeTracking: boolean
  warn(text: string): void
  storeOf(file: FileSpec): Store
  /** Opens the file that holds all data. Throws ImageError. */
  openDataFile(name: string): FileSpec
  /** Opens an extent by its name in the image, which may be looked for by `names`. Throws ImageError. */
  openExtent(name: string, names: readonly string[], isWritable: boolean): FileSpec
}

/** The image that a layer stands on, as the layer names it. */
export interface Reference {
  readonly role: 'backing file' | 'parent'
  /** As the image has it. */
  readonly name: string
  /** Where the file may be, likeliest first. */
  readonly names: readonly string[]
  /** Whether a name that leads to a layer that is open above is passed over. */
  readonly skipsOpen: boolean
  /** The name of its format; undefined where nobody states it. */
  readonly format: string | undefined
  /** Whether the image itself states the format. */
  readonly statesFormat: boolean
  /** What to do where no file is at the absolute path `file`. */
  hint(file: string): string
  /** What to do where the reference leads back to a layer above. */
  readonly loopHint: string
}

export interface BelowContext {
  /** Whether a parent is read that has changed since. */
  readonly ignoreCid: boolean
  warn(text: string): void
}

/** A snapshot within an image's file. */
export interface InternalSnapshot {
  /** Unique by the specification; a damaged table may repeat it. */
  readonly id: string
  /** The name's bytes: any but NUL by habit, of no certain encoding. */
  readonly name: Buffer
  /** Since 1970. */
  readonly dateSeconds: number
  readonly dateNanoseconds: number
  /** How long the guest had run. */
  readonly guestNanoseconds: bigint
  readonly vmStateBytes: number
  /** The disk's size then. */
  readonly sizeBytes: number
  /** Instructions executed, for record and replay; undefined when the entry has none. */
  readonly icount: bigint | undefined
}

/** Where the tables of a snapshot are: plain data. */
export interface SnapshotTable {
  /** In bytes of the file. */
  readonly offset: number
  readonly entries: number
  /** The size of the disk under the table. */
  readonly sizeBytes: number
}

export interface InternalSnapshots<S> {
  /** Those that can be shown, in the order of the image's table. Throws SystemError. */
  read(store: Store, spec: S): InternalSnapshot[]
  tableOf(snapshot: InternalSnapshot): SnapshotTable
  /** The table of a snapshot's VM state, and where in it the state begins; undefined where that is impossible. */
  vmStateOf(
    spec: S,
    snapshot: InternalSnapshot,
  ): { readonly table: SnapshotTable; readonly startOffset: number } | undefined
  driver(parts: DriverParts<S>, table: SnapshotTable): FormatDriver
}

/** A snapshot that is a disk file, frozen since: plain data. */
export interface ExternalSnapshot {
  readonly uid: number
  /** The snapshot that it was taken after. */
  readonly parent: number | undefined
  readonly displayName: string
  readonly description: string
  readonly created: Timestamp | undefined
  /** The disk file that it froze, by its place among the layers. */
  readonly layer: number
}

/** The same, before its file was looked for. */
export type NamedSnapshot = Omit<ExternalSnapshot, 'layer'> & { readonly fileName: string }

export interface ExternalSnapshots {
  /**
   * The snapshots of the disk that stands on `layers`, parents first.
   * @param names those of the files beside the disk
   */
  list(
    names: readonly string[],
    layers: readonly LayerSpec[],
    read: (name: string) => Buffer | undefined,
    warn: (text: string) => void,
  ): NamedSnapshot[]
  /**
   * Opens the disk file that a snapshot froze: one of `layers`, or another that is looked for. Throws ImageError.
   * @param isSame whether a file is that of a layer
   */
  open(
    fileName: string,
    naming: Naming,
    layers: readonly LayerSpec[],
    isSame: (file: OpenedFile, layer: FileSpec) => boolean,
  ): OpenedFile
}

export interface ForeignLock {
  /** What has to go where nobody holds the lock. */
  readonly path: string
  /** Whether somebody holds it, or may do so as far as can be told from here. */
  readonly isLive: boolean
  /** Who, for messages: printable, of 300 characters at most. */
  readonly owner: string
  /** Whether it is for writing, or does not say. */
  readonly writes: boolean
}

/** A store with the number that tells it apart in the caches, 0 to 511. */
export interface NumberedStore<T extends Store = Store> {
  readonly store: T
  readonly storeId: number
}

export interface DriverParts<S> extends NumberedStore {
  readonly layer: LayerSpec<S>
  /** Where the data are; it decrypts where they are encrypted. */
  readonly dataStore: Store
  /** Of `layer.extents`. */
  readonly extents: readonly NumberedStore[]
  readonly metadata: MetadataCache
  readonly clusters: ClusterCache
  /** Whether the disk is written: its files may become longer. */
  readonly isWritten: boolean
}

export interface WriterParts<S> extends DriverParts<S> {
  readonly store: WritableStore
  readonly dataStore: WritableStore
  readonly extents: readonly NumberedStore<WritableStore>[]
  /** What `driver` made of the same parts. */
  readonly driver: FormatDriver
  /** The pool that `metadata` asks first; undefined where the format has no tables. */
  readonly pool: TablePool | undefined
  /** What `createMemory` made. */
  readonly memory: unknown
  /** Whether there is a layer below. */
  readonly hasParent: boolean
  readonly isEncrypted: boolean
  /** Returns the name of the format that an image with these first bytes would be found to have. */
  probedName(head: Buffer): string
  /** Where the threads of the disk count refused writes, 4 bytes. */
  readonly refusals: SharedArrayBuffer
}

export interface FormatWriting<S> {
  /** Whether tables of the image change. */
  readonly hasTables: boolean
  /** What the threads that write share: plain data. Throws SystemError where `store` cannot be read. */
  createMemory?(
    spec: S,
    store: Store,
  ): { readonly memory: unknown; readonly warnings: readonly string[] }
  writer(parts: WriterParts<S>): WritableDriver
  /**
   * Makes a disk of `diskBytes`, to be thrown away, in the empty file of `store`: with clusters and tables as
   * `model` has them.
   */
  blank(
    model: LayerSpec<S>,
    store: WritableStore,
    diskBytes: number,
    file: FileSpec,
  ): Pick<LayerSpec<S>, 'spec' | 'extents'>
  /** Makes the next allocation of a blank disk as that of a file that has grown to `at`, in bytes. */
  allocateFrom?(memory: unknown, at: number): void
}

export const REPAIRS = ['leaks', 'all'] as const
export type RepairKind = (typeof REPAIRS)[number]

/** An image that is checked. */
export interface CheckedImage {
  /** The image's own file; opened for writing where it is repaired. */
  readonly store: WritableStore
  /** Undefined where the format checks what cannot be opened, too. */
  readonly layer: LayerSpec | undefined
  storeOf(file: FileSpec): WritableStore
  /** Whether the image's own file is a device, of which nothing can be cut off. */
  readonly isDevice: boolean
  /** The same of a file of its extents. */
  isDeviceFile(file: FileSpec): boolean
  /** Why nothing of it may be written. */
  readonly obstacle: string | undefined
}

export interface FormatChecking {
  /** Whether the image is opened first; otherwise the checker reads the header itself, damaged or not. */
  readonly needsLayer: boolean
  /** Warnings of opening that the check repeats. */
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
  /** What the disk is divided into, in bytes. */
  readonly unitBytes: number | undefined
  /** QEMU's name of the type, and its fields; undefined where there is nothing to say. */
  readonly specific?: { readonly type: string; readonly data: InfoFields } | undefined
  readonly isDirty?: boolean
}
