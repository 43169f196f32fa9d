/** The files that `-o partitions` adds to a mount. */
import { inWords, isExpected } from '../../errors.js'
import type { CatalogEntry } from '../../image/catalog.js'
import { listed } from '../../image/partitions/listed.js'
import type { Partition, PartitionTable } from '../../image/partitions/partition.js'
import { readPartitionTable } from '../../image/partitions/read-table.js'
import { jsonWithoutHidden } from '../../hidden-characters.js'
import type { Logger } from '../../log.js'
import type { ReadableDisk } from '../scratch/readable-disk.js'

/** The most files that are added: a damaged image may have a thousand snapshots with 128 partitions each. */
const MAX_FILES = 65_536
const NAME_MAX_BYTES = 255
const SUFFIX = '.raw'

export interface ShownPartitions {
  readonly entries: readonly CatalogEntry[]
  /** The text of partitions.json. */
  readonly text: string
  /** Those of the disk and of the snapshots. */
  readonly tables: readonly ShownTable[]
}

/** The partition table of a disk as it is shown. Plain data. */
export interface ShownTable {
  /** The place of the disk in the catalog. */
  readonly place: number
  /** What partitions.json says of it. */
  readonly text: string
  /** Where on the disk the table may be. */
  readonly places: readonly TablePlace[]
}

/** Returns a disk of the catalog. Throws what opening its tables throws. */
type ReadableAt = (entry: CatalogEntry, place: number) => ReadableDisk

/** From `from` up to `to`, in bytes. */
export interface TablePlace {
  readonly from: number
  readonly to: number
}

/** How far from both ends of a disk a table may reach: the largest GPT that is read takes a little more than 1 MiB. */
const TABLE_REACH = 2 * 2 ** 20

/**
 * Returns the entries of a mount with those of the partitions of each disk, snapshot and layer, and the text of partitions.json.
 * It logs what it leaves out: damage of a table fails no mount. If a partition's name is that of another entry, the other one gets
 * `~ID` after it.
 */
export function withPartitions(
  entries: readonly CatalogEntry[],
  readableAt: ReadableAt,
  logger: Pick<Logger, 'warn'>,
): ShownPartitions {
  const tables = new Map<CatalogEntry, PartitionTable | undefined>()
  for (const [place, entry] of entries.entries()) {
    if (entry.kind !== 'vmstate') tables.set(entry, tableOf(entry, place, readableAt, logger))
  }
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
      const file = fileOf(shown, index, partition)
      if (added.length === MAX_FILES || Buffer.byteLength(file.name) > NAME_MAX_BYTES) {
        const why = added.length === MAX_FILES ? 'there are too many' : 'its name is too long'
        logger.warn(`partition ${partition.number} of ${shown.name} is not shown: ${why}`)
      } else added.push(file)
    }
  }
  const text = jsonWithoutHidden(JSON.stringify({ disks }, undefined, 4))
  const shownTables = entries.flatMap((entry, place) => {
    if (entry.kind !== 'disk' && entry.kind !== 'snapshot') return []
    const table = tables.get(entry)
    return { place, text: textOf(table), places: placesOf(entry.sizeBytes, table) }
  })
  return { entries: [...renamed, ...added], text: `${text}\n`, tables: shownTables }
}

/** Returns what `ShownTable.text` would be now. */
export function tableTextNow(entry: CatalogEntry, disk: ReadableDisk): string {
  return textOf(tableOf(entry, 0, () => disk, { warn: () => {} }))
}

const textOf = (table: PartitionTable | undefined): string =>
  JSON.stringify(table && listed('', table)) ?? ''

/**
 * Returns where the table of a disk may be: outside all partitions, and near the disk's ends. The chain of an MBR's logical
 * partitions may be anywhere between them.
 */
function placesOf(sizeBytes: number, table: PartitionTable | undefined): TablePlace[] {
  const all = { from: 0, to: Number.POSITIVE_INFINITY }
  const partitions = table?.partitions.toSorted((a, b) => a.start - b.start) ?? []
  const free: TablePlace[] = []
  let { from } = all
  for (const { start, size } of partitions) {
    if (start > from) free.push({ from, to: start })
    from = start + size
  }
  free.push({ from, to: all.to })
  if (table?.table === 'dos') return free
  const ends = [
    { from: 0, to: TABLE_REACH },
    { from: Math.max(0, sizeBytes - TABLE_REACH), to: all.to },
  ]
  return free.flatMap(place =>
    ends
      .map(end => ({ from: Math.max(end.from, place.from), to: Math.min(end.to, place.to) }))
      .filter(({ from, to }) => from < to),
  )
}

function tableOf(
  entry: CatalogEntry,
  place: number,
  readableAt: ReadableAt,
  logger: Pick<Logger, 'warn'>,
) {
  try {
    const table = readPartitionTable(readableAt(entry, place))
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

function fileOf(disk: CatalogEntry, whole: number, partition: Partition): CatalogEntry {
  const { number, start, size, type, label, uuid } = partition
  return {
    ...disk,
    name: nameOf(stemOf(disk), partition),
    kind: 'partition',
    startOffset: disk.startOffset + start,
    whole,
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
