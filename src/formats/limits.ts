/**
 * What an image may demand. Every size that a file dictates is compared with one of these before
 * anything is allocated or walked by its word; the values are QEMU's where it has one.
 */

/** Layers of one backing chain, unless told otherwise; and what --max-chain may raise it to. */
export const MAX_CHAIN_DEPTH = { default: 200, highest: 500 }
/** Cluster sizes of qcow2, as powers of two: 512 bytes to 2 MiB. */
export const MIN_CLUSTER_BITS = 9
export const MAX_CLUSTER_BITS = 21
/** Bytes of an L1 table. */
export const MAX_L1_BYTES = 32 * 2 ** 20
/** Bytes of a refcount table. */
export const MAX_REFCOUNT_TABLE_BYTES = 8 * 2 ** 20
export const MAX_SNAPSHOTS = 65536
/** Bytes of the whole snapshot table, names included. */
export const MAX_SNAPSHOT_TABLE_BYTES = 64 * 2 ** 20
/** Bytes of the extra data of one snapshot. */
export const MAX_SNAPSHOT_EXTRA_BYTES = 1024
/** Bytes of a backing file's name. */
export const MAX_BACKING_NAME_BYTES = 1023
/** Bytes of the bitmap directory. */
export const MAX_BITMAP_DIRECTORY_BYTES = 1024 * 65535
export const MAX_BITMAPS = 65535
/** Bytes of the bits of all bitmaps that a mount keeps, the room to grow included. */
export const MAX_BITMAP_BYTES = 256 * 2 ** 20
