/** The files that `-o partitions` adds to a mount. */
import { inWords, isExpected } from '../errors.js'
import type { CatalogEntry } from '../image/catalog.js'
import { readView } from '../image/engine.js'
import { listed } from '../image/partitions/listed.js'
import type { Partition, PartitionTable } from '../image/partitions/partition.js'
import { readPartitionTable } from '../image/partitions/read-table.js'
import type { ViewSet } from '../image/view-set.js'
import { jsonWithoutHidden } from '../hidden-characters.js'
import type { Logger } from '../log.js'

/** The most files that are added: a damaged image may have a thousand snapshots with 128 partitions each. */
const MAX_FILES = 65_536
const NAME_MAX_BYTES = 255
const SUFFIX = '.raw'

/**
 * Returns the entries of a mount with those of the partitions of each disk, snapshot and layer, and the text of partitions.json.
 * It logs what it leaves out: damage of a table fails no mount. If a partition's name is that of another entry, the other one gets
 * `~ID` after it.
 */
export function withPartitions(
  entries: readonly CatalogEntry[],
  views: ViewSet,
  logger: Pick<Logger, 'warn'>,
): { readonly entries: readonly CatalogEntry[]; readonly text: string } {
  const tables = new Map(
    entries
      .filter(({ kind }) => kind !== 'vmstate')
      .map(entry => [entry, tableOf(entry, views, logger)]),
  )
  const stems = distinctStems(tables)
  const renamed = entries.map(entry => {
    const { name } = entry
    const end = name.lastIndexOf('.')
    const stem = stems.get(name.slice(0, end))
    return stem === undefined ? entry : { ...entry, name: stem + name.slice(end) }
  })
  const added: CatalogEntry[] = []
  const disks = []
  for (const [index, entry] of entries.entries()) {
    const table = tables.get(entry)
    if (!table) continue
    const shown = renamed[index] as CatalogEntry
    disks.push(listed(shown.name, table))
    for (const partition of table.partitions) {
      const file = fileOf(shown, partition)
      if (added.length === MAX_FILES || Buffer.byteLength(file.name) > NAME_MAX_BYTES) {
        const why = added.length === MAX_FILES ? 'there are too many' : 'its name is too long'
        logger.warn(`partition ${partition.number} of ${shown.name} is not shown: ${why}`)
      } else added.push(file)
    }
  }
  const text = jsonWithoutHidden(JSON.stringify({ disks }, undefined, 4))
  return { entries: [...renamed, ...added], text: `${text}\n` }
}

function tableOf(entry: CatalogEntry, views: ViewSet, logger: Pick<Logger, 'warn'>) {
  try {
    const view = views.viewOf(entry)
    const table = readPartitionTable({
      sizeBytes: entry.sizeBytes,
      read: (target, start, length, offset) => {
        const { disk } = views
        disk?.beginRead(offset, length)
        try {
          readView(view, target, start, length, offset)
        } finally {
          disk?.endRead()
        }
      },
    })
    for (const warning of table.warnings) logger.warn(`${entry.name}: ${warning}`)
    return table
  } catch (error) {
    if (!isExpected(error)) throw error
    logger.warn(`${entry.name}: its partition table cannot be read: ${inWords(error)}`)
    return undefined
  }
}

const stemOf = ({ name }: CatalogEntry): string => name.slice(0, -SUFFIX.length)

const nameOf = (stem: string, { number }: Partition): string => `${stem}.p${number}${SUFFIX}`

/** Returns the new stems of entries whose names partitions take, by their old ones. */
function distinctStems(
  tables: ReadonlyMap<CatalogEntry, PartitionTable | undefined>,
): Map<string, string> {
  const stems = new Map<string, string>()
  const taken = new Set<string>()
  const all = new Set([...tables.keys()].map(({ name }) => name))
  // A partition's name is longer than that of its disk.
  const sorted = [...tables].toSorted(([a], [b]) => a.name.length - b.name.length)
  for (const [entry, table] of sorted) {
    let stem = stemOf(entry)
    if (taken.has(entry.name)) {
      const id = entry.attributes['snapshot-id'] ?? entry.layer
      do stem += `~${id}`
      while (taken.has(stem + SUFFIX) || all.has(stem + SUFFIX))
      stems.set(stemOf(entry), stem)
    }
    taken.add(stem + SUFFIX)
    for (const partition of table?.partitions ?? []) taken.add(nameOf(stem, partition))
  }
  return stems
}

function fileOf(disk: CatalogEntry, partition: Partition): CatalogEntry {
  const { number, start, size, type, label, uuid } = partition
  return {
    ...disk,
    name: nameOf(stemOf(disk), partition),
    kind: 'partition',
    startOffset: disk.startOffset + start,
    sizeBytes: size,
    attributes: {
      ...disk.attributes,
      'partition-number': `${number}`,
      'partition-type': type,
      ...(label !== undefined && { 'partition-label': label }),
      ...(uuid !== undefined && { 'partition-uuid': uuid }),
    },
  }
}
