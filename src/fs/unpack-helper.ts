/** The thread that decompresses with the workers; see image/unpack-crew.ts. */
import { workerData } from 'node:worker_threads'
import type { LayerSpec } from '../formats/format.js'
import { packedStores } from '../image/image-set.js'
import { type CrewMemory, helpCrews } from '../image/unpack-crew.js'

export interface HelperSetup {
  readonly crews: readonly CrewMemory[]
  readonly layers: readonly LayerSpec[]
}

const { crews, layers } = workerData as HelperSetup
helpCrews(crews, packedStores(layers))
