/**
 * Reference counts in a block (QEMU docs/interop/qcow2.rst, "Reference counts"): each has 2^order bits, 1 to 64.
 */

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
      slice.writeUInt16BE(count, index * 2)
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
