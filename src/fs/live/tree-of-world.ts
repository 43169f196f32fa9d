/** The files of a mount as a world has them, and what the kernel must forget when one world follows another. */
import type { Forgetting } from '../session.js'
import { ROOT_ID } from '../protocol/protocol.js'
import { type Appearance, Tree } from '../nodes/tree.js'
import type { World } from './world.js'

export const treeOf = (world: World, appearance: Appearance): Tree => {
  const { entries, ids, partitions, modified } = world
  const shown = modified === undefined ? appearance : { ...appearance, modified }
  return new Tree(entries, shown, partitions !== undefined, ids)
}

/**
 * Returns what the kernel must forget after `before` has become `after`: names that appeared, went or belong to another file,
 * and the listing of the folder.
 */
export function staleNames(before: World, after: World): Forgetting['names'] {
  const idsOf = ({ entries, ids }: World) =>
    new Map(entries.map(({ name }, index) => [name, ids[index]]))
  const old = idsOf(before)
  const now = idsOf(after)
  return [...new Set([...old.keys(), ...now.keys()])]
    .filter(name => old.get(name) !== now.get(name))
    .map(name => ({ parent: ROOT_ID, name }))
}

/** Reports whether a file shows bytes of the disk itself: it or a partition of it. */
export const isOfDisk = ({ kind, layer, table }: World['entries'][number]): boolean =>
  kind === 'disk' || (kind === 'partition' && layer === 0 && table === undefined)
