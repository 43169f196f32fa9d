/**
 * Limits for images. Every size that a file gives is compared with one of these before it is used to allocate or to walk. The
 * values are QEMU's where it has one.
 */

/** The most layers of a backing chain: by default, and with --max-chain. */
export const MAX_CHAIN_DEPTH = { default: 200, highest: 500 }
/** The most layers of a chain and of all branches of snapshots: the cache of tables can tell so many apart. */
export const MAX_LAYERS = 512
/** After so many snapshots of a VM whose disks cannot be opened, the rest is skipped. */
export const MAX_REFUSED_SNAPSHOTS = 16
/** Cluster sizes of qcow2, as powers of two: 512 bytes to 2 MiB. */
export const MIN_CLUSTER_BITS = 9
export const MAX_CLUSTER_BITS = 21
/** Bytes of an L1 table. */
export const MAX_L1_BYTES = 32 * 2 ** 20
/** Bytes of a refcount table. */
export const MAX_REFCOUNT_TABLE_BYTES = 8 * 2 ** 20
export const MAX_SNAPSHOTS = 65536
/** Bytes of the LUKS header of a qcow2 image, key slots included: QEMU's take 2 MiB. */
export const MAX_LUKS_HEADER_BYTES = 16 * 2 ** 20
/** Bytes of the whole snapshot table, names included. */
export const MAX_SNAPSHOT_TABLE_BYTES = 64 * 2 ** 20
/** Bytes of the extra data of one snapshot. */
export const MAX_SNAPSHOT_EXTRA_BYTES = 1024
/** Bytes of the name of a new snapshot: QEMU reads no more. */
export const MAX_NEW_SNAPSHOT_NAME_BYTES = 255
/** Bytes of a backing file's name. */
export const MAX_BACKING_NAME_BYTES = 1023
/** Bytes of the bitmap directory. */
export const MAX_BITMAP_DIRECTORY_BYTES = 1024 * 65535
export const MAX_BITMAPS = 65535
/** Bytes of the clusters that one bitmap's table can name, as in QEMU (block/qcow2-bitmap.c). */
export const MAX_BITMAP_CLUSTERS_BYTES = 512 * 2 ** 20
/** Entries of the tables of all bitmaps together. */
export const MAX_BITMAP_TABLE_ENTRIES = 2 ** 22
/** Bytes of the bits of all bitmaps that a mount keeps, the room to grow included. */
export const MAX_BITMAP_BYTES = 256 * 2 ** 20
/** Grain sizes of VMDK, in sectors: up to 1 GiB. */
export const MAX_GRAIN_SECTORS = 0x200000
/** Bytes of a grain that is compressed: it is made in memory. VMware's programs go up to 64 KiB. */
export const MAX_PACKED_GRAIN_BYTES = 2 * 2 ** 20
/** Entries of a grain table. */
export const MAX_GRAIN_TABLE_ENTRIES = 512
/** Bytes of a grain directory, read once when it is opened: 256 TiB of usual grains. */
export const MAX_GRAIN_DIRECTORY_BYTES = 32 * 2 ** 20

/** The most snapshots of lower layers that are shown, all together. */
export const MAX_LAYER_SNAPSHOTS = 4096

// Limits for VMware's text files.
/** Bytes of a descriptor. */
export const MAX_VMDK_DESCRIPTOR_BYTES = 2 ** 20
/** Characters of one line of a descriptor. */
export const MAX_DESCRIPTOR_LINE_LENGTH = 16 * 1024
/** Extent lines of a descriptor: 16 TiB in files of 2 GiB. */
export const MAX_EXTENT_LINES = 8192
/** `ddb.` lines of a descriptor. */
export const MAX_DDB_ENTRIES = 4096
/** Bytes of a file's name in UTF-8, folders included: Linux takes no more. */
export const MAX_FILE_NAME_BYTES = 4095
/** Bytes of a .vmsd file, and of a .vmx file. */
export const MAX_VMSD_BYTES = 2 * 2 ** 20
export const MAX_VMX_BYTES = 2 ** 20
/** Snapshots of a .vmsd file that are read. */
export const MAX_VMSD_SNAPSHOTS = 4096
/** Disks of one snapshot, and of a .vmx file, that are read. */
export const MAX_VM_DISKS = 1024
/** Characters of a snapshot's name and description that are kept. */
export const MAX_SNAPSHOT_NAME_LENGTH = 1024
export const MAX_SNAPSHOT_DESCRIPTION_LENGTH = 64 * 1024

/** Sectors of a grain of a COWD extent; a power of two. */
export const MAX_COWD_GRAIN_SECTORS = 128
/** Entries of the grain directory of a COWD or a seSparse extent. */
export const MAX_GRAIN_DIRECTORY_ENTRIES = 32 * 2 ** 20
