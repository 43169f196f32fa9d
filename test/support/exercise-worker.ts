/** The thread of watchdog.ts: it may hang or grow, and is ended from outside then. */
import { parentPort } from 'node:worker_threads'
import type { OpenOptions } from '../../src/formats/chain.js'
import { exercise } from './exercise.js'

parentPort?.on('message', ({ path, options }: { path: string; options: OpenOptions }) => {
  parentPort?.postMessage(exercise(path, options))
})
parentPort?.postMessage('ready')
