/** Writes the help of commands, in lines that fit a terminal of 80 columns. */
import { type Names, named } from './names.js'
import { unfolded, wrapped } from './wrapping.js'
import type { Block, CommandHelp, OptionHelp, Options, Rows } from './description.js'

const WIDTH = 80
/** Where the texts of options begin. */
const TEXT_AT = 25
const SUBTEXT_AT = 29
export const USUAL_EXIT = '0 done, 1 not done, 2 wrong usage'

/** Returns the help of one command. */
export function helpText(command: string, help: CommandHelp, names: Names): string {
  const { text, options, suboptions = {}, notes = [], exit = USUAL_EXIT, examples } = help
  const fill = (part: string) => named(part, names)
  const usage = help.usage.map(line => `vimgfs ${command} ${line}`.trimEnd())
  const optionLines = optionRows(options).flatMap(({ keys, head, text }) => [
    ...row(head, fill(text), 2, TEXT_AT),
    ...keys.flatMap(key => rows(suboptions[key] ?? [], 7, SUBTEXT_AT, fill)),
  ])
  const parts = [
    usage.map((line, i) => (i === 0 ? 'Usage: ' : '       ') + line),
    ...text.map(block => blockLines(block, fill)),
    ...(optionLines.length > 0 ? [optionLines] : []),
    ...notes.map(block => blockLines(block, fill)),
    wrapped(`Exit code: ${fill(exit)}.`, WIDTH),
    ['Example:', ...examples.map(line => `  ${line}`)],
  ]
  return parts.map(lines => `${lines.join('\n')}\n`).join('\n')
}

/** Returns the rows of the list of all commands. */
export function overviewRows(helps: readonly (readonly [name: string, help: CommandHelp])[]) {
  return helps.flatMap(([name, { words, summary }]) =>
    row(`${name} ${words.replaceAll('[@TAG]', '')}`, summary, 2, TEXT_AT + 1),
  )
}

export interface OptionRow {
  /** The long names of the options of this row. */
  readonly keys: readonly string[]
  /** All that can be written: `-f, --format F`. */
  readonly head: string
  readonly text: string
}

/** Returns the options, with neighbours joined that have the same text. */
export function optionRows(options: Options): OptionRow[] {
  const all: OptionRow[] = []
  for (const [key, option] of Object.entries(options)) {
    const text = unfolded(option.help.replaceAll('{choices}', (option.choices ?? []).join(', ')))
    const last = all.at(-1)
    const head = headOf(key, option)
    if (last?.text !== text) all.push({ keys: [key], head, text })
    else {
      const joined = `${last.head.trim()}, ${head.trim()}`
      all[all.length - 1] = { keys: [...last.keys, key], head: joined, text }
    }
  }
  return all
}

function headOf(key: string, option: OptionHelp): string {
  const short = option.short === undefined ? '    ' : `-${option.short}, `
  return `${short}--${key}${valueOf(option)}`
}

/** Returns what follows the name of an option. */
export function valueOf({ type, value, choices = [] }: OptionHelp): string {
  if (type === 'boolean') return ''
  return value === undefined ? `=${choices.join('|')}` : ` ${value}`
}

function blockLines(block: Block, fill: (text: string) => string): string[] {
  if (typeof block === 'string') return wrapped(fill(unfolded(block)), WIDTH)
  return rows(block, 2, TEXT_AT, fill)
}

const rows = (list: Rows, indent: number, textAt: number, fill: (text: string) => string) =>
  list.flatMap(([term, text]) => row(term, fill(unfolded(text)), indent, textAt))

/** Returns a term and its text, which begins in the column `textAt`, on the next line if the term is long. */
function row(term: string, text: string, indent: number, textAt: number): string[] {
  const terms = wrapped(term.trim(), WIDTH - indent)
  const margin = ' '.repeat(term.length - term.trimStart().length)
  const heads = terms.map(line => ' '.repeat(indent) + margin + line)
  const texts = wrapped(text, WIDTH - textAt).map(line => ' '.repeat(textAt) + line)
  const last = heads.at(-1) as string
  if (texts.length === 0 || last.length > textAt - 1) return [...heads, ...texts]
  return [
    ...heads.slice(0, -1),
    last.padEnd(textAt) + (texts[0] as string).trimStart(),
    ...texts.slice(1),
  ]
}
