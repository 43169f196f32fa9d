/** The state that the parts of a qcow2 writer share. */
import { ImageError } from '../../../errors.js'
import type { Qcow2Driver } from '../driver.js'
import type { FreeQueue } from '../free-queue.js'
import type { MetadataMap } from '../metadata-map.js'
import type { Qcow2Header } from '../header.js'
import type { Refcounts } from '../refcounts.js'
import type { Qcow2Memory, STATE } from '../write-memory.js'
import type { TableWriterParts } from '../../table-writer.js'

export interface Qcow2WriterParts extends TableWriterParts<Qcow2Header, Qcow2Driver> {
  readonly memory: Qcow2Memory
}

/** These, and this thread's views of `memory`. */
export interface WriteContext extends Qcow2WriterParts {
  readonly metadataMap: MetadataMap
  readonly freed: FreeQueue
  readonly state: Float64Array
  readonly refcounts: Refcounts
}

/** The most table slices, and records of freed clusters, that one step changes. */
export const STEP_SLICES = 64
export const STEP_RECORDS = 2048

/** Returns a value of the state that the threads share; `at` is an index of STATE. */
export const stateOf = (
  { state }: Pick<WriteContext, 'state'>,
  at: (typeof STATE)[keyof typeof STATE],
): number => state[at] as number

/** Returns the error for damage of the image after which nothing more is written. `offset` is a place on the disk. */
export const damage = (
  { store }: Pick<WriteContext, 'store'>,
  message: string,
  offset?: number,
): ImageError =>
  new ImageError('CORRUPT', message, {
    path: store.path,
    ...(offset !== undefined && { offset }),
    endsWriting: true,
  })
