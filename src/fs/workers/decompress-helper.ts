/** The thread that decompresses with the workers; see image/reading/decompress-queue.ts. */
import { workerData } from 'node:worker_threads'
import type { LayerSpec } from '../../formats/format.js'
import { packedStores } from '../../image/reading/view-set.js'
import { type QueueMemory, serveQueues } from '../../image/reading/decompress-queue.js'

export interface HelperSetup {
  readonly queues: readonly QueueMemory[]
  readonly layers: readonly LayerSpec[]
}

const { queues, layers } = workerData as HelperSetup
serveQueues(queues, packedStores(layers))
