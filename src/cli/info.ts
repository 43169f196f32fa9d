/** `vimgfs info`: describes an image as `qemu-img info` does. */
import { printable, UsageError } from '../errors.js'
import type { InfoFields, InfoValue } from '../formats/info-fields.js'
import type { ImageInfo } from '../image/info.js'
import { parse, parseChoice } from './arguments.js'
import { OPTIONS } from './help/info.js'
import { humanSize } from './human.js'
import { complain, print } from './output.js'
import { requireWhole } from './qemu-options.js'
import { configureRemote } from './remote-options.js'
import { snapshotTable } from './snapshot-table.js'

export async function run(args: string[]): Promise<number> {
  const { describe } = await import('../image/info.js')
  const { FORMAT_NAMES } = await import('../formats/registry.js')
  const { values, positionals } = parse(args, OPTIONS, 'info', ['IMAGE'])
  const [image] = positionals as [string]
  const output = parseChoice(values.output ?? 'human', '--output', OPTIONS.output.choices)
  const withBackingChain = values['backing-chain'] === true
  if (values.partitions) {
    if (withBackingChain)
      throw new UsageError('--partitions and --backing-chain exclude each other')
    const { printPartitions } = await import('./partitions.js')
    await printPartitions(image, values, output)
    return 0
  }
  requireWhole(image, 'info')
  configureRemote(values)
  const open = {
    ...(values.format !== undefined && {
      format: parseChoice(values.format, '--format', FORMAT_NAMES),
    }),
    allowPaths: values['allow-path'] ?? [],
    ignoreCid: values['ignore-cid'] === true,
  }
  const warn = (text: string) => complain(`vimgfs: ${printable(text)}\n`)
  const infos = describe(image, open, withBackingChain, warn)
  const [top] = infos as [ImageInfo]
  const text =
    output === 'json' ? json(withBackingChain ? infos : top) : infos.map(human).join('\n\n')
  print(`${text}\n`)
  return 0
}

/** Returns JSON as QEMU writes it: ASCII, indented, with whole numbers of 64 bits. */
export function json(value: InfoValue, indent = ''): string {
  if (typeof value === 'string') return JSON.stringify(value).replace(/[\x7f-\uffff]/g, escaped)
  if (typeof value !== 'object') return String(value)
  const inner = `${indent}    `
  const isList = Array.isArray(value)
  const items = isList
    ? value.map(item => json(item, inner))
    : present(value as InfoFields).map(([name, item]) => `"${name}": ${json(item, inner)}`)
  const lines = items.map(item => inner + item).join(',\n')
  const [open, close] = isList ? '[]' : '{}'
  return `${open}\n${lines}${lines === '' ? '' : '\n'}${indent}${close}`
}

const escaped = (c: string): string =>
  `\\u${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`

function present(fields: InfoFields): [string, InfoValue][] {
  return Object.entries(fields).filter(
    (field): field is [string, InfoValue] => field[1] !== undefined,
  )
}

function human(info: ImageInfo): string {
  const backing = info['backing-filename']
  const path = info['full-backing-filename']
  const actual = path === backing ? '' : ` (actual path: ${path})`
  const format = info['backing-filename-format']
  const specific = info['format-specific']
  const lines = [
    `image: ${info.filename}`,
    `file format: ${info.format}`,
    `virtual size: ${humanSize(info['virtual-size'])} (${info['virtual-size']} bytes)`,
    `disk size: ${humanSize(info['actual-size'])}`,
    ...(info.encrypted ? ['encrypted: yes'] : []),
    ...(info['cluster-size'] === undefined ? [] : [`cluster_size: ${info['cluster-size']}`]),
    ...(info['dirty-flag'] ? ['cleanly shut down: no'] : []),
    ...(backing === undefined ? [] : [`backing file: ${backing}${actual}`]),
    ...(format === undefined ? [] : [`backing file format: ${format}`]),
    ...(info.snapshots ? snapshotTable(info.snapshots) : []),
    ...(specific ? ['Format specific information:', ...dump(specific.data, '    ')] : []),
  ]
  return lines.map(printable).join('\n')
}

/** Prints fields and lists, indented. Items of a list are numbered; names have spaces instead of dashes. */
function dump(value: InfoFields | readonly InfoValue[], indent: string): string[] {
  const isList = Array.isArray(value)
  return present(value as InfoFields).flatMap(([name, item]) => {
    const label = indent + (isList ? `[${name}]` : name.replaceAll('-', ' '))
    if (typeof item !== 'object') return [`${label}: ${item}`]
    return [`${label}:`, ...dump(item, `${indent}    `)]
  })
}
