/** Finds what can stand in place of the last word of a command line. */
import type { CommandHelp } from '../help/description.js'
import { allHelps, helpOf } from '../help/commands.js'
import { formatNames, named } from '../help/names.js'
import { unfolded } from '../help/wrapping.js'
import { CACHE_MODES } from '../qemu-options.js'
import { type CommandLine, readLine, split } from './command-line.js'
import { OFFERS, type Offer, plain } from './values.js'

export interface Candidate {
  /** The whole word. */
  readonly word: string
  readonly text?: string
}

/** Paths, which the shell completes. They begin after `skip` characters of the word. */
export interface Paths {
  readonly paths: 'files' | 'folders'
  readonly skip: number
}

export type Offered = Candidate | Paths

/** The parts of the machine on which candidates depend. */
export interface Machine {
  /** The tags of an image, or of the one that is mounted there; none if it cannot be read. */
  tagsOf(image: string): Promise<readonly string[]>
  mountpoints(): readonly string[]
  isFile(name: string): boolean
}

/** Returns what can stand in place of the last one of `words`, which follow the program's name. */
export async function candidates(words: readonly string[], machine: Machine): Promise<Offered[]> {
  const last = words.at(-1) ?? ''
  const [command] = words
  const offered =
    words.length < 2 || command === undefined
      ? await commands(['--help', '--version'])
      : await ofCommand(command, words.slice(1, -1), last, machine)
  return offered.filter(one => 'paths' in one || one.word.startsWith(last))
}

async function commands(more: readonly string[]): Promise<Candidate[]> {
  const helps = await allHelps()
  return [
    ...helps.map(([word, { summary }]) => ({ word, text: summary })),
    ...more.map(word => ({ word })),
  ]
}

async function ofCommand(
  command: string,
  before: readonly string[],
  last: string,
  machine: Machine,
): Promise<Offered[]> {
  const help = await helpOf(command)
  if (!help) return []
  const line = readLine(before, help)
  const place: Place = { help, line, machine }
  if (line.option !== undefined) return values(line.option, last, '', place)
  if (!line.hasEnded && last.startsWith('--')) {
    const [name, value] = split(last.slice(2))
    if (value !== undefined) return values(name, value, `--${name}=`, place)
  }
  if (!line.hasEnded && last.startsWith('-')) return optionWords(place)
  return positional(last, place)
}

interface Place {
  readonly help: CommandHelp
  readonly line: CommandLine
  readonly machine: Machine
}

async function optionWords({ help, line }: Place): Promise<Candidate[]> {
  const names = await formatNames()
  const action = actionOf({ help, line })
  const shown = Object.entries(help.options).filter(
    ([name, { actions, multiple }]) =>
      (multiple || !line.given.has(name)) &&
      (actions === undefined || action === undefined || actions.includes(action)),
  )
  const rows = shown.flatMap(([name, option]) => {
    const text = brief(
      named(option.help, names).replace('{choices}', option.choices?.join(', ') ?? ''),
    )
    const { short } = option
    return [
      ...(short === undefined ? [] : [{ word: `-${short}`, text }]),
      { word: `--${name}`, text },
    ]
  })
  return [...rows, { word: '--help', text: 'show the options, with an example' }]
}

/** The longest text beside a candidate, in characters. */
const TEXT_CHARS = 60

/** Returns the beginning of a text, for one line. */
function brief(text: string): string {
  const [first = ''] = unfolded(text).split(/[.;:] /, 1)
  const whole = first.replace(/[:;.]$/, '')
  return whole.length > TEXT_CHARS ? `${whole.slice(0, TEXT_CHARS - 1)}…` : whole
}

const actionOf = ({ help, line }: Pick<Place, 'help' | 'line'>): string | undefined =>
  help.actions?.find(action => action === line.positionals[0])

/** Returns values of an option that begin with `start`, each after `lead`, which is what stands before it in the word. */
async function values(name: string, start: string, lead: string, place: Place): Promise<Offered[]> {
  const option = place.help.options[name]
  if (!option) return []
  const rows = place.help.suboptions?.[name]
  if (rows) {
    const list = rows.flatMap(([term, text]) => term.split(', ').map(word => [word, text] as const))
    return listed(list, start, lead, place)
  }
  if (option.choices) return option.choices.map(choice => ({ word: lead + choice }))
  return offers(OFFERS[plain(option.value ?? '')] ?? 'nothing', start, lead, place)
}

/** Returns candidates for the last item of a list with commas. */
async function listed(
  options: readonly (readonly [term: string, text: string])[],
  start: string,
  lead: string,
  place: Place,
): Promise<Offered[]> {
  const at = start.lastIndexOf(',') + 1
  const before = lead + start.slice(0, at)
  const [name, value] = split(start.slice(at))
  if (value === undefined) {
    return options
      .filter(([term]) => term !== '…')
      .map(([term, text]) => {
        const [word, rest] = split(term)
        return { word: before + word + (rest === undefined ? '' : '='), text: brief(text) }
      })
  }
  const terms = options.map(([term]) => split(term))
  const [, kind = ''] = terms.find(([one, kind]) => one === name && kind !== undefined) ?? []
  const head = `${before}${name}=`
  if (kind.includes('|')) return kind.split('|').map(word => ({ word: head + word }))
  return offers(OFFERS[kind] ?? 'nothing', value, head, place)
}

async function positional(last: string, place: Place): Promise<Offered[]> {
  const { help, line } = place
  const words = help.words.split(' ').filter(word => word !== '')
  const at = line.positionals.length
  const actions = (help.actions ?? []).map(action => ({ word: action }))
  if (at === 0 && actions.length > 0) {
    // An image without an action has its snapshots listed.
    return last === '' || words.length === 1 ? actions : [...actions, { paths: 'files', skip: 0 }]
  }
  const name = words[at] ?? words.findLast(word => word.includes('…'))
  if (name === undefined) return []
  const word = plain(name)
  return offers(help.offers?.[word] ?? OFFERS[word] ?? 'nothing', last, '', place)
}

async function offers(offer: Offer, start: string, lead: string, place: Place): Promise<Offered[]> {
  const { help, line, machine } = place
  const all = (words: readonly string[]) => words.map(word => ({ word: lead + word }))
  switch (offer) {
    case 'files':
    case 'folders':
      return [{ paths: offer, skip: lead.length }]
    case 'disks': {
      const at = start.lastIndexOf('@')
      const image = start.slice(0, Math.max(at, 0))
      if (at < 0 || !machine.isFile(image)) return [{ paths: 'files', skip: lead.length }]
      return all((await machine.tagsOf(image)).map(tag => `${image}@${tag}`))
    }
    case 'tags': {
      if (actionOf(place) === 'create') return []
      const at = actionOf(place) === undefined ? 0 : 1
      const image = line.positionals[at]
      return image === undefined ? [] : all(await machine.tagsOf(image))
    }
    case 'mounts':
      return [
        ...all(machine.mountpoints()),
        ...(start === '' ? [] : [{ paths: 'folders', skip: lead.length } as const]),
      ]
    case 'commands':
      return commands([])
    case 'readable formats':
      return all((await formatNames()).readable)
    case 'creatable formats':
      return all((await formatNames()).creatable)
    case 'cache modes':
      return all(CACHE_MODES)
    case 'create options':
      return listed(await createOptions(help, line), start, lead, place)
    case 'nothing':
      return []
  }
}

/** Returns the options of new images of the format that the line names. */
async function createOptions({ options }: CommandHelp, { given }: CommandLine) {
  const { creatorOf } = await import('../../image/making/new-image.js')
  const { COMMON_OPTIONS, wordOf } = await import('../create-options.js')
  const [format] = Object.keys(options).filter(name => options[name]?.value === 'FMT')
  const creator = await creatorOf(given.get(format ?? '') ?? 'raw')
  return [...COMMON_OPTIONS, ...creator.options].map(
    ({ name, type, help }) => [`${name}=${wordOf(type)}`, help] as const,
  )
}
