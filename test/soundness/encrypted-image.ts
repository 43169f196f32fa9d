/** The clusters of a qcow2 image encrypted, or decrypted, in its files: by what its tables say alone. */
import type { MemoryStore } from '../support/stores.js'
import { decrypted, type Encryption, encrypted } from './reference-cipher.js'

const SECTOR = 512
const OFFSET_MASK = 0x00fffffffffffe00n
const COMPRESSED = 1n << 62n
const COPIED = 1n << 63n
const EXTERNAL = 4n
const EXTENDED = 16n

/** Copies of an image, and of its data file where it has one, whose clusters are encrypted. */
export const encryptedFiles = (how: Encryption, files: readonly MemoryStore[]): MemoryStore[] =>
  translated(files, how, encrypted)

/** The other way round. What a file ends within is decrypted as if zeros stood there. */
export const decryptedFiles = (how: Encryption, files: readonly MemoryStore[]): MemoryStore[] =>
  translated(files, how, decrypted)

function translated(
  files: readonly MemoryStore[],
  how: Encryption,
  translate: typeof encrypted,
): MemoryStore[] {
  const copies = files.map(file => file.clone())
  const image = (copies[0] as MemoryStore).bytes()
  const data = copies.at(-1) as MemoryStore
  const cluster = Buffer.alloc(2 ** image.readUInt32BE(20))
  for (const [host, guest] of clustersOf(image)) {
    cluster.fill(0)
    data.read(cluster, 0, cluster.length, host)
    const first = (how.countsBy === 'disk' ? guest : host) / SECTOR
    data.write(translate(how, cluster, first), 0, cluster.length, host)
  }
  return copies
}

/** Where each cluster that is not compressed is in its file, and on the disk; of the disk and its snapshots. */
function clustersOf(image: Buffer): Map<number, number> {
  const found = new Map<number, number>()
  const cluster = 2 ** image.readUInt32BE(20)
  const features = image.readUInt32BE(4) === 2 ? 0n : image.readBigUInt64BE(72)
  const entryBytes = features & EXTENDED ? 16 : 8
  const l2Entries = cluster / entryBytes
  for (const { at, entries } of l1Tables(image)) {
    for (let l1 = 0; l1 < entries; l1++) {
      const table = Number(image.readBigUInt64BE(at + l1 * 8) & OFFSET_MASK)
      if (table === 0) continue
      for (let i = 0; i < l2Entries; i++) {
        const entry = image.readBigUInt64BE(table + i * entryBytes)
        if (entry & COMPRESSED) continue
        const host = Number(entry & OFFSET_MASK)
        // In a data file a cluster may lie at 0.
        if (host === 0 && !(features & EXTERNAL && entry & COPIED)) continue
        found.set(host, (l1 * l2Entries + i) * cluster)
      }
    }
  }
  return found
}

function l1Tables(image: Buffer): { at: number; entries: number }[] {
  const tables = [{ at: Number(image.readBigUInt64BE(40)), entries: image.readUInt32BE(36) }]
  let at = Number(image.readBigUInt64BE(64))
  for (let i = 0; i < image.readUInt32BE(60); i++) {
    tables.push({ at: Number(image.readBigUInt64BE(at)), entries: image.readUInt32BE(at + 8) })
    const bytes =
      40 + image.readUInt32BE(at + 36) + image.readUInt16BE(at + 12) + image.readUInt16BE(at + 14)
    at += Math.ceil(bytes / 8) * 8
  }
  return tables
}
