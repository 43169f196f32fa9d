/** fast-check, bounded in time; a failure prints its seed and the smallest case. */
import fc from 'fast-check'

/** How many times the seconds of a test, in a long one. */
const LONG = process.env.VIMGFS_TEST_LONG === '1' ? 30 : 1
/** More than fit into the time: it is the time that ends a run. */
const NUM_RUNS = 100_000 * LONG
const MIN_LEFT_MS = 500

const SEED = process.env.FC_SEED === undefined ? {} : { seed: Number(process.env.FC_SEED) }

interface Limits {
  readonly seconds: number
  /** At least so many, however busy the machine is. */
  readonly runs: number
}

/** Checks `predicate` for as many values as fit in the time; resolves to how many. */
export async function holds<T>(
  values: fc.Arbitrary<T>,
  limits: number | Limits,
  predicate: (value: T) => Promise<void> | void,
): Promise<number> {
  const { seconds, runs: fewest } =
    typeof limits === 'number' ? { seconds: limits, runs: 0 } : limits
  const end = performance.now() + seconds * LONG * 1000
  let runs = 0
  const property = fc.asyncProperty(values, async value => {
    runs++
    await predicate(value)
  })
  if (fewest > 0) await fc.assert(property, { ...SEED, endOnFailure: false, numRuns: fewest })
  const left = end - performance.now()
  // One that is interrupted before its first run has failed.
  if (left < MIN_LEFT_MS) return runs
  await fc.assert(property, {
    ...SEED,
    endOnFailure: false,
    numRuns: NUM_RUNS,
    interruptAfterTimeLimit: left,
    // A run that found nothing until then has passed.
    markInterruptAsFailure: false,
  } as fc.Parameters<[T]>)
  return runs
}
