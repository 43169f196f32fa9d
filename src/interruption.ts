/** Signals that end the program before it has mounted anything. */
import { MountError } from './errors.js'

export class Interrupted extends MountError {
  constructor() {
    super('interrupted; nothing is mounted')
  }
}

/**
 * Returns the result of `work`, or throws Interrupted if `signal` is aborted first. Then the work cannot be stopped and
 * goes on until the process ends.
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
