/** The descriptions of all commands, in the order of the list that `vimgfs --help` shows. */
import type { CommandHelp } from './description.js'

const HELPS: Record<string, () => Promise<{ HELP: CommandHelp }>> = {
  mount: () => import('./mount.js'),
  umount: () => import('./umount.js'),
  list: () => import('./list.js'),
  stats: () => import('./stats.js'),
  refresh: () => import('./refresh.js'),
  check: () => import('./check.js'),
  snapshot: () => import('./snapshot.js'),
  info: () => import('./info.js'),
  commit: () => import('./commit.js'),
  rebase: () => import('./rebase.js'),
  create: () => import('./create.js'),
  convert: () => import('./convert.js'),
  map: () => import('./map.js'),
  compare: () => import('./compare.js'),
  diff: () => import('./diff.js'),
  resize: () => import('./resize.js'),
  measure: () => import('./measure.js'),
  usage: () => import('./usage.js'),
  cache: () => import('./cache.js'),
  completion: () => import('./completion.js'),
  help: () => import('./help.js'),
}

export const COMMAND_NAMES: readonly string[] = Object.keys(HELPS)

/** Returns the description of a command; undefined if there is no such command. */
export async function helpOf(command: string): Promise<CommandHelp | undefined> {
  const load = Object.hasOwn(HELPS, command) ? HELPS[command] : undefined
  return load && (await load()).HELP
}

/** Returns the descriptions of all commands. */
export const allHelps = (): Promise<[name: string, help: CommandHelp][]> =>
  Promise.all(
    Object.entries(HELPS).map(
      async ([name, load]): Promise<[string, CommandHelp]> => [name, (await load()).HELP],
    ),
  )
