/** A thread that helps to compare two disks: for each message it works through the list of parts. */
import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import { Comparer, TaskList, type TaskMemory } from './compare-tasks.js'
import { type SourceSpec, viewOfSource } from '../reading/source.js'

export interface CompareSetup {
  readonly a: SourceSpec
  readonly b: SourceSpec
  readonly memory: TaskMemory
}

function serve({ a, b, memory }: CompareSetup): void {
  const port = parentPort as MessagePort
  const comparer = new Comparer(viewOfSource(a), viewOfSource(b), new TaskList(memory))
  port.on('message', () => {
    while (comparer.step());
    port.postMessage(comparer.failure ?? null)
  })
}

// The build runs this module, too, to keep V8's code of it.
if (workerData !== null) serve(workerData as CompareSetup)
