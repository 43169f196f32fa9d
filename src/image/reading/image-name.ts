/** Names of disks on the command line: IMAGE, or IMAGE@TAG for a snapshot. */
import fs from 'node:fs'
import { ImageError, printable } from '../../errors.js'
import type { CatalogEntry } from '../catalog.js'
import { isAddress } from '../../sources/registry.js'
import { stemOf } from '../file-names.js'
import { isInArchive } from '../opening/archive.js'

export interface ImageName {
  readonly image: string
  /** Undefined for the image's own disk. */
  readonly tag: string | undefined
}

/**
 * Splits the name of a disk. The image is the longest prefix before an `@` that is a file; a file of the whole name wins.
 * Without any such file all of it is the image, so that opening it reports what is missing.
 */
export function splitImageName(name: string): ImageName {
  if (!isFile(name)) {
    for (let at = name.lastIndexOf('@'); at > 0; at = name.lastIndexOf('@', at - 1)) {
      const image = name.slice(0, at)
      if (isFile(image)) return { image, tag: name.slice(at + 1) }
    }
  }
  return { image: name, tag: undefined }
}

/** Reports whether the name leads to something that is no folder: a file, or a disk in an archive. */
export function isFile(name: string): boolean {
  // Whether there is anything at an address is known when it is opened. A query may contain anything.
  if (isAddress(name)) return name.includes('?') || !/^[^/]+\/\/[^/]*\/.*@[^/]*$/.test(name)
  try {
    return !fs.statSync(name).isDirectory()
  } catch {
    return isInArchive(name)
  }
}

/** The most tags that a message lists. */
const MAX_LISTED = 20

/**
 * Returns the snapshot with that tag: its own tag or display name; else the name that a mount shows, without the image's
 * name and the suffix. Throws ImageError if there is none, or if the tag occurs twice.
 * @param entries the catalog of the image at `path`
 */
export function snapshotNamed(
  entries: readonly CatalogEntry[],
  tag: string,
  path: string,
): CatalogEntry {
  const snapshots = entries.filter(({ kind }) => kind === 'snapshot')
  const own = snapshots.filter(entry => isOwn(entry) && tagOf(entry) === tag)
  if (own.length === 1) return own[0] as CatalogEntry
  const [shown] = snapshots.filter(entry => shownTag(entry, path) === tag)
  if (shown) return shown
  if (own.length > 1) {
    const ids = own.map(entry => printable(idOf(entry)))
    const names = own.map(entry => printable(shownTag(entry, path)))
    const what = `its tag "${printable(tag)}" occurs ${own.length} times, with the IDs ${listed(ids)}`
    throw new ImageError('MISSING', what, { path, hint: `name one of ${listed(names)}` })
  }
  const what = `it has no snapshot "${printable(tag)}"`
  if (snapshots.length === 0) {
    throw new ImageError('MISSING', `${what}, and no other one`, {
      path,
      hint: 'name the image alone',
    })
  }
  const tags = snapshots.map(entry =>
    printable(isOwn(entry) ? tagOf(entry) : shownTag(entry, path)),
  )
  throw new ImageError('MISSING', what, { path, hint: `it has ${listed(tags)}` })
}

/** How a user may name a snapshot. */
export interface SnapshotChoice {
  readonly id?: string | undefined
  readonly tag?: string | undefined
}

/** Returns the snapshot that all given parts of `choice` name. Throws ImageError if there is not exactly one. */
export function snapshotChosen(
  entries: readonly CatalogEntry[],
  { id, tag }: SnapshotChoice,
  path: string,
): CatalogEntry {
  if (id === undefined) return snapshotNamed(entries, tag ?? '', path)
  const own = entries.filter(entry => entry.kind === 'snapshot' && isOwn(entry))
  const [found, ...others] = own.filter(entry => idOf(entry) === id)
  const isNamed = found && (tag === undefined || tagOf(found) === tag)
  if (isNamed && others.length === 0) return found
  const name = tag === undefined ? '' : ` and the tag "${printable(tag)}"`
  const what =
    others.length > 0
      ? `it has ${others.length + 1} snapshots with the ID ${printable(id)}`
      : `it has no snapshot with the ID ${printable(id)}${name}`
  const hint =
    others.length > 0
      ? 'repair a copy of it with vimgfs check --repair all'
      : 'vimgfs snapshot list shows them'
  throw new ImageError('MISSING', what, { path, hint })
}

/** Reports whether the image itself has a snapshot with that ID. */
export const hasSnapshotWithId = (entries: readonly CatalogEntry[], id: string): boolean =>
  entries.some(entry => entry.kind === 'snapshot' && isOwn(entry) && idOf(entry) === id)

/** Reports whether there is a snapshot with that tag; also if the tag occurs twice. */
export const hasSnapshotNamed = (
  entries: readonly CatalogEntry[],
  tag: string,
  path: string,
): boolean =>
  entries.some(
    entry =>
      entry.kind === 'snapshot' &&
      ((isOwn(entry) && tagOf(entry) === tag) || shownTag(entry, path) === tag),
  )

/** Snapshots of lower layers have the layer's number. */
const isOwn = ({ attributes }: CatalogEntry): boolean => attributes.layer === undefined
const tagOf = ({ attributes }: CatalogEntry): string => attributes['snapshot-name'] ?? ''
const idOf = ({ attributes }: CatalogEntry): string => attributes['snapshot-id'] ?? ''

/** Returns what stands for a snapshot in the name of its file in a mount. */
function shownTag({ name }: CatalogEntry, path: string): string {
  const start = `${stemOf(path)}@`
  const bare = name.replace(/\.raw$/, '')
  return bare.startsWith(start) ? bare.slice(start.length) : bare.slice(bare.indexOf('@') + 1)
}

function listed(names: readonly string[]): string {
  const shown = names.slice(0, MAX_LISTED).map(name => `"${name}"`)
  const more = names.length - shown.length
  return `${shown.join(', ')}${more > 0 ? ` and ${more} more` : ''}`
}
