/**
 * The entries of a seSparse extent's directory and tables (QEMU block/vmdk.c): u64, little-endian, as two 32-bit halves. All 64
 * bits are 0 if nothing is named.
 */
export const SESPARSE_ENTRY_BYTES = 8

/** The high half of a directory entry that names a table. The low half is the index of the table. */
export const TABLE_IS_HERE = 0x1000_0000

/** The top 4 bits of a grain table entry. */
export const GRAIN = { unmapped: 1, zero: 2, data: 3 }

/** Returns those bits. */
export const grainKind = (high: number): number => high >>> 28

/**
 * Returns the index of the grain that a table entry names. The 12 bits below the top 4 are its low bits; the other 48 are its
 * high bits. An index above 2^53 is rounded; it lies past the end of any file.
 */
export const grainIndex = (high: number, low: number): number =>
  ((high & 0xffff) * 2 ** 32 + low) * 2 ** 12 + ((high >>> 16) & 0xfff)

/** Returns an entry as 16 hexadecimal digits, for messages. */
export const hexEntry = (high: number, low: number): string =>
  high.toString(16).padStart(8, '0') + low.toString(16).padStart(8, '0')
