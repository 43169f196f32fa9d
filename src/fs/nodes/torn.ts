/** Tells which files of a mount may be torn, because other programs write the image. */
import { isWrittenByOthers } from '../../io/locks.js'
import { filesOf } from '../../image/layer.js'
import type { World } from '../live/world.js'

/** The most files that the warning names. */
const MOST_NAMED = 3

/** Returns the names of the files that show the present state of a layer which another program has open for writing. */
export function tornNames({ entries, layers }: Pick<World, 'entries' | 'layers'>): string[] {
  const written = layers.map(layer => filesOf(layer).some(({ fd }) => isWrittenByOthers(fd)))
  const isTorn = (first: number | undefined): boolean => {
    for (let at = first; at !== undefined; at = layers[at]?.below) if (written[at]) return true
    return false
  }
  return entries
    .filter(({ kind, layer, table }) => {
      if (kind === 'vmstate') return false
      // Bytes that a snapshot does not have itself come from the layer below.
      return isTorn(table ? layers[layer]?.below : layer)
    })
    .map(({ name }) => name)
}

/** Returns the warning for the user, if there is one. */
export function tornWarning(names: readonly string[]): string | undefined {
  if (names.length === 0) return undefined
  const more = names.length > MOST_NAMED ? ` and ${names.length - MOST_NAMED} more` : ''
  const named = names.slice(0, MOST_NAMED).join(', ')
  return `${named}${more} may be torn; other snapshots read as at rest, for as long as they exist`
}

/** Returns the fields of status.json that tell of it; none if nobody is supposed to write the image. */
export const tornStatus = (world: World): { readonly mayBeTorn?: readonly string[] } =>
  world.isShared ? { mayBeTorn: tornNames(world) } : {}
