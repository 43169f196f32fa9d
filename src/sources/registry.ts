/**
 * The kinds of sources that images may lie on besides files of this machine. A kind opens an address, and makes the stores
 * by which each thread reads. No format knows of it: whoever makes a store of a file asks here (`image/layer.ts`).
 */
import { ImageError } from '../errors.js'
import type { FileSpec, SourceSpec } from '../io/file-spec.js'
import type { Access, OpenedFile } from '../io/opened-file.js'
import type { Store, WritableStore } from '../io/store.js'
import { schemeOf, shownAddress } from './address.js'

export interface SourceKind {
  /** The `kind` of its specs. */
  readonly name: string
  /** The schemes of its addresses, in lower case. */
  readonly schemes: readonly string[]
  /**
   * Opens what lies at `address`, and waits for it, for a bounded time. The result has a `source` of this kind. Throws ImageError;
   * WriteProtected if it can only be read.
   */
  open(address: string, access: Access): OpenedFile
  /** Makes a store for the calling thread. It throws ImageError, SystemError. */
  store(file: RemoteFile): Store
  /** Undefined if it is only read. @param size the file's size in bytes, which all threads share */
  writable?(file: RemoteFile, size: BigInt64Array): WritableStore
  /** Lets go of what `open` has opened; the descriptor of the file is closed by the caller. */
  close(source: SourceSpec): void
}

export type RemoteFile = Pick<FileSpec, 'path' | 'fd' | 'sizeBytes'> & {
  readonly source: SourceSpec
}

const KINDS: readonly SourceKind[] = []

/** Returns the kind that opens an address; undefined for the path of a file. Throws ImageError for other schemes. */
export function kindOfAddress(name: string): SourceKind | undefined {
  const scheme = schemeOf(name)
  if (scheme === undefined) return undefined
  const kind = KINDS.find(({ schemes }) => schemes.includes(scheme))
  if (kind) return kind
  const known = KINDS.flatMap(({ schemes }) => schemes).map(each => `name it by ${each}://`)
  throw new ImageError('UNSUPPORTED', `images at ${scheme}:// cannot be opened`, {
    path: shownAddress(name),
    hint: ['copy it to a file', ...known].join(', or '),
  })
}

/** Reports whether the name of an image is an address, not the path of a file. */
export const isAddress = (name: string): boolean =>
  KINDS.some(({ schemes }) => schemes.includes(schemeOf(name) ?? ''))

const kindOf = ({ kind }: SourceSpec): SourceKind =>
  KINDS.find(({ name }) => name === kind) as SourceKind

/** Makes the store of a file that has a source, for the calling thread. */
export const remoteStore = (file: RemoteFile): Store => kindOf(file.source).store(file)

/** Does the same for writing. */
export const writableRemoteStore = (file: RemoteFile, size: BigInt64Array): WritableStore => {
  const store = kindOf(file.source).writable?.(file, size)
  if (!store) throw new TypeError('this source is only read')
  return store
}

/** Lets go of what a source has open. */
export const closeSource = (source: SourceSpec | undefined): void => {
  if (source) kindOf(source).close(source)
}
