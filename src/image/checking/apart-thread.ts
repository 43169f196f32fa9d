/** The thread that does one piece of long work on an image. */
import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import { type ApartMessage, type TaskName, TASKS } from './apart-tasks.js'
import { sentError } from '../sent-error.js'

/** How often the part that is done is reported. */
const EVERY_MS = 50

interface Options {
  progress(part: number): void
}
type Task = (setup: unknown, options: Options) => Promise<unknown>

const { task, setup } = workerData as { task: TaskName; setup: unknown }
const port = parentPort as MessagePort
const send = (message: ApartMessage) => port.postMessage(message)
let last = performance.now()

function progress(part: number): void {
  const now = performance.now()
  if (now - last < EVERY_MS) return
  last = now
  send({ part })
}

try {
  send({ result: await (TASKS[task] as Task)(setup, { progress }) })
} catch (error) {
  const sent = sentError(error)
  if (!sent) throw error
  send({ error: sent })
}
