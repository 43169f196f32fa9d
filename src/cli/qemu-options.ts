/** The parts of qemu-img's command line that several commands take. */
import { printable, UsageError } from '../errors.js'
import { type SnapshotChoice, splitImageName } from '../image/reading/image-name.js'
import { parseChoice } from './arguments.js'

/** Cuts the value of an option at commas. Two of them stand for one. */
export const piecesOf = (text: string): string[] =>
  [...text.matchAll(/(?:[^,]|,,)+/g)].map(([piece]) => piece.replaceAll(',,', ','))

/**
 * Returns which snapshot `-l` names: `snapshot.id=ID`, `snapshot.name=TAG`, both, or a tag; a word that is no tag of the image
 * may be an ID. Throws UsageError.
 */
export function snapshotChoiceOf(
  text: string,
  image: { hasTag(tag: string): boolean; hasId(id: string): boolean },
): SnapshotChoice {
  if (!/^snapshot\.(id|name)=/.test(text)) {
    return !image.hasTag(text) && image.hasId(text) ? { id: text } : { tag: text }
  }
  const pairs = piecesOf(text).map(piece => {
    const [, part, value] = /^snapshot\.(id|name)=(.*)$/s.exec(piece) ?? []
    if (part !== undefined) return [part === 'id' ? 'id' : 'tag', value]
    throw new UsageError(`-l takes snapshot.id=ID, snapshot.name=TAG or TAG, not "${text}"`)
  })
  return Object.fromEntries(pairs)
}

export const CACHE_MODES = ['none', 'writeback', 'unsafe', 'directsync', 'writethrough'] as const

/** Throws UsageError unless `mode` is a cache mode of QEMU. Its choice changes nothing here: all that is written is synced. */
export function checkCacheMode(mode: string | undefined, option: string): void {
  if (mode !== undefined) parseChoice(mode, option, CACHE_MODES)
}

/** Throws UsageError if `name` is IMAGE@TAG: `command` takes no snapshots. */
export function requireWhole(name: string, command: string): void {
  const { image, tag } = splitImageName(name)
  if (tag === undefined) return
  const file = printable(image)
  throw new UsageError(
    `${command} takes a whole image, not its snapshot "${printable(tag)}": name ${file}; vimgfs snapshot list ${file} shows its snapshots`,
  )
}
