/** Finds the kind of word that the shell has to complete, from the words before it. */
import type { CommandHelp, OptionHelp } from '../help/description.js'

export interface CommandLine {
  /** The words that are no options, as far as they are complete. */
  readonly positionals: readonly string[]
  /** The options that were given, by their long names, with their last values. */
  readonly given: ReadonlyMap<string, string>
  /** The option whose value is being written; undefined if it is another word. */
  readonly option: string | undefined
  /** Whether `--` was there: no more options follow. */
  readonly hasEnded: boolean
}

/** Reads the words after the command's name that are complete. */
export function readLine(words: readonly string[], { options }: CommandHelp): CommandLine {
  const positionals: string[] = []
  const given = new Map<string, string>()
  let option: string | undefined
  let hasEnded = false
  for (const word of words) {
    if (option !== undefined) {
      given.set(option, word)
      option = undefined
    } else if (hasEnded || word === '-' || !word.startsWith('-')) positionals.push(word)
    else if (word === '--') hasEnded = true
    else if (word.startsWith('--')) {
      const [name = '', value] = split(word.slice(2))
      given.set(name, value ?? '')
      if (value === undefined && takesValue(options[name])) option = name
    } else option = readLetters(word.slice(1), options, given)
  }
  return { positionals, given, option, hasEnded }
}

/** Reads options of one letter in one word. Returns the one whose value follows in the next word. */
function readLetters(
  letters: string,
  options: CommandHelp['options'],
  given: Map<string, string>,
): string | undefined {
  for (let i = 0; i < letters.length; i++) {
    const [name, option] = Object.entries(options).find(([, one]) => one.short === letters[i]) ?? []
    if (name === undefined) continue
    const rest = letters.slice(i + 1)
    given.set(name, takesValue(option) ? rest : '')
    if (takesValue(option)) return rest === '' ? name : undefined
  }
  return undefined
}

const takesValue = (option: OptionHelp | undefined): boolean => option?.type === 'string'

/** Splits NAME=VALUE; the value is undefined if there is none. */
export function split(word: string): [name: string, value: string | undefined] {
  const at = word.indexOf('=')
  return at < 0 ? [word, undefined] : [word.slice(0, at), word.slice(at + 1)]
}
