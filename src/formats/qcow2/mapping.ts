/** What `map` shows of qcow2 besides data, zeros and what is unallocated. */
import type { Store } from '../../io/store.js'
import type { Kept, Mapping } from '../mapping.js'
import { getCount } from './refcount-bits.js'
import type { Qcow2Driver } from './driver.js'
import { CRYPT, clusterBytes, type Qcow2Header } from './header.js'
import { blockOffset, COMPRESSED, hostOffset, readWords, wordBuffer } from './words.js'

/** How much of a refcount block is read at once, in bytes. */
const COUNTS_BYTES = 64 * 1024

export class Qcow2Mapping implements Mapping {
  private isPreallocated: boolean | undefined

  /** @param takenBytes the space that the image's own file takes */
  constructor(
    private readonly header: Qcow2Header,
    private readonly driver: Qcow2Driver,
    private readonly store: Store,
    private readonly takenBytes: number,
  ) {}

  holesAt(): 'both' | undefined {
    this.isPreallocated ??= isPreallocated(this.header, this.store, this.takenBytes)
    return this.isPreallocated ? 'both' : undefined
  }

  keptAt(offset: number, length: number, isZero: boolean): Kept {
    const { coverage, unitBytes, entryBytes, sliceBytes, extended } = this.driver
    const isEncrypted = this.header.cryptMethod !== CRYPT.none
    // In a standard entry the host offset itself says that a cluster is allocated.
    if (isEncrypted || (!isZero && !extended)) return { at: undefined, length }
    const index = Math.floor(offset / coverage)
    const inTable = offset - index * coverage
    const table = this.driver.l2Table(index)
    if (table === 0) return { at: undefined, length: Math.min(length, coverage - inTable) }
    const entryAt = Math.floor(inTable / unitBytes) * entryBytes
    const inSlice = entryAt % sliceBytes
    const slice = this.driver.slice(table + entryAt - inSlice)
    const inCluster = offset % unitBytes
    const host = keptHost(slice, inSlice)
    // Neighbours are joined where the places are printed, so clusters come one by one.
    const whole = extended ? unitBytes : this.sameHost(slice, inSlice, host)
    const bytes = Math.min(length, whole - inCluster)
    return { at: host === 0 ? undefined : host + inCluster, length: bytes }
  }

  /** Returns how many bytes the entries of the slice map from `at` on that keep no space, like the first; one cluster else. */
  private sameHost(slice: Buffer, at: number, host: number): number {
    const { unitBytes, entryBytes } = this.driver
    let bytes = unitBytes
    if (host !== 0) return bytes
    for (let next = at + entryBytes; next < slice.length; next += entryBytes) {
      if (keptHost(slice, next) !== 0) break
      bytes += unitBytes
    }
    return bytes
  }
}

/** Returns the host offset in an L2 entry; 0 if it has none. */
function keptHost(slice: Buffer, at: number): number {
  const high = slice.readUInt32BE(at)
  return high & COMPRESSED ? 0 : hostOffset(high, slice.readUInt32BE(at + 4))
}

/**
 * Reports whether QEMU takes the image for preallocated: clearly more clusters are counted than its file has space for, so
 * holes of the file are worth a look.
 */
function isPreallocated(header: Qcow2Header, store: Store, takenBytes: number): boolean {
  const cluster = clusterBytes(header)
  const taken = Math.floor(takenBytes / cluster)
  const threshold = Math.max(Math.floor((taken * 10) / 9), taken + 2)
  const clusters = Math.ceil(store.sizeBytes / cluster)
  if (clusters < threshold) return false
  let counted = 0
  for (const inBlock of countsOf(header, store, clusters)) {
    counted += inBlock
    if (counted >= threshold) return true
  }
  return false
}

/** Yields how many clusters are counted, for parts of the file, up to its cluster `clusters`. */
function* countsOf(header: Qcow2Header, store: Store, clusters: number): Generator<number> {
  const { refcountTableOffset, refcountTableClusters, refcountOrder } = header
  const cluster = clusterBytes(header)
  const perBlock = (cluster * 8) / 2 ** refcountOrder
  const entries = Math.min(Math.ceil(clusters / perBlock), (refcountTableClusters * cluster) / 8)
  const words = wordBuffer(cluster)
  const bytes = Buffer.allocUnsafe(Math.min(COUNTS_BYTES, cluster))
  for (let first = 0; first < entries; first += cluster / 8) {
    const table = readWords(store, words, cluster, refcountTableOffset + first * 8)
    for (let i = 0; i < cluster / 8 && first + i < entries; i++) {
      const block = blockOffset(table[i * 2] as number, table[i * 2 + 1] as number)
      if (block === 0 || block >= store.sizeBytes) continue
      const here = Math.min(perBlock, clusters - (first + i) * perBlock)
      for (let at = 0; at < cluster; at += bytes.length) {
        const perPart = (bytes.length * 8) / 2 ** refcountOrder
        const counts = Math.min(perPart, here - (at / bytes.length) * perPart)
        if (counts <= 0) break
        const got = store.read(bytes, 0, bytes.length, block + at)
        bytes.fill(0, got)
        let used = 0
        for (let each = 0; each < counts; each++) {
          if (getCount(bytes, each, refcountOrder) !== 0) used++
        }
        yield used
      }
    }
  }
}
