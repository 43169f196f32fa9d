/**
 * Names another parent in a descriptor: the lines parentCID and parentFileNameHint (libyal, VMDK format, "The descriptor
 * file"). The rest of the text stays as it is. A power cut leaves the old text or the new one.
 */
import { ImageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import type { LayerSpec, NewReference } from '../format.js'
import { NO_PARENT_CID } from './descriptor.js'
import { plannedChange } from './descriptor-replacement.js'
import type { VmdkSpec } from './open.js'

const CID_LINE = /^([ \t]*parentCID[ \t]*=[ \t]*)(\S*)([ \t]*)$/im
const HINT_LINE = /^[ \t]*parentFileNameHint[ \t]*=.*(?:\r?\n|$)/gim

/**
 * Makes `reference` the parent of the image; undefined removes it. Without an open parent the CID stays, and must fit. Throws
 * ImageError if the descriptor has no room for it, and then nothing has changed.
 */
export function changeReference(
  { spec, path }: LayerSpec<VmdkSpec>,
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
  const change = plannedChange(store, place, old, text)
  if (change) change()
  else refuse('its descriptor has no room for the name', 'use a shorter name')
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
