/** The work that can run in a thread of its own, and the messages of that thread. */
import { runCheck } from './check-run.js'
import { layOut } from '../layout/lay-out.js'
import type { SentError } from '../sent-error.js'
import { changeSnapshots } from '../snapshots/snapshot-change.js'
import { usageOf } from '../usage.js'

/** Each takes plain data, and options with `progress`. */
export const TASKS = {
  check: runCheck,
  snapshots: changeSnapshots,
  usage: usageOf,
  layout: layOut,
}

export type TaskName = keyof typeof TASKS
export type SetupOf<N extends TaskName> = Parameters<(typeof TASKS)[N]>[0]
export type ResultOf<N extends TaskName> = Awaited<ReturnType<(typeof TASKS)[N]>>

/** The thread's reports: the part that is done, 0 to 1, or the end. */
export type ApartMessage =
  | { readonly part: number }
  | { readonly result: unknown }
  | { readonly error: SentError }
