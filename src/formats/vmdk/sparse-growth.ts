/**
 * Makes a hosted sparse extent larger (VMware, Virtual Disk Format 5.0, "Hosted Sparse Extents"). New grain tables go to the end of
 * the file. A directory without room for them moves there, too. All of it is on the disk before the header, in one sector, says so.
 */
import type { WritableStore } from '../../io/store.js'
import { SECTOR_BYTES } from '../../sector.js'
import { fillZeros } from '../filling.js'
import { requireReach } from './create/extent.js'
import { FLAG, HEADER, tableBytes } from './sparse-header.js'

const ENTRY_BYTES = 4
/** Entries up to this one say that there is no grain, or that it is zeros. */
const LAST_NO_GRAIN = 1

type Header = ReturnType<typeof HEADER.decode>

/** Makes the extent hold `sizeBytes` bytes; the new part has no grains. Its tables are whole. Syncs it. */
export function growSparse(store: WritableStore, sizeBytes: number): void {
  const header = readHeader(store)
  clearTail(store, header)
  const { redundantDirectory, flags } = header
  const isDouble = (flags & FLAG.redundant) !== 0 && redundantDirectory > 0n
  const directory = growDirectory(store, header, Number(header.directory), sizeBytes)
  const redundant =
    isDouble && redundantDirectory !== header.directory
      ? growDirectory(store, header, Number(redundantDirectory), sizeBytes)
      : directory
  store.sync()
  writeHeader(store, {
    ...header,
    capacity: BigInt(sizeBytes / SECTOR_BYTES),
    directory: BigInt(directory),
    redundantDirectory: isDouble ? BigInt(redundant) : redundantDirectory,
  })
  store.sync()
}

/** Writes the capacity of an extent that becomes smaller. */
export function setCapacity(store: WritableStore, sizeBytes: number): void {
  writeHeader(store, { ...readHeader(store), capacity: BigInt(sizeBytes / SECTOR_BYTES) })
}

function readHeader(store: WritableStore): Header {
  const sector = Buffer.alloc(SECTOR_BYTES)
  store.read(sector, 0, SECTOR_BYTES, 0)
  return HEADER.decode(sector)
}

/** Changes the fields, and leaves the rest of the sector. */
function writeHeader(store: WritableStore, header: Header): void {
  const sector = Buffer.alloc(SECTOR_BYTES)
  store.read(sector, 0, SECTOR_BYTES, 0)
  HEADER.put(sector, 0, header)
  store.write(sector, 0, SECTOR_BYTES, 0)
}

const tablesFor = ({ grain, tableEntries }: Header, sectors: number): number =>
  Math.ceil(sectors / (Number(grain) * tableEntries))

/** Returns the sector of the directory, with the old tables and new ones. */
function growDirectory(
  store: WritableStore,
  header: Header,
  sector: number,
  sizeBytes: number,
): number {
  const before = tablesFor(header, Number(header.capacity))
  const after = tablesFor(header, sizeBytes / SECTOR_BYTES)
  if (after === before) return sector
  const bytes = tableBytes(header.tableEntries)
  const end = Math.ceil(store.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES
  const tablesEnd = end + (after - before) * bytes
  const added = Buffer.alloc((after - before) * ENTRY_BYTES)
  for (let i = 0; i < after - before; i++) {
    added.writeUInt32LE((end + i * bytes) / SECTOR_BYTES, i * ENTRY_BYTES)
  }
  const roomBytes = Math.ceil((before * ENTRY_BYTES) / SECTOR_BYTES) * SECTOR_BYTES
  if (after * ENTRY_BYTES <= roomBytes) {
    requireReach(store, tablesEnd)
    store.truncate(tablesEnd)
    store.write(added, 0, added.length, sector * SECTOR_BYTES + before * ENTRY_BYTES)
    return sector
  }
  const old = Buffer.alloc(before * ENTRY_BYTES)
  store.read(old, 0, old.length, sector * SECTOR_BYTES)
  const whole = Math.ceil((after * ENTRY_BYTES) / SECTOR_BYTES) * SECTOR_BYTES
  requireReach(store, tablesEnd + whole)
  store.write(Buffer.concat([old, added], whole), 0, whole, tablesEnd)
  return tablesEnd / SECTOR_BYTES
}

/** Zeroes what the last grain has past the end of the disk, which nobody could read so far. */
function clearTail(store: WritableStore, header: Header): void {
  const grainSectors = Number(header.grain)
  const within = Number(header.capacity) % grainSectors
  if (within === 0) return
  const grain = Math.floor(Number(header.capacity) / grainSectors)
  const table = readEntry(store, Number(header.directory), Math.floor(grain / header.tableEntries))
  const place = table === 0 ? 0 : readEntry(store, table, grain % header.tableEntries)
  if (place <= LAST_NO_GRAIN) return
  fillZeros(store, (place + within) * SECTOR_BYTES, (grainSectors - within) * SECTOR_BYTES)
}

function readEntry(store: WritableStore, sector: number, index: number): number {
  const entry = Buffer.alloc(ENTRY_BYTES)
  store.read(entry, 0, ENTRY_BYTES, sector * SECTOR_BYTES + index * ENTRY_BYTES)
  return entry.readUInt32LE(0)
}
