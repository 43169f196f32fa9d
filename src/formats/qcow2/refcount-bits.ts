/**
 * Reference counts in a block (QEMU docs/interop/qcow2.rst, "Reference counts"): each has 2^order bits, 1 to 64.
 */
import type { Store, WritableStore } from '../../io/store.js'
import { clusterBytes, type Qcow2Header } from './header.js'
import { blockOffset } from './words.js'

/** Returns count number `index` of a slice. Counts of less than 8 bits begin with a byte's lowest bits. */
export function getCount(slice: Buffer, index: number, order: number): number {
  switch (order) {
    case 4:
      return ((slice[index * 2] as number) << 8) | (slice[index * 2 + 1] as number)
    case 3:
      return slice[index] as number
    case 5:
      return slice.readUInt32BE(index * 4)
    case 6:
      return slice.readUInt32BE(index * 8) * 2 ** 32 + slice.readUInt32BE(index * 8 + 4)
    default: {
      const bits = 1 << order
      const perByte = 8 / bits
      const byte = slice[Math.floor(index / perByte)] as number
      return (byte >> ((index % perByte) * bits)) & ((1 << bits) - 1)
    }
  }
}

/** Sets count number `index` of a slice. `count` must fit. */
export function setCount(slice: Buffer, index: number, order: number, count: number): void {
  switch (order) {
    case 4:
      slice[index * 2] = count >>> 8
      slice[index * 2 + 1] = count & 0xff
      return
    case 3:
      slice[index] = count
      return
    case 5:
      slice.writeUInt32BE(count, index * 4)
      return
    case 6:
      slice.writeUInt32BE(Math.floor(count / 2 ** 32), index * 8)
      slice.writeUInt32BE(count % 2 ** 32, index * 8 + 4)
      return
    default: {
      const bits = 1 << order
      const perByte = 8 / bits
      const at = Math.floor(index / perByte)
      const shift = (index % perByte) * bits
      const mask = ((1 << bits) - 1) << shift
      slice[at] = ((slice[at] as number) & ~mask) | (count << shift)
    }
  }
}

/** Reads the count of a cluster from the file; 0 if there is no block. Meant for a few clusters. */
export function readCount(store: Store, header: Qcow2Header, cluster: number): number {
  const place = placeOf(store, header, cluster)
  return place ? getCount(place.counts, place.index, header.refcountOrder) : 0
}

/** Sets the count of a cluster in the file to 0, if there is a block. Meant for a few clusters. Does not sync. */
export function clearCount(store: WritableStore, header: Qcow2Header, cluster: number): void {
  const place = placeOf(store, header, cluster)
  if (!place) return
  setCount(place.counts, place.index, header.refcountOrder, 0)
  store.write(place.counts, 0, place.counts.length, place.at)
}

/** Returns eight counts with that of a cluster among them, so that counts of less than a byte come with their whole byte. */
function placeOf(store: Store, header: Qcow2Header, cluster: number) {
  const { refcountTableOffset, refcountTableClusters, refcountOrder } = header
  const perBlock = (clusterBytes(header) * 8) / 2 ** refcountOrder
  const index = Math.floor(cluster / perBlock)
  if (index * 8 >= refcountTableClusters * clusterBytes(header)) return undefined
  const entry = Buffer.alloc(8)
  store.read(entry, 0, 8, refcountTableOffset + index * 8)
  const block = blockOffset(entry.readUInt32BE(0), entry.readUInt32BE(4))
  if (block === 0 || !Number.isSafeInteger(block)) return undefined
  const counts = Buffer.alloc(2 ** refcountOrder)
  const inBlock = cluster % perBlock
  const at = block + Math.floor(inBlock / 8) * counts.length
  store.read(counts, 0, counts.length, at)
  return { counts, at, index: inBlock % 8 }
}

/** Returns the index of the first count that is 0, from `from` on and below `counts`; -1 if there is none. */
export function zeroCount(slice: Buffer, from: number, counts: number, order: number): number {
  // A zero reads the same in any byte order.
  const words =
    order === 4
      ? new Uint16Array(slice.buffer, slice.byteOffset, counts)
      : order === 3
        ? slice
        : undefined
  if (words) return words.indexOf(0, from)
  for (let i = from; i < counts; i++) if (getCount(slice, i, order) === 0) return i
  return -1
}
