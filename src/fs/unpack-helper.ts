/** The thread that decompresses with the workers; see formats/unpack-crew.ts. */
import { workerData } from 'node:worker_threads'
import type { LayerSpec } from '../formats/layer.js'
import { packedStores } from '../formats/image-set.js'
import { type CrewMemory, helpCrews } from '../formats/unpack-crew.js'

export interface HelperSetup {
  readonly crews: readonly CrewMemory[]
  readonly layers: readonly LayerSpec[]
}

const { crews, layers } = workerData as HelperSetup
helpCrews(crews, packedStores(layers))
