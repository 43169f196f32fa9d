/** Waiting for something that another process or thread brings about. */
import { setTimeout as sleep } from 'node:timers/promises'

/** Only ends what hangs: no test expects anything sooner. */
const PATIENCE_MS = 180_000
const POLL_MS = 40

/** Waits until `isTrue`; gives up after minutes, when what should make it true must be hanging. */
export async function until(isTrue: () => boolean | Promise<boolean>): Promise<boolean> {
  const end = performance.now() + PATIENCE_MS
  do {
    if (await isTrue()) return true
    await sleep(POLL_MS)
  } while (performance.now() < end)
  return isTrue()
}
