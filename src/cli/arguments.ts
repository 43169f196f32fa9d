/** Parses the arguments of commands. */
import { type ParseArgsConfig, parseArgs } from 'node:util'
import { UsageError } from '../errors.js'
import { nearest } from '../nearest.js'

type Options = NonNullable<ParseArgsConfig['options']>
type Parsed<O extends Options> = ReturnType<
  typeof parseArgs<{ args: string[]; options: O; allowPositionals: true; strict: true }>
>

/**
 * Parses `args`: the options that `options` describes, and as many other words as `names` has. Throws UsageError.
 */
export function parse<const O extends Options>(
  args: string[],
  options: O,
  command: string,
  names: readonly string[],
): Parsed<O> {
  const parsed = parseOptions(args, options, command)
  const { positionals } = parsed
  if (positionals.length !== names.length) throw wrongCount(positionals, names, command)
  return parsed
}

function wrongCount(words: readonly string[], names: readonly string[], command: string) {
  const missing = names.slice(words.length)
  const problem =
    missing.length > 0
      ? `${missing.join(' and ')} ${missing.length > 1 ? 'are' : 'is'} missing`
      : `"${words[names.length]}" is one argument too many`
  return new UsageError(`${problem}; vimgfs help ${command} shows how to call it`)
}

/** How many words a command takes besides its options. */
export interface Words {
  /** The names of the words that must be there, in order. */
  readonly required: readonly string[]
  /** The names of words that may follow. */
  readonly optional?: readonly string[]
  /** Whether any number of words may follow. */
  readonly hasMore?: boolean
  /** Whether a word such as -5G is a number, not options. */
  readonly takesNegative?: boolean
}

/**
 * Does the same as `parse` for a command with optional words. A negative number counts as the last word. Throws UsageError.
 */
export function parseWords<const O extends Options>(
  args: string[],
  options: O,
  command: string,
  { required, optional = [], hasMore = false, takesNegative = false }: Words,
): Parsed<O> {
  const isNumber = (word: string) => takesNegative && /^-[0-9]/.test(word)
  const words = args.filter(word => !isNumber(word))
  const numbers = args.filter(isNumber)
  const end = words.includes('--') ? [] : ['--']
  const all = numbers.length > 0 ? [...words, ...end, ...numbers] : words
  const parsed = parseOptions(all, options, command)
  const { length } = parsed.positionals
  if (hasMore ? length >= required.length : length <= required.length + optional.length) {
    if (length >= required.length) return parsed
  }
  const names = length < required.length ? required : [...required, ...optional]
  throw wrongCount(parsed.positionals, names, command)
}

function parseOptions<const O extends Options>(
  args: string[],
  options: O,
  command: string,
): Parsed<O> {
  try {
    return parseArgs({ args, options, allowPositionals: true, strict: true })
  } catch (error) {
    // Keep the first sentence. The others say how to pass a word that begins with a dash, as the help does.
    const [message = ''] = (error as Error).message.split(/[.]\s/)
    const unknown = /^Unknown option '--([^']+)'/.exec(message)?.[1]
    const near = unknown === undefined ? '' : nearest(`--${unknown}`, longNames(options))
    throw new UsageError(`${message}${near}; vimgfs help ${command} shows how to call it`)
  }
}

const longNames = (options: Options): string[] => Object.keys(options).map(name => `--${name}`)

const UNITS: Record<string, number> = { '': 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30 }

/** Returns a size such as "64M" in bytes. Throws UsageError. */
export function parseSize(text: string, option: string): number {
  const [, digits = '', unit = ''] = /^([0-9]{1,15})([kmg]?)(?:i?b)?$/i.exec(text) ?? []
  const bytes = Number(digits) * (UNITS[unit.toLowerCase()] as number)
  if (digits === '' || !Number.isSafeInteger(bytes)) {
    throw new UsageError(`${option} takes a size such as 32M or 1G, not "${text}"`)
  }
  return bytes
}

/** Returns a whole number from `min` to `max`. Throws UsageError. */
export function parseCount(text: string, option: string, min: number, max: number): number {
  const value = /^[0-9]{1,9}$/.test(text) ? Number(text) : Number.NaN
  if (!(value >= min && value <= max)) {
    throw new UsageError(`${option} takes a number from ${min} to ${max}, not "${text}"`)
  }
  return value
}

/** Returns `text` if it is one of `choices`. Throws UsageError. */
export function parseChoice<T extends string>(
  text: string,
  option: string,
  choices: readonly T[],
): T {
  const choice = choices.find(one => one === text)
  if (choice === undefined) {
    throw new UsageError(`${option} takes ${choices.join(', ')}, not "${text}"`)
  }
  return choice
}
