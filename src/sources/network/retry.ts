/** Tries again what the network did not do, with growing pauses. */
import { setTimeout as sleep } from 'node:timers/promises'
import { FetchError } from './range-source.js'

const FIRST_PAUSE_MS = 200
const LONGEST_PAUSE_MS = 10_000

export interface Patience {
  /** How long there may be no progress. */
  readonly timeoutMs: number
  /** Whether nothing is tried again. */
  readonly isOnce?: boolean
  readonly signal: AbortSignal
  /** Told of each failure that is followed by another try. */
  readonly onRetry?: (error: FetchError) => void
}

/**
 * Calls `attempt` until it succeeds. Rejects with the last FetchError when nothing has come for the time of `patience`, or
 * when trying again is of no use.
 * @param attempt is given a signal that ends it, and a function to call for each progress
 */
export async function withRetries<T>(
  attempt: (signal: AbortSignal, onProgress: () => void) => Promise<T>,
  { timeoutMs, isOnce, signal, onRetry }: Patience,
): Promise<T> {
  let deadline = Date.now() + timeoutMs
  let pauseMs = FIRST_PAUSE_MS
  for (;;) {
    const ending = new AbortController()
    const onEnd = () => ending.abort()
    signal.addEventListener('abort', onEnd)
    let timer = setTimeout(onEnd, deadline - Date.now())
    const onProgress = () => {
      pauseMs = FIRST_PAUSE_MS
      deadline = Date.now() + timeoutMs
      clearTimeout(timer)
      timer = setTimeout(onEnd, timeoutMs)
    }
    try {
      return await attempt(ending.signal, onProgress)
    } catch (error) {
      if (!(error instanceof FetchError) || error.problem !== 'later' || signal.aborted || isOnce)
        throw error
      const wait = Math.max(pauseMs, error.pauseMs)
      if (Date.now() + wait >= deadline) throw error
      onRetry?.(error)
      await sleep(wait, undefined, { signal, ref: false }).catch(() => {
        throw error
      })
      pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)
    } finally {
      clearTimeout(timer)
      signal.removeEventListener('abort', onEnd)
    }
  }
}
