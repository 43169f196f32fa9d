/** Signals that end a program before there is anything to end. */
import { MountError } from './errors.js'

export class Interrupted extends MountError {
  constructor() {
    super('interrupted; nothing is mounted')
  }
}

/**
 * What `work` comes to, unless `signal` is aborted first: then it throws Interrupted, and the work, which
 * nobody can stop, goes on until the process ends.
 */
export async function orInterrupted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  let interrupt = () => {}
  const interrupted = new Promise<never>((_, reject) => {
    interrupt = () => reject(new Interrupted())
  })
  if (signal.aborted) interrupt()
  signal.addEventListener('abort', interrupt)
  try {
    return await Promise.race([work, interrupted])
  } finally {
    signal.removeEventListener('abort', interrupt)
  }
}
