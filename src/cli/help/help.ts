/** The options and the help of `vimgfs help`. */
import type { CommandHelp, Options } from './description.js'

export const OPTIONS = {} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[COMMAND]'],
  words: 'COMMAND',
  summary: 'show all options of a command, with an example',
  text: ['Shows what a command does, its options and an example; without COMMAND, all commands.'],
  options: OPTIONS,
  examples: ['vimgfs help mount'],
}
