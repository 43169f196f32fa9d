import type { PartitionTable } from './partition.js'

/** Returns what `info --partitions` and partitions.json say of a disk, as plain data for JSON. */
export const listed = (file: string, { table, sectorSize, partitions }: PartitionTable) => ({
  file,
  table: table ?? null,
  sectorSize,
  partitions: partitions.map(({ label, uuid, ...rest }) => ({
    ...rest,
    label: label ?? null,
    uuid: uuid ?? null,
  })),
})
