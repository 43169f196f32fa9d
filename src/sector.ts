/** The unit in which most formats, and block devices, count places: bytes. */
export const SECTOR_BYTES = 512
