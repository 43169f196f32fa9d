/**
 * fast-check with a fixed seed and a fixed number of tries, so that a run does not depend on luck or on how busy
 * the machine is. A long test (VIMGFS_TEST_LONG) takes a fresh seed and tries more often. A failure prints the
 * seed, which FC_SEED repeats, and the smallest case.
 */
import fc from 'fast-check'

const IS_LONG = process.env.VIMGFS_TEST_LONG === '1'
/** The factor for the number of tries in a long test. */
const LONG = 30
const SEED = 20260101

/** Returns the seed of this run; undefined lets fast-check choose one. */
function seedOf(): { seed?: number } {
  const given = process.env.FC_SEED
  if (given !== undefined) return { seed: Number(given) }
  return IS_LONG ? {} : { seed: SEED }
}

/** Checks `predicate` for `tries` values, or more in a long test. Resolves to their number. */
export async function holds<T>(
  values: fc.Arbitrary<T>,
  tries: number,
  predicate: (value: T) => Promise<void> | void,
): Promise<number> {
  const numRuns = IS_LONG ? tries * LONG : tries
  const property = fc.asyncProperty(values, async value => predicate(value))
  await fc.assert(property, { ...seedOf(), endOnFailure: false, numRuns } as fc.Parameters<[T]>)
  return numRuns
}
