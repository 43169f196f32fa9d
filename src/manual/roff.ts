/** Writes pages of the manual with the macros of man(7). */
import { unfolded, wrapped } from '../cli/help/wrapping.js'

/** Lines of a page's source. Mandoc wants no more than 80 bytes. */
const WIDTH = 74

export interface Page {
  readonly name: string
  readonly section: number
  /** Its subject, in a few words that follow the name. */
  readonly summary: string
  readonly sections: readonly Section[]
  /** Names of pages, such as `vimgfs(1)`. */
  readonly seeAlso: readonly string[]
}

export interface Section {
  readonly title: string
  readonly parts: readonly Part[]
}

export type Part =
  /** A paragraph. */
  | string
  | { readonly commands: readonly string[] }
  /** Lines as they are. */
  | { readonly lines: readonly string[] }
  | { readonly rows: readonly Row[] }

export interface Row {
  readonly head: string
  readonly text: string
  readonly rows?: readonly Row[]
}

export const fileOf = ({ name, section }: Page): string => `${name}.${section}`

/** Returns the source of a page. `date` is as in 2026-01-31. */
export function source(page: Page, date: string, version: string): string {
  const { name, section, summary, sections, seeAlso } = page
  const title = escaped(name.toUpperCase())
  const lines = [
    `.TH ${title} ${section} ${date} "vimgfs ${version}" "${MANUALS[section]}"`,
    '.SH NAME',
    `${escaped(name)} \\- ${escaped(summary)}`,
    ...sections.flatMap(({ title, parts }) => [`.SH ${title}`, ...partLines(parts)]),
    ...(seeAlso.length > 0 ? ['.SH SEE ALSO', ...references(seeAlso)] : []),
  ]
  return `${lines.join('\n')}\n`
}

const MANUALS: Record<number, string> = {
  1: 'User Commands',
  5: 'File Formats',
  8: 'System Administration',
}

const partLines = (parts: readonly Part[]): string[] =>
  parts.flatMap((part, i) => {
    if (typeof part === 'string') return [...(i > 0 ? ['.PP'] : []), ...paragraph(part)]
    if ('commands' in part) {
      return part.commands.flatMap((line, at) => [...(at > 0 ? ['.br'] : []), ...command(line)])
    }
    if ('rows' in part) return rowLines(part.rows)
    return [...(i > 0 ? ['.PP'] : []), '.nf', ...part.lines.map(inLine), '.fi']
  })

const rowLines = (rows: readonly Row[]): string[] =>
  rows.flatMap(({ head, text, rows: inner = [] }) => [
    '.TP',
    ...brokenUp(head).map((line, i, all) => bold(line) + (i < all.length - 1 ? '\\c' : '')),
    ...paragraph(text),
    ...(inner.length > 0 ? ['.RS', ...rowLines(inner), '.RE'] : []),
  ])

/** The head of a row is one line of the output, however long. */
const brokenUp = (head: string): string[] => {
  const lines = wrapped(head, WIDTH - 24)
  return lines.map((line, i) => (i < lines.length - 1 ? `${line} ` : line))
}

const bold = (text: string): string => `\\fB${escaped(text)}\\fR`

/** Returns a line of the synopsis: the command, and what follows it. */
function command(line: string): string[] {
  const [, name = '', rest = ''] = /^((?:[a-z.]+ ?)+)(.*)$/.exec(line) ?? []
  const others = wrapped(rest, WIDTH - 20).filter(words => words !== '')
  return [`.B ${escaped(name.trim())}`, ...others.map(inLine)]
}

const paragraph = (text: string): string[] =>
  wrapped(unfolded(text), WIDTH - 20)
    .map(line => inLine(line))
    .map(line => line.replace(/(^|[ (])((?:\\-){1,2}[a-zA-Z](?:[a-z]|\\-)*)/g, '$1\\fB$2\\fR'))

/** Escapes a line of text; what looks like a request is none. */
const inLine = (text: string): string => escaped(text).replace(/^[.']/, '\\&$&')

const escaped = (text: string): string =>
  text
    .replaceAll('\\', '\\e')
    .replaceAll('…', '...')
    .replaceAll('–', '\\(en')
    .replaceAll('-', '\\-')
    .replaceAll('~', '\\(ti')
    .replaceAll('^', '\\(ha')
    .replaceAll('"', '\\(dq')

const references = (pages: readonly string[]): string[] =>
  pages.map((page, i) => {
    const [, name = '', section] = /^(.*)\((\d)\)$/.exec(page) ?? []
    return `.BR ${escaped(name)} (${section})${i < pages.length - 1 ? ' ,' : ''}`.replace(' ,', ',')
  })
