/** Which threads of this process are alive: who waits for another one can tell a slow one from a dead one. */
import fs from 'node:fs'

/** The kernel's id of the calling thread (proc(5), thread-self); 0 where it cannot be had. */
export function currentThread(): number {
  try {
    return Number(fs.readlinkSync('/proc/thread-self').split('/').at(-1))
  } catch {
    return 0
  }
}

/** False only for a thread that has ended; `id` is what `currentThread` returned there. */
export const isThreadAlive = (id: number): boolean =>
  id === 0 || fs.existsSync(`/proc/self/task/${id}`)
