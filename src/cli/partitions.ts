/** `vimgfs info --partitions`: lists the partitions of a disk. */
import { printable } from '../errors.js'
import { listed } from '../image/partitions/listed.js'
import type { Partition, PartitionTable } from '../image/partitions/partition.js'
import { readPartitionTable } from '../image/partitions/read-table.js'
import { humanSize } from './human.js'
import { complain, print } from './output.js'
import { SourceOpener, type SourceValues } from './sources.js'

/** Prints the partitions of IMAGE or IMAGE@TAG. Throws ImageError, MountError, SystemError, UsageError. */
export async function printPartitions(
  name: string,
  values: SourceValues,
  output: 'human' | 'json',
): Promise<void> {
  const opener = new SourceOpener(values)
  const source = await opener.open(name)
  try {
    const found = readPartitionTable(source)
    const { name: file } = source.spec.entry
    for (const warning of found.warnings) complain(`vimgfs: ${printable(`${name}: ${warning}`)}\n`)
    const json = () => JSON.stringify({ disks: [listed(file, found)] }, undefined, 4)
    print(output === 'json' ? `${json()}\n` : human(file, found))
  } finally {
    source.close()
    opener.close()
  }
}

function human(file: string, { table, sectorSize, partitions }: PartitionTable): string {
  if (table === undefined) return `${printable(file)}: no partition table\n`
  const rows = [['NUMBER', 'START', 'SIZE', 'TYPE', 'UUID', 'LABEL'], ...partitions.map(rowOf)]
  const widths = rows[0]?.map((_, i) => Math.max(...rows.map(row => (row[i] as string).length)))
  const lines = rows.map(row =>
    row
      .map((cell, i) => cell.padEnd(widths?.[i] ?? 0))
      .join('  ')
      .trimEnd(),
  )
  const name = table === 'gpt' ? 'GPT' : 'MBR'
  const head = `${file}: ${name}, sectors of ${sectorSize} bytes`
  return `${[head, ...lines].map(printable).join('\n')}\n`
}

const rowOf = ({ number, start, size, type, uuid = '', label = '' }: Partition): string[] => [
  `${number}`,
  `${start}`,
  humanSize(size),
  type,
  uuid,
  label,
]
