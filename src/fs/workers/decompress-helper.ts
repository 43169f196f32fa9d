/** The thread that decompresses with the workers; see image/decompress-queue.ts. */
import { workerData } from 'node:worker_threads'
import type { LayerSpec } from '../../formats/format.js'
import { packedStores } from '../../image/view-set.js'
import { type QueueMemory, serveQueues } from '../../image/decompress-queue.js'

export interface HelperSetup {
  readonly queues: readonly QueueMemory[]
  readonly layers: readonly LayerSpec[]
}

const { queues, layers } = workerData as HelperSetup
serveQueues(queues, packedStores(layers))
