/** Tells which threads of this process are alive, so that a waiting thread can tell a slow one from a dead one. */
import fs from 'node:fs'

/** Returns the kernel's id of the calling thread (proc(5), thread-self); 0 if that is not known. */
export function currentThread(): number {
  try {
    return Number(fs.readlinkSync('/proc/thread-self').split('/').at(-1))
  } catch {
    return 0
  }
}

/** Returns false only if the thread has ended for which `currentThread` returned `id`. */
export const isThreadAlive = (id: number): boolean =>
  id === 0 || fs.existsSync(`/proc/self/task/${id}`)
