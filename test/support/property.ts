/** fast-check, bounded in time; a failure prints its seed and the smallest case. */
import fc from 'fast-check'

/** More than fit into the time: it is the time that ends a run. */
const NUM_RUNS = 100_000

const parameters = (seconds: number): fc.Parameters<unknown> => ({
  numRuns: NUM_RUNS,
  interruptAfterTimeLimit: seconds * 1000,
  // A run that found nothing until then has passed.
  markInterruptAsFailure: false,
  endOnFailure: false,
  ...(process.env.FC_SEED !== undefined && { seed: Number(process.env.FC_SEED) }),
})

/** Checks `predicate` for as many values as fit in `seconds`; resolves to how many. */
export async function holds<T>(
  values: fc.Arbitrary<T>,
  seconds: number,
  predicate: (value: T) => Promise<void> | void,
): Promise<number> {
  let runs = 0
  const property = fc.asyncProperty(values, async value => {
    runs++
    await predicate(value)
  })
  await fc.assert(property, parameters(seconds) as fc.Parameters<[T]>)
  return runs
}
