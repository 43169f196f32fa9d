/**
 * The kinds of sources that images may lie on besides files of this machine. A kind opens an address, and makes the stores
 * by which each thread reads. No format knows of it: whoever makes a store of a file asks here (`image/layer.ts`).
 */
import { ImageError } from '../errors.js'
import type { FileSpec, SourceSpec } from '../io/file-spec.js'
import type { Store, WritableStore } from '../io/store.js'
import { schemeOf, shownAddress } from './address.js'
import { HTTP } from './http/kind.js'
import type { RemoteFile, SourceKind } from './kind.js'
import { NBD } from './nbd/kind.js'
import { ReadOnlyStore } from './read-only-store.js'

export type { RemoteFile, SourceKind } from './kind.js'

const KINDS: readonly SourceKind[] = [HTTP, NBD]

/** Returns the kind that opens an address; undefined for the path of a file. Throws ImageError for other schemes. */
export function kindOfAddress(name: string): SourceKind | undefined {
  const scheme = schemeOf(name)
  if (scheme === undefined) return undefined
  const kind = KINDS.find(({ schemes }) => schemes.includes(scheme))
  if (kind) return kind
  const known = KINDS.flatMap(({ schemes }) => schemes).map(each => `${each}://`)
  throw new ImageError('UNSUPPORTED', `images at ${scheme}:// cannot be opened`, {
    path: shownAddress(name),
    hint: `copy it to a file, or name it by one of ${known.join(', ')}`,
  })
}

/** Reports whether the name of an image is an address, not the path of a file. */
export const isAddress = (name: string): boolean =>
  KINDS.some(({ schemes }) => schemes.includes(schemeOf(name) ?? ''))

const kindOf = ({ kind }: SourceSpec): SourceKind =>
  KINDS.find(({ name }) => name === kind) as SourceKind

/** Makes the store of a file that has a source, for the calling thread. */
export const remoteStore = (file: RemoteFile): Store => kindOf(file.source).store(file)

/** Does the same for writing. Writing to a source that is only read throws SystemError. */
export const writableRemoteStore = (file: RemoteFile, size: BigInt64Array): WritableStore => {
  const kind = kindOf(file.source)
  return kind.writable?.(file, size) ?? new ReadOnlyStore(kind.store(file))
}

/** Fetches a range of a file without blocking the thread, if its kind can do that. Rejects with ImageError. */
export const fetchRemote = async (file: RemoteFile, at: number, length: number): Promise<void> =>
  kindOf(file.source).fetch?.(file, at, length)

/** Returns what the sources of `files` have done; undefined if all are files of this machine. */
export function remoteStats(
  files: readonly Pick<FileSpec, 'source'>[],
): Readonly<Record<string, number>> | undefined {
  const source = files.find(each => each.source)?.source
  return source && kindOf(source).stats?.(source)
}

/** Calls `tell` for each line that a log should have of sources that are open: each fault that lasts has one. */
export const onSourceLine = (
  tell: (line: { readonly path: string; readonly message: string }) => void,
): void => {
  for (const kind of KINDS) kind.onLine?.(tell)
}

/** Makes all reads that wait for a network fail, in all threads, and those that come: the mount ends. */
export const endWaiting = (): void => {
  for (const kind of KINDS) kind.endWaiting?.()
}

/** Lets go of what a source has open. */
export const closeSource = (source: SourceSpec | undefined): void => {
  if (source) kindOf(source).close(source)
}
