/** A lock in a word of shared memory; 0 means free. */

/** Runs `act` with the lock at `index` held. Waits for it as long as needed. */
export function withLock<T>(words: Int32Array, index: number, act: () => T): T {
  while (Atomics.compareExchange(words, index, 0, 1) !== 0) Atomics.wait(words, index, 1)
  try {
    return act()
  } finally {
    Atomics.store(words, index, 0)
    Atomics.notify(words, index, 1)
  }
}
