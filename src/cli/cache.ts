/** `vimgfs cache`: lists and clears what is kept of images that are not on this machine. */
import { printable, UsageError } from '../errors.js'
import { CacheFolder, type ListedObject } from '../sources/cache/folder.js'
import { defaultCacheFolder } from '../sources/settings.js'
import { parseChoice, parseWords } from './arguments.js'
import { ACTIONS, OPTIONS } from './help/cache.js'
import { humanSize } from './human.js'
import { print } from './output.js'
import { shownAddress } from '../sources/address.js'

export async function run(args: string[]): Promise<number> {
  const words = { required: ['ACTION'], optional: ['ADDRESS'] }
  const { values, positionals } = parseWords(args, OPTIONS, 'cache', words)
  const action = parseChoice(positionals[0] as string, 'cache', ACTIONS)
  const address = positionals[1] === undefined ? undefined : shownAddress(positionals[1])
  const output = parseChoice(values.output ?? 'human', '--output', OPTIONS.output.choices)
  if (action === 'clear' && values.output !== undefined) {
    throw new UsageError('cache clear has no option --output')
  }
  const folder = CacheFolder.find(values['cache-dir'] ?? defaultCacheFolder())
  const found = (folder?.list() ?? []).filter(
    ({ about }) => address === undefined || about.address === address,
  )
  if (action === 'clear') return folder ? clear(folder, found) : 0
  print(output === 'json' ? `${JSON.stringify(found.map(fields), null, 4)}\n` : table(found))
  return 0
}

/** Removes what no program has open. */
function clear(folder: CacheFolder, objects: readonly ListedObject[]): number {
  let freed = 0
  for (const object of objects.filter(({ isInUse }) => !isInUse)) {
    folder.remove(object)
    freed += object.allocatedBytes
  }
  const kept = objects.filter(({ isInUse }) => isInUse)
  print(`${humanSize(freed)} freed\n`)
  for (const { about } of kept) print(`${printable(about.address)} is in use, and stays\n`)
  return 0
}

const fields = ({ about, allocatedBytes, openedMs, isInUse }: ListedObject) => ({
  address: about.address,
  sizeBytes: about.sizeBytes,
  cachedBytes: allocatedBytes,
  opened: new Date(openedMs).toISOString(),
  isInUse,
})

function table(objects: readonly ListedObject[]): string {
  const rows = [
    ['CACHED', 'SIZE', 'OPENED', 'ADDRESS'],
    ...objects
      .toSorted((a, b) => b.openedMs - a.openedMs)
      .map(({ about, allocatedBytes, openedMs, isInUse }) => [
        humanSize(allocatedBytes),
        humanSize(about.sizeBytes),
        `${new Date(openedMs).toISOString().slice(0, 16).replace('T', ' ')}${isInUse ? ', in use' : ''}`,
        printable(about.address),
      ]),
  ]
  const widths = rows[0]?.map((_, i) => Math.max(...rows.map(row => (row[i] as string).length)))
  return rows
    .map(
      row =>
        `${row
          .map((cell, i) => cell.padEnd(widths?.[i] ?? 0))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('')
}
