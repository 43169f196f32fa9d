/** The usage of an image as a table of at most 80 columns, and as JSON. */
import path from 'node:path'
import { printable } from '../errors.js'
import type { Compression, Space } from '../formats/usage.js'
import type { ImageUsage, LayerUsage } from '../image/usage.js'
import { humanSize } from './human.js'

/** The names of the parts of a file. */
export const SPACE_NAMES: readonly (readonly [keyof Space, string])[] = [
  ['dataBytes', 'data'],
  ['compressedBytes', 'compressed data'],
  ['zeroBytes', 'allocated, but zeros'],
  ['metadataBytes', 'tables and header'],
  ['leakedBytes', 'leaked: nothing uses it'],
  ['freeBytes', 'free within the file'],
]

/** Returns the bytes that compression saves; never below 0. */
export const gainOf = ({ unpackedBytes, packedBytes }: Compression): number =>
  Math.max(0, unpackedBytes - packedBytes)

/** The fields of `--json` (docs/commands.md). */
export function usageJson(name: string, usage: ImageUsage, chosen: readonly string[]): object {
  const { diskBytes, layers, disk, snapshots, problems } = usage
  const fields = ({ path: file, space, compression, ...rest }: LayerUsage, filename = file) => ({
    filename,
    ...rest,
    ...space,
    ...(compression && {
      compression: { ...compression, gainBytes: gainOf(compression) },
    }),
  })
  const [top, ...below] = layers as [LayerUsage, ...LayerUsage[]]
  return {
    ...fields(top, name),
    diskBytes,
    ...(disk && { disk, snapshots }),
    ...(usage.chosen && { chosen: { snapshots: chosen, ...usage.chosen } }),
    layersBelow: below.map(layer => fields(layer)),
    problems,
  }
}

export function usageText(name: string, usage: ImageUsage, chosen: readonly string[]): string {
  const { layers, diskBytes } = usage
  const [top] = layers as [LayerUsage]
  const head = [
    fitted(name, LINE_COLUMNS).trimEnd(),
    `${top.format}, a disk of ${humanSize(diskBytes)}; its file has ${humanSize(top.fileBytes)}, ${humanSize(top.allocatedBytes)} allocated`,
  ]
  const blocks = [
    head,
    top.space ? spaceLines(top.space, top.compression) : plainLines(top),
    snapshotLines(usage, chosen),
    layers.length > 1 ? layerLines(layers) : [],
  ]
  const text = blocks.filter(lines => lines.length > 0).map(lines => lines.join('\n'))
  return `${text.join('\n\n')}\n`
}

const plainLines = ({ heldBytes, tableBytes }: LayerUsage): string[] => [
  row('data of the disk', heldBytes),
  ...(tableBytes > 0 ? [row('all tables that it can have', tableBytes)] : []),
]

function spaceLines(space: Space, compression: Compression | undefined): string[] {
  const total = SPACE_NAMES.reduce((sum, [part]) => sum + space[part], 0)
  const percent = (bytes: number) =>
    total > 0 ? `${((bytes / total) * 100).toFixed(1)} %`.padStart(9) : ''
  return [
    ...SPACE_NAMES.map(([part, what]) => `${row(what, space[part])}${percent(space[part])}`),
    ...(compression && compression.units > 0
      ? [
          `compression saves ${humanSize(gainOf(compression))} of ${humanSize(compression.unpackedBytes)}`,
        ]
      : []),
  ]
}

const LINE_COLUMNS = 80
const NAME_COLUMNS = 44
const row = (what: string, ...sizes: number[]): string =>
  fitted(what) + sizes.map(bytes => humanSize(bytes).padStart(13)).join('')

/** Returns a text of so many columns; one that is too long loses its middle. */
function fitted(text: string, columns = NAME_COLUMNS): string {
  const characters = [...printable(text)]
  if (characters.length <= columns) return characters.join('').padEnd(columns)
  const half = (columns - 1) / 2
  const end = characters.length - Math.floor(half)
  return [...characters.slice(0, Math.ceil(half)), '…', ...characters.slice(end)].join('')
}

const titles = (what: string, ...names: string[]): string =>
  what.padEnd(NAME_COLUMNS) + names.map(name => name.padStart(13)).join('')

function snapshotLines(
  { disk, snapshots, chosen }: ImageUsage,
  names: readonly string[],
): string[] {
  if (!disk || snapshots.length === 0) return []
  const line = (what: string, { referencedBytes, exclusiveBytes }: typeof disk) =>
    row(what, referencedBytes, exclusiveBytes)
  const set = names.length > 1 ? `together: ${names.join(', ')}` : `snapshot ${names[0]}`
  return [
    titles('', 'refers to', 'alone holds'),
    line('the disk', disk),
    ...snapshots.map(one => line(`${one.id} ${one.name}`, one)),
    ...(chosen ? [line(set, chosen)] : []),
  ]
}

function layerLines(layers: readonly LayerUsage[]): string[] {
  return [
    titles('layer', 'has', 'of it in use'),
    ...layers.map(layer => row(path.basename(layer.path), layer.heldBytes, layer.usedBytes)),
  ]
}
