/** `vimgfs usage`: where the space of an image went, and what each snapshot alone holds. */
import { printable, UsageError } from '../errors.js'
import { jsonWithoutHidden } from '../hidden-characters.js'
import type { ImageUsage } from '../image/usage.js'
import type { UsageOpenOptions, UsageRequest } from '../image/usage-run.js'
import { parseWords } from './arguments.js'
import { OPTIONS } from './help/usage.js'
import { complain, print } from './output.js'
import { Progress, type ProgressOptions } from './progress.js'
import { requireWhole } from './qemu-options.js'
import { configureRemote } from './remote-options.js'
import { usageJson, usageText } from './usage-text.js'

/** The cells of the map on the page. */
const MAP_CELLS = 2048

export async function run(args: string[]): Promise<number> {
  const { formatNamed } = await import('./sources.js')
  const words = { required: ['IMAGE'], hasMore: true }
  const { values, positionals } = parseWords(args, OPTIONS, 'usage', words)
  const [name, ...tags] = positionals as [string, ...string[]]
  const { html, progress: force, quiet, id: ids = [] } = values
  if (html === '') throw new UsageError('--html takes the name of a file')
  requireWhole(name, 'usage')
  configureRemote(values)
  const names = [...tags.map(tag => ({ tag })), ...ids.map(id => ({ id }))]
  const request = { names, mapCells: html === undefined ? 0 : MAP_CELLS }
  const options: UsageOpenOptions = {
    format: values.format === undefined ? undefined : await formatNamed(values.format),
    allowPaths: values['allow-path'] ?? [],
    ignoreCid: values['ignore-cid'] === true,
    takesLocks: values['force-share'] !== true,
  }
  const shown = { force, quiet }
  const found =
    (options.takesLocks ? await usageMounted(name, { tags, ids }, request, shown) : undefined) ??
    (await usageAtRest(name, options, request, shown))
  const chosen = [...tags, ...ids.map(id => `ID ${id}`)]
  if (html !== undefined) {
    const { writePage } = await import('./usage-page.js')
    writePage(html, name, found, chosen)
  }
  if (found.problems.length > 0) say(notExact(name, found.problems))
  if (values.json)
    print(`${jsonWithoutHidden(JSON.stringify(usageJson(name, found, chosen), null, 2))}\n`)
  else if (html === undefined) print(usageText(name, found, chosen))
  return 0
}

async function usageAtRest(
  name: string,
  options: UsageOpenOptions,
  request: UsageRequest,
  shown: ProgressOptions,
): Promise<ImageUsage> {
  const { openForUsage, runUsage } = await import('../image/usage-run.js')
  const { closeChain } = await import('../image/opening/chain.js')
  const { whenReleased } = await import('../fs/mounting/release.js')
  const { namingItsMount } = await import('../image/opening/mounted.js')
  const chain = await whenReleased(() => openForUsage(name, options), say).catch(error => {
    throw namingItsMount(error, READ_ANYWAY)
  })
  const progress = new Progress(1, { ...shown, isPart: true })
  try {
    for (const warning of chain.warnings) say(warning)
    return await runUsage(chain, request, part => progress.update(part))
  } finally {
    progress.end()
    closeChain(chain)
  }
}

/** Has the server tell the usage that has the image mounted. Returns undefined if none has. Throws MountError. */
async function usageMounted(
  name: string,
  { tags, ids }: { readonly tags: readonly string[]; readonly ids: readonly string[] },
  { mapCells }: UsageRequest,
  shown: ProgressOptions,
): Promise<ImageUsage | undefined> {
  const { ask, ifMounted } = await import('./mounted.js')
  const { receivedUsage } = await import('../control/received-usage.js')
  const told = await ifMounted(name, async server =>
    receivedUsage(await ask(server, { do: 'usage', tags, ids, mapCells }, shown)),
  )
  return told?.result
}

/** The most problems that the line names. */
const MAX_NAMED = 5

function notExact(name: string, problems: readonly string[]): string {
  const more = problems.length > MAX_NAMED ? [`and ${problems.length - MAX_NAMED} more`] : []
  const what = [...problems.slice(0, MAX_NAMED), ...more].join('; ')
  return `${name}: the figures are not exact: ${what}; vimgfs check says more`
}

const say = (line: string) => complain(`vimgfs: ${printable(line)}\n`)

const READ_ANYWAY = 'end that, or look at it as it is with -U: the figures may be torn'
