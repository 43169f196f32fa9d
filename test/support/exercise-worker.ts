/** The thread of watchdog.ts: it may hang or grow, and is ended from outside then. */
import { parentPort } from 'node:worker_threads'
import { exercise, type HostileOptions } from './exercise.js'

parentPort?.on('message', async ({ path, options }: { path: string; options: HostileOptions }) => {
  parentPort?.postMessage(await exercise(path, options))
})
parentPort?.postMessage('ready')
