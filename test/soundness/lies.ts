/** Images whose counts lie: live metadata that a writer who believes them takes for free space. */
import type { MemoryStore } from '../support/stores.js'

export interface Structure {
  readonly name: string
  /** In bytes. */
  readonly at: number
}

const OFFSET_MASK = 0x00fffffffffffe00n
const BITMAPS_EXTENSION = 0x23852875

/** Where the metadata of an image is: one of each kind of structure, and a few L2 tables. */
export function structuresOf(image: Buffer): Structure[] {
  const u64 = (at: number) => Number(image.readBigUInt64BE(at) & OFFSET_MASK)
  const l1At = u64(40)
  const tableAt = u64(48)
  const found: Structure[] = [
    { name: 'the header', at: 0 },
    { name: 'the L1 table', at: l1At },
    { name: 'the refcount table', at: tableAt },
    { name: 'a refcount block', at: u64(tableAt) },
  ]
  const l2 = (l1: number, entries: number) =>
    Array.from({ length: entries }, (_, i) => u64(l1 + i * 8)).filter(at => at !== 0)
  for (const at of l2(l1At, image.readUInt32BE(36)).slice(0, 3))
    found.push({ name: 'an L2 table', at })
  if (image.readUInt32BE(60) > 0) {
    const entryAt = u64(64)
    const snapshotL1 = u64(entryAt)
    found.push({ name: 'the snapshot table', at: entryAt })
    found.push({ name: 'the L1 table of a snapshot', at: snapshotL1 })
    for (const at of l2(snapshotL1, image.readUInt32BE(entryAt + 8)).slice(0, 2)) {
      found.push({ name: 'an L2 table of a snapshot', at })
    }
  }
  for (let at = image.readUInt32BE(100); image.readUInt32BE(at) !== 0; ) {
    const length = image.readUInt32BE(at + 4)
    if (image.readUInt32BE(at) === BITMAPS_EXTENSION) {
      const directory = u64(at + 24)
      const bitmapTable = u64(directory)
      found.push({ name: 'the bitmap directory', at: directory })
      found.push({ name: 'the table of a bitmap', at: bitmapTable })
      if (u64(bitmapTable) !== 0) found.push({ name: 'the bits of a bitmap', at: u64(bitmapTable) })
    }
    at += 8 + Math.ceil(length / 8) * 8
  }
  return found
}

/** The image with the count of the cluster at `at` set to 0; counts have 16 bits. */
export function uncounted(store: MemoryStore, at: number): MemoryStore {
  const image = store.bytes()
  const clusterBits = image.readUInt32BE(20)
  const cluster = at / 2 ** clusterBits
  const perBlock = 2 ** clusterBits / 2
  const tableAt = Number(image.readBigUInt64BE(48))
  const block = Number(image.readBigUInt64BE(tableAt + Math.floor(cluster / perBlock) * 8))
  const lie = store.clone()
  lie.write(Buffer.alloc(2), 0, 2, block + (cluster % perBlock) * 2)
  return lie
}

/** The image with the entry of a guest cluster, which an L2 table maps, naming another place. */
export function misled(
  store: MemoryStore,
  guest: number,
  at: number,
  isCopied: boolean,
): MemoryStore | undefined {
  const image = store.bytes()
  const cluster = 2 ** image.readUInt32BE(20)
  const entries = cluster / 8
  const l1At = Number(image.readBigUInt64BE(40) & OFFSET_MASK)
  const l1Entry = l1At + Math.floor(guest / entries) * 8
  const l2At = Number(image.readBigUInt64BE(l1Entry) & OFFSET_MASK)
  if (l2At === 0) return undefined
  const entry = Buffer.alloc(8)
  entry.writeBigUInt64BE(BigInt(at) | (isCopied ? 1n << 63n : 0n))
  const lie = store.clone()
  lie.write(entry, 0, 8, l2At + (guest % entries) * 8)
  return lie
}
