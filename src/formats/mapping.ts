/** What `map` shows of a layer besides what `lookup` says; as QEMU shows it. */

export interface Mapping {
  /**
   * Returns how a hole of the file is shown that lies under data at `offset`: as `zero`, without data; as `both`, zeros and
   * data; undefined if holes are not looked for.
   */
  holesAt(offset: number): 'zero' | 'both' | undefined
  /**
   * Returns the space that the image keeps at `offset`, though it reads nothing from there; for at most `length` bytes.
   * @param isZero whether `lookup` says that they are zeros; if not, they are unallocated
   */
  keptAt(offset: number, length: number, isZero: boolean): Kept
}

export interface Kept {
  /** The place in the data file; undefined if there is no space. */
  readonly at: number | undefined
  readonly length: number
}

/** Of formats that keep no such space. */
export const mappingWithHoles = (holesAt: Mapping['holesAt']): Mapping => ({
  holesAt,
  keptAt: (_, length) => ({ at: undefined, length }),
})

/** Of most formats. */
export const PLAIN_MAPPING = mappingWithHoles(() => undefined)
