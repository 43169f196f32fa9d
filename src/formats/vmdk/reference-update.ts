/**
 * Names another parent in a descriptor: the lines parentCID and parentFileNameHint (libyal, VMDK format, "The descriptor
 * file"). The rest of the text stays as it is.
 */
import { ImageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import type { LayerSpec, NewReference } from '../format.js'
import { NO_PARENT_CID } from './descriptor.js'
import type { VmdkSpec } from './open.js'

const CID_LINE = /^([ \t]*parentCID[ \t]*=[ \t]*)(\S*)([ \t]*)$/im
const HINT_LINE = /^[ \t]*parentFileNameHint[ \t]*=.*(?:\r?\n|$)/gim

/**
 * Makes `reference` the parent of the image; undefined removes it. Without an open parent the CID stays, and must fit. Throws
 * ImageError if the descriptor has no room for it, and then nothing has changed.
 */
export function changeReference(
  { spec, path, fd, sizeBytes }: LayerSpec<VmdkSpec>,
  store: WritableStore,
  reference: NewReference | undefined,
): void {
  const { descriptorPlace: place } = spec
  const refuse: (what: string, hint: string) => never = (what, hint) => {
    throw new ImageError('UNSUPPORTED', what, { path, hint })
  }
  if (!place) refuse('it has no descriptor that could name a parent', 'convert it')
  if (reference && reference.format !== 'vmdk') {
    refuse(`a vmdk cannot stand on a ${reference.format} image`, 'convert that to vmdk first')
  }
  const name = reference?.name ?? ''
  if (/["\r\n]/.test(name)) refuse(`a descriptor cannot hold the name "${name}"`, 'rename the file')
  const isPlain = /^[\x20-\x7e]*$/.test(name) || /^utf-?8$/i.test(spec.descriptor?.encoding ?? '')
  if (!isPlain) refuse('its descriptor has an encoding without this name', 'use a name of ASCII')
  const old = Buffer.alloc(place.bytes)
  store.read(old, 0, old.length, place.offset)
  const text = Buffer.from(rewritten(old.toString('latin1'), reference, cidOf(reference)), 'latin1')
  const isWhole = place.offset === 0
  const room = isWhole ? Number.POSITIVE_INFINITY : roomOf(spec, fd)
  if (text.length > room) refuse('its descriptor has no room for the name', 'use a shorter name')
  // A text that becomes shorter ends with NULs in an extent, and with the file otherwise.
  const padded = isWhole
    ? text
    : Buffer.concat([text, Buffer.alloc(Math.max(0, old.length - text.length))])
  writeChanged(store, place.offset, old, padded)
  if (isWhole && text.length < sizeBytes) store.truncate(text.length)
  store.sync()
}

/** Returns the CID that the parent has; undefined if it is not open. */
function cidOf(reference: NewReference | undefined): number | undefined {
  if (!reference) return NO_PARENT_CID
  return (reference.below?.spec as VmdkSpec | undefined)?.descriptor?.cid
}

/** Changes the lines. The text is taken byte by byte, whatever its encoding is. */
function rewritten(
  text: string,
  reference: NewReference | undefined,
  cid: number | undefined,
): string {
  const digits = cid?.toString(16).padStart(8, '0')
  const newline = text.includes('\r\n') ? '\r\n' : '\n'
  const hint = reference && `parentFileNameHint="${bytesOf(reference.name)}"${newline}`
  const withoutHint = text.replace(HINT_LINE, '')
  const kept = CID_LINE.test(withoutHint)
    ? withoutHint
    : withoutHint.replace(/^([ \t]*CID[ \t]*=.*)$/im, `$1${newline}parentCID=ffffffff`)
  const withCid = digits === undefined ? kept : kept.replace(CID_LINE, `$1${digits}$3`)
  if (!hint) return withCid
  // VMware writes the hint after createType, before the extents.
  const extents = withCid.search(/^[ \t]*(?:#[ \t]*Extent|RW|RDONLY|NOACCESS)/im)
  const at = extents < 0 ? withCid.length : extents
  return withCid.slice(0, at) + hint + withCid.slice(at)
}

const bytesOf = (text: string): string => Buffer.from(text).toString('latin1')

/** Returns how many bytes a descriptor may have that lies in the image's own extent. */
function roomOf({ extents }: VmdkSpec, fd: number): number {
  const own = extents.find(({ file }) => file?.fd === fd)
  return own?.layout.kind === 'sparse' ? (own.layout.header.descriptor?.bytes ?? 0) : 0
}

/** Writes from the first byte that differs to the last one: a new CID alone is one small write. */
function writeChanged(store: WritableStore, at: number, old: Buffer, changed: Buffer): void {
  const differs = (i: number) => old[i] !== changed[i]
  let first = 0
  while (first < changed.length && !differs(first)) first++
  let last = changed.length
  while (last > first && old.length === changed.length && !differs(last - 1)) last--
  if (last > first) store.write(changed, first, last - first, at + first)
}
