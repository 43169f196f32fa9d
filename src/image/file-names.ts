/**
 * The names of the files that a mount shows: `disk.raw`, `disk@tag.raw`, `disk@tag.vmstate`,
 * `disk@layer.raw`, and of a layer's snapshot `disk@layer@tag.raw`.
 *
 * A tag comes from an image and may contain anything. Bytes that a file name cannot contain are percent-encoded: `/`, `%`,
 * control and format characters (also those that change the direction of text or have no width), and bytes that are not UTF-8.
 * A tag that occurs twice gets `~ID` after it.
 */
import path from 'node:path'

const NAME_MAX_BYTES = 255
/** The longest suffix after a tag. */
const SUFFIX_BYTES = '.vmstate'.length

/** Returns the image's name without its folder and suffix: the names of the mount's files begin with it. */
export function stemOf(image: string): string {
  const { name, base } = path.parse(image)
  return cut(encodeTag(Buffer.from(name || base)), NAME_MAX_BYTES - SUFFIX_BYTES)
}

/** Suffixes that give the format of an image and are not part of its name. */
const IMAGE_SUFFIX = /^\.(qcow2?|vmdk|raw|img|image|cow|qed|vhdx?|vdi|hdd|dd)$/i

/** Reports whether the suffix of a file's name is that of an image. */
export const hasImageSuffix = (name: string): boolean => IMAGE_SUFFIX.test(path.extname(name))

/**
 * Returns the name of a layer's file without its folder and without the suffix of an image. It keeps other suffixes, because
 * they may be all that tells two layers apart: libvirt calls an external snapshot `disk.NAME`.
 */
export function layerName(image: string): string {
  const { name, base, ext } = path.parse(image)
  return name !== '' && IMAGE_SUFFIX.test(ext) ? name : base
}

/** Returns `tag` as a part of a file name. */
export function encodeTag(tag: Buffer): string {
  const text = tag.toString('utf8')
  // The tag is UTF-8 if encoding the text again gives the same bytes. If not, each byte above 0x7f is percent-encoded.
  const isUtf8 = Buffer.from(text, 'utf8').equals(tag)
  const unfit = isUtf8 ? /[/%\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu : /[/%\x00-\x1f\x7f-\xff]/g
  return (isUtf8 ? text : tag.toString('latin1')).replace(unfit, c =>
    [...Buffer.from(c, isUtf8 ? 'utf8' : 'latin1')]
      .map(byte => `%${byte.toString(16).toUpperCase().padStart(2, '0')}`)
      .join(''),
  )
}

/**
 * Returns the tag of a new snapshot of the image at `image` whose file is to be called `name`. Returns undefined if no snapshot's
 * file could be called so, or if a partition's could.
 */
export function tagFor(image: string, name: string): string | undefined {
  const [stem, suffix] = [`${stemOf(image)}@`, '.raw']
  if (!name.startsWith(stem) || !name.endsWith(suffix)) return undefined
  const text = name.slice(stem.length, -suffix.length)
  if (text === '' || /\.p[0-9]+$/.test(text)) return undefined
  let tag: string
  try {
    tag = decodeURIComponent(text.replace(/%(?![0-9A-F]{2})/g, '%25'))
  } catch {
    return undefined
  }
  // Only names that such a tag gets.
  const [made] = distinctNames(stemOf(image), [{ tag: Buffer.from(tag), id: '' }])
  return `${made}${suffix}` === name ? tag : undefined
}

export interface Tagged {
  readonly tag: Buffer
  /** Distinguishes entries with the same tag. */
  readonly id: string
}

/** The longest ID after a tag, and the room that it and a number after it take. */
const ID_BYTES = 30
const END_BYTES = ID_BYTES + 10

/** Returns a distinct `stem@tag` for each of `tagged`, in order, short enough for a suffix. */
export function distinctNames(stem: string, tagged: readonly Tagged[]): string[] {
  const start = `${cut(stem, NAME_MAX_BYTES - SUFFIX_BYTES - 1 - END_BYTES)}@`
  const room = NAME_MAX_BYTES - SUFFIX_BYTES - Buffer.byteLength(start)
  const plain = tagged.map(({ tag }) => encodeTag(tag))
  const counts = new Map<string, number>()
  for (const name of plain) counts.set(name, (counts.get(name) ?? 0) + 1)
  const isPlain = (name: string) => counts.get(name) === 1 && Buffer.byteLength(name) <= room
  // Plain names come first, so that no made-up name takes a name that another entry really has.
  const taken = new Set(plain.filter(isPlain))
  // A damaged table may have one name and ID thousands of times, so do not try numbers again.
  const tried = new Map<string, number>()
  return plain.map((name, index) => {
    if (isPlain(name)) return start + name
    const id = cut(encodeTag(Buffer.from((tagged[index] as Tagged).id)), ID_BYTES)
    const key = `${cut(name, room - END_BYTES)}/${id}`
    for (let more = tried.get(key) ?? 0; ; more++) {
      const end = `~${id}${more === 0 ? '' : `~${more}`}`
      const made = cut(name, room - Buffer.byteLength(end)) + end
      if (taken.has(made)) continue
      taken.add(made)
      tried.set(key, more + 1)
      return start + made
    }
  })
}

/** Returns the longest beginning of `text` with at most `maxBytes` bytes that cuts no character and no %XX. */
function cut(text: string, maxBytes: number): string {
  if (Buffer.byteLength(text) <= maxBytes) return text
  let result = ''
  let bytes = 0
  for (const [unit] of text.matchAll(/%[0-9A-F]{2}|./gsu)) {
    bytes += Buffer.byteLength(unit)
    if (bytes > maxBytes) break
    result += unit
  }
  return result
}
