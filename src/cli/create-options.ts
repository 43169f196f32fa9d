/** Parses `-o NAME=VALUE,…` of new images, and lists the options of a format. */
import { UsageError } from '../errors.js'
import type { CreateOption, OptionValues } from '../formats/creating.js'
import { unknownOption } from '../image/making/new-image.js'
import { parseCount, parseChoice } from './arguments.js'
import { print } from './output.js'
import { piecesOf } from './qemu-options.js'
import { parseDiskSize } from '../sizes.js'

export const BACKING_OPTIONS: readonly CreateOption[] = [
  { name: 'backing_file', type: 'text', help: 'backing file, as -b (-B of convert)' },
  { name: 'backing_fmt', type: 'text', help: 'its format, as -F' },
]

/** What qemu-img also takes as options; every format has them. */
export const COMMON_OPTIONS: readonly CreateOption[] = [
  { name: 'size', type: 'size', help: 'size of the disk, as SIZE' },
  ...BACKING_OPTIONS,
]

/** Reports whether one of the texts of `-o` asks for the list of options. */
export const wantsList = (texts: readonly string[]): boolean =>
  texts.some(text => text === 'help' || text === '?')

/** Returns the options of `texts`, in the types that `known` says. Throws UsageError. */
export function parseCreateOptions(
  known: readonly CreateOption[],
  texts: readonly string[],
  format: string,
): OptionValues {
  const values: Record<string, boolean | number | string> = {}
  for (const text of texts.flatMap(piecesOf)) {
    const [, name = '', value] = /^([^=]*)(?:=(.*))?$/s.exec(text) ?? []
    const option = known.find(one => one.name === name)
    if (!option) throw unknownOption(name, format)
    values[name] = valueOf(option, value)
  }
  return values
}

/** Prints the options of a format, those that all have included. */
export function printOptions(own: readonly CreateOption[], format: string): void {
  const known = [...COMMON_OPTIONS, ...own].sort((a, b) => (a.name < b.name ? -1 : 1))
  print(`Options of ${format} images, with their defaults:\n${listOptions(known)}`)
}

/** Lists options for people, a line each. */
function listOptions(options: readonly CreateOption[]): string {
  const rows = options.map(option => [`${option.name}=${wordOf(option.type)}`, textOf(option)])
  const width = Math.min(34, Math.max(...rows.map(([name = '']) => name.length)))
  return rows
    .map(([name = '', text]) =>
      name.length > width
        ? `  ${name}\n  ${' '.repeat(width)}  ${text}\n`
        : `  ${name.padEnd(width)}  ${text}\n`,
    )
    .join('')
}

const textOf = ({ help, default: otherwise }: CreateOption): string =>
  otherwise === undefined ? help : `${help} (${otherwise})`

/** Returns the word for the values of an option. */
export function wordOf(type: CreateOption['type']): string {
  if (type === 'switch') return 'on|off'
  if (type === 'size' || type === 'text') return type.toUpperCase()
  return type === 'count' ? 'N' : type.join('|')
}

const ON = ['on', 'yes', 'true', 'y']
const OFF = ['off', 'no', 'false', 'n']

function valueOf(
  { name, type }: CreateOption,
  text: string | undefined,
): boolean | number | string {
  if (type === 'switch') {
    if (text === undefined || ON.includes(text)) return true
    if (OFF.includes(text)) return false
    throw new UsageError(`the option ${name} takes on or off, not "${text}"`)
  }
  if (text === undefined) throw new UsageError(`the option ${name} needs a value: ${name}=…`)
  const what = `the option ${name}`
  if (type === 'size') return parseDiskSize(text, what)
  if (type === 'count') return parseCount(text, what, 0, 999_999_999)
  return type === 'text' ? text : parseChoice(text, what, type)
}
