/** A thread that helps to compare two disks: for each message it works through the list of parts. */
import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import { Comparer, TaskList, type TaskMemory } from './compare-tasks.js'
import { type SourceSpec, viewOfSource } from './source.js'

export interface CompareSetup {
  readonly a: SourceSpec
  readonly b: SourceSpec
  readonly memory: TaskMemory
}

const { a, b, memory } = workerData as CompareSetup
const port = parentPort as MessagePort
const comparer = new Comparer(viewOfSource(a), viewOfSource(b), new TaskList(memory))

port.on('message', () => {
  while (comparer.step());
  port.postMessage(comparer.failure ?? null)
})
