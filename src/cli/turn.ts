import { setImmediate as nextTurn } from 'node:timers/promises'

const EVERY_MS = 50

/**
 * Returns a function for long work that calls `report` and now and then gives signals and timers a turn of the event loop.
 */
export function turn<T extends unknown[]>(
  report: (...args: T) => void,
): (...args: T) => Promise<void> {
  let last = performance.now()
  return async (...args) => {
    report(...args)
    const now = performance.now()
    if (now - last < EVERY_MS) return
    last = now
    await nextTurn()
  }
}
