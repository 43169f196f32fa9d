/** The thread of watchdog.ts. If it hangs or takes too much memory, it is ended from outside. */
import { parentPort } from 'node:worker_threads'
import { exercise, type HostileOptions } from './exercise.js'

parentPort?.on('message', async ({ path, options }: { path: string; options: HostileOptions }) => {
  parentPort?.postMessage(await exercise(path, options))
})
parentPort?.postMessage('ready')
