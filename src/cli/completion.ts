/** `vimgfs completion SHELL`: prints the script that completes command lines in a shell. */
import { parse, parseChoice } from './arguments.js'
import { SCRIPTS } from './completion/scripts.js'
import { OPTIONS, SHELLS } from './help/completion.js'
import { print } from './output.js'

export async function run(args: string[]): Promise<number> {
  const { positionals } = parse(args, OPTIONS, 'completion', ['SHELL'])
  print(SCRIPTS[parseChoice(positionals[0] as string, 'completion', SHELLS)])
  return 0
}
