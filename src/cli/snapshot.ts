/** `vimgfs snapshot`: lists, takes and deletes snapshots, and goes back to one. */
import { printable, UsageError } from '../errors.js'
import { withoutHidden } from '../hidden-characters.js'
import type { FrozenInfo, LayerInfo, SnapshotList } from '../image/snapshots/snapshot-list.js'
import type { SnapshotImage, SnapshotName } from '../image/snapshots/snapshots.js'
import { parseChoice, parseWords } from './arguments.js'
import type { OptionHelp } from './help/description.js'
import { ACTIONS, OPTIONS } from './help/snapshot.js'
import { humanSize } from './human.js'
import { json } from './info.js'
import { complain, print } from './output.js'
import { Progress } from './progress.js'
import { requireWhole } from './qemu-options.js'
import { configureRemote } from './remote-options.js'
import { snapshotTable } from './snapshot-table.js'

type Action = (typeof ACTIONS)[number]
type Option = keyof typeof OPTIONS

const LETTERS = ['list', 'create', 'delete', 'apply']

interface Request {
  readonly action: Action
  readonly image: string
  /** The snapshots that the words name. */
  readonly tags: readonly string[]
  /** The snapshots that are older than so many seconds. */
  readonly olderThanSeconds: number | undefined
  /** The new tag, to rename one. */
  readonly to: string
}

type Values = ReturnType<typeof parseWords<typeof OPTIONS>>['values']

export async function run(args: string[]): Promise<number> {
  const words = { required: [], hasMore: true }
  const { values, positionals } = parseWords(args, OPTIONS, 'snapshot', words)
  const request = requestOf(values, positionals)
  const { action } = request
  const foreign = Object.keys(values).find(option => !isKnown(option as Option, action))
  if (foreign !== undefined) throw usage(`snapshot ${action} has no option --${foreign}`)
  const { FORMAT_NAMES } = await import('../formats/registry.js')
  const format = values.format
  const open = format === undefined ? {} : { format: parseChoice(format, '-f', FORMAT_NAMES) }
  if (values.freeze && process.geteuid?.() !== 0) {
    throw new UsageError('--freeze is for root: only root may freeze file systems')
  }
  configureRemote(values)
  if (action === 'list') await list(request, values, open)
  else if (await changedMounted({ ...request, action }, values)) return 0
  else if (action !== 'create' || !(await createChild(request, values, open))) {
    await change(request, values, open)
  }
  return 0
}

/** Reports whether an action knows an option. */
function isKnown(option: Option, action: Action): boolean {
  const { actions }: OptionHelp = OPTIONS[option]
  return actions === undefined || actions.includes(action)
}

/** Takes the action from a letter of qemu-img, or from the first word. */
function requestOf(values: Values, positionals: readonly string[]): Request {
  const letters = LETTERS.filter(letter => letter in values)
  if (letters.length > 1) throw usage('-l, -c, -d and -a exclude each other')
  const [letter] = letters
  const action = letter === undefined ? positionals[0] : letter === 'apply' ? 'revert' : letter
  if (letter === undefined && positionals.length === 1 && !ACTIONS.includes(action as Action)) {
    // As with qemu-img, IMAGE alone lists its snapshots.
    return requestOf({ ...values, list: true }, positionals)
  }
  if (!ACTIONS.includes(action as Action)) {
    const what = action === undefined ? 'the action is missing' : `"${action}" is no action`
    throw usage(`${what}: ${ACTIONS.join(', ')}`)
  }
  const [image, ...words] = letter === undefined ? positionals.slice(1) : positionals
  if (image === undefined) throw usage('IMAGE is missing')
  requireWhole(image, `snapshot ${action}`)
  const named = values.create ?? values.delete ?? values.apply
  const to = action === 'rename' ? words.pop() : ''
  if (to === undefined) throw usage('TAG and NEW are missing')
  const tags = [...(named === undefined ? [] : [named]), ...words]
  const age = values['older-than']
  const olderThanSeconds = age === undefined ? undefined : secondsOf(age)
  const request = { action: action as Action, image, tags, olderThanSeconds, to }
  requireTags(request, values)
  return request
}

function requireTags({ action, tags, olderThanSeconds }: Request, values: Values): void {
  const ids = values.id ?? []
  const named = tags.length + ids.length
  const byAge = olderThanSeconds !== undefined
  if (byAge && named > 0) throw usage('name snapshots, or say --older-than, not both')
  const [least, most] = {
    list: [0, 0],
    create: [1, 1],
    delete: byAge ? [0, 0] : [1, Number.POSITIVE_INFINITY],
    rename: [1, 1],
    revert: [1, 1],
  }[action] as [number, number]
  if (named < least) throw usage('TAG is missing')
  if (named > most) throw usage(`"${[...tags, ...ids][most]}" is one argument too many`)
}

const usage = (what: string) => new UsageError(`${what}; vimgfs help snapshot shows how to call it`)

async function list(
  { image }: Request,
  values: Values,
  options: { readonly format?: string },
): Promise<void> {
  const { listSnapshots } = await import('../image/snapshots/snapshot-list.js')
  const output = parseChoice(values.output ?? 'human', '--output', OPTIONS.output.choices)
  const open = { ...options, allowPaths: values['allow-path'] ?? [] }
  const withLayers = values.layers === true || output === 'json'
  const mounted = await listMounted(image, withLayers)
  const found = mounted ?? listSnapshots(image, open, withLayers, say)
  print(output === 'json' ? `${json(found)}\n` : human(found))
}

/** Returns the list of an image that is mounted, by its own name or its mount point; undefined if it is not. */
export async function listMounted(
  name: string,
  layers: boolean,
): Promise<SnapshotList | undefined> {
  const { ask, ifMounted } = await import('./mounted.js')
  const { receivedList } = await import('../control/received-list.js')
  const answer = await ifMounted(name, async (server, isPlace) => {
    const list = receivedList(await ask(server, { do: 'list', layers }))
    return isPlace ? list : { ...list, filename: name }
  })
  return answer?.result
}

/** QEMU's table alone, unless there is something that QEMU does not show. */
function human({ snapshots, layers = [], ...found }: SnapshotList): string {
  const machine = found['machine-snapshots'] ?? []
  const lines = [
    ...(snapshots.length > 0 ? snapshotTable(snapshots) : []),
    ...(machine.length > 0 ? frozenLines(machine) : []),
    ...layers.flatMap(layerLines),
  ]
  return lines.map(line => `${withoutHidden(line)}\n`).join('')
}

function frozenLines(snapshots: readonly FrozenInfo[]): string[] {
  const [title = '', head = '', ...rows] = snapshotTable(snapshots)
  const places = snapshots.map(({ parent, filename }) => {
    const after = parent === undefined ? '' : `after ${parent}, `
    return `${after}in ${printable(filename)}`
  })
  return [
    `${title.slice(0, -1)} of the machine:`,
    head,
    ...rows.map((row, i) => `${row} ${places[i]}`),
  ]
}

function layerLines(info: LayerInfo): string[] {
  const { layer, filename, format, snapshots } = info
  const what = `layer ${layer}: ${printable(filename)} (${format}, ${humanSize(info['virtual-size'])})`
  // The table of the image itself stands above.
  if (layer === 0 || snapshots.length === 0) return [what]
  return [what, ...snapshotTable(snapshots)]
}

/** Makes the change if the image is mounted. Returns whether it is. */
async function changedMounted(
  { action, image, tags, olderThanSeconds, to }: Request & { action: Exclude<Action, 'list'> },
  values: Values,
): Promise<boolean> {
  const { ifMounted } = await import('./mounted.js')
  const { changeMounted } = await import('./snapshot-mounted.js')
  const { id: ids = [], progress: force, quiet } = values
  const changed = await ifMounted(image, server =>
    changeMounted(server, {
      ...{ action, tags, ids, olderThanSeconds, to, force, quiet, say },
      isDryRun: values['dry-run'] === true,
      discards: values.discard === true,
      waits: values.wait === true,
      replaces: values.replace === true,
      freezes: values.freeze === true,
    }),
  )
  if (quiet !== true) for (const line of changed?.result ?? []) print(`${printable(line)}\n`)
  return changed !== undefined
}

/** Takes a snapshot that is a child disk. Returns false if the format has none. */
async function createChild(
  { image, tags: [tag = ''] }: Request,
  values: Values,
  options: { readonly format?: string },
): Promise<boolean> {
  const { createChild } = await import('../image/snapshots/child-snapshot.js')
  const allowPaths = values['allow-path'] ?? []
  const child = await createChild(image, tag, { ...options, allowPaths })
  if (child === undefined) return false
  if (values.quiet !== true) {
    print(
      `${printable(child)} holds what is written from now on: use it instead of ${printable(image)}\n` +
        "VMware does not list this snapshot: the machine's .vmx and .vmsd are as they were\n",
    )
  }
  return true
}

async function change(
  request: Request,
  values: Values,
  options: { readonly format?: string },
): Promise<void> {
  const { SnapshotImage } = await import('../image/snapshots/snapshots.js')
  const { whenReleased } = await import('../fs/mounting/release.js')
  const { action } = request
  const changesDisk = action === 'revert'
  const { progress: force, quiet } = values
  const shown = new Progress(1, { force, quiet, isPart: true })
  const progress = (part: number) => shown.update(part)
  const open = { ...options, changesDisk, force: values.force === true, progress }
  const image = await whenReleased(() => SnapshotImage.open(request.image, open), say)
  const tell = (line: string) => {
    if (values.quiet !== true) print(`${printable(line)}\n`)
  }
  try {
    for (const warning of image.warnings) say(warning)
    for (const line of await made(image, request, values).finally(() => shown.end())) tell(line)
  } finally {
    image.close()
  }
}

/** Makes the change. Returns lines that say what was done. */
async function made(image: SnapshotImage, request: Request, values: Values): Promise<string[]> {
  const { action, tags } = request
  if (action === 'delete') return deleteFrom(image, request, values)
  if (action === 'create') {
    await image.create(tags[0] as string, new Date(), values.replace === true)
    return []
  }
  const [name] = namesOf(request, values) as [SnapshotName]
  if (action === 'rename') {
    await image.rename(name, request.to)
    return []
  }
  const kept = await image.revert(image.indexOf(name), values.discard === true)
  return kept === undefined ? [] : [`the state before is kept as snapshot "${kept}"`]
}

async function deleteFrom(
  image: SnapshotImage,
  request: Request,
  values: Values,
): Promise<string[]> {
  const { olderThanSeconds: age } = request
  const indexes =
    age === undefined
      ? namesOf(request, values).map(name => image.indexOf(name))
      : olderThan(image, age)
  const chosen = [...new Set(indexes)].sort((a, b) => a - b)
  const isDryRun = values['dry-run'] === true
  if (!isDryRun) await image.delete(chosen)
  if (!isDryRun && age === undefined) return []
  const verb = isDryRun ? 'would delete' : 'deleted'
  return chosen.map(index => {
    const { name, id, dateSeconds } = image.snapshots[index] as SnapshotImage['snapshots'][number]
    const date = new Date(dateSeconds * 1000).toISOString().slice(0, 10)
    return `${verb} snapshot "${name.toString()}" (ID ${id}, of ${date})`
  })
}

const namesOf = ({ tags }: Request, { id: ids = [] }: Values): SnapshotName[] => [
  ...tags.map(tag => ({ tag })),
  ...ids.map(id => ({ id })),
]

function olderThan({ snapshots }: SnapshotImage, seconds: number): number[] {
  const limit = Date.now() / 1000 - seconds
  return snapshots.flatMap(({ dateSeconds }, index) => (dateSeconds < limit ? [index] : []))
}

const UNIT_SECONDS: Record<string, number> = { h: 3600, d: 86400, w: 7 * 86400 }

function secondsOf(age: string): number {
  const [, digits = '', unit = ''] = /^([0-9]{1,6})([hdw])$/.exec(age) ?? []
  if (digits !== '') return Number(digits) * (UNIT_SECONDS[unit] as number)
  throw new UsageError(`--older-than takes an age such as 12h, 30d or 8w, not "${age}"`)
}

const say = (line: string) => complain(`vimgfs: ${printable(line)}\n`)
