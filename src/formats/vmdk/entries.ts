/**
 * The entries of the directories and tables of hosted sparse and COWD extents: u32, little-endian. An entry is the number of a
 * sector of the file, or one of the values here.
 */
export const ENTRY_BYTES = 4

/** The entry names nothing. */
export const UNALLOCATED = 0
/** The grain is zeros, if the extent's header allows that; see GrainLayout.hasZeroGrains. */
export const ZERO = 1

/** Returns the highest entry of a grain table that has a meaning without naming a grain. */
export const noGrainMax = ({ hasZeroGrains }: { readonly hasZeroGrains: boolean }): number =>
  hasZeroGrains ? ZERO : UNALLOCATED

/** The order in which a flush writes changed slices: headers, with the data, and then the tables that name it. */
export const STAGE = { headers: 0, entries: 1 } as const
