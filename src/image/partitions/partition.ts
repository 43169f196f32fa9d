/** The content of a partition table. Places and sizes are in bytes. */

export interface Partition {
  /** As the kernel counts them: logical partitions of an MBR from 5 on. */
  readonly number: number
  readonly start: number
  readonly size: number
  /** MBR: the type byte, two hexadecimal digits. GPT: the type's GUID, in capitals. */
  readonly type: string
  /** The name in a GPT; undefined if it has none. */
  readonly label: string | undefined
  /** GPT: the partition's GUID. MBR: the disk's ID and the number, as in /dev/disk/by-partuuid. Undefined if the disk has no ID. */
  readonly uuid: string | undefined
}

export interface PartitionTable {
  /** The names that sfdisk gives them; undefined if the disk has no table. */
  readonly table: 'dos' | 'gpt' | undefined
  /** The unit that the table counts in, in bytes. */
  readonly sectorSize: 512 | 4096
  /** Ascending by number. */
  readonly partitions: readonly Partition[]
  /** A line for each thing that was left out, with the reason. */
  readonly warnings: readonly string[]
}

/** A disk that holds a table. Past its end it reads as zeros. */
export interface PartitionedDisk {
  readonly sizeBytes: number
  /** Throws ImageError, SystemError. */
  read(target: Buffer, start: number, length: number, offset: number): void
}

/** Returns a new buffer with `length` bytes of the disk from `offset` on. */
export function readBytes(disk: PartitionedDisk, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  disk.read(bytes, 0, length, offset)
  return bytes
}
