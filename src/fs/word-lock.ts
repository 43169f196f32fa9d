/** A lock in a word of shared memory, 0 while nobody holds it. */

/** Runs `act` while no other thread holds the lock at `index`. Waits as long as it takes. */
export function withLock<T>(words: Int32Array, index: number, act: () => T): T {
  while (Atomics.compareExchange(words, index, 0, 1) !== 0) Atomics.wait(words, index, 1)
  try {
    return act()
  } finally {
    Atomics.store(words, index, 0)
    Atomics.notify(words, index, 1)
  }
}
