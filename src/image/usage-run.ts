/** Opens an image to tell its usage, and finds the snapshots that are asked for. */
import { ImageError } from '../errors.js'
import type { InternalSnapshots } from '../formats/format.js'
import { formatOf } from '../formats/registry.js'
import { isLongWork, runApart } from './checking/apart.js'
import { type Chain, closeChain, type OpenOptions } from './opening/chain.js'
import { openChain } from './opening/open-chain.js'
import { indexOfSnapshot, type SnapshotName } from './snapshots/snapshot-names.js'
import { type ImageUsage, usageOf, type UsageSetup } from './usage.js'

export interface UsageRequest {
  /** The snapshots whose common figures are wanted. */
  readonly names: readonly SnapshotName[]
  /** How many cells a map of the disk has; 0 for no map. */
  readonly mapCells: number
}

export type UsageOpenOptions = Pick<
  OpenOptions,
  'format' | 'allowPaths' | 'ignoreCid' | 'takesLocks'
>

/** Opens the image at `path` with all that it stands on; closeChain closes it. Throws ImageError. */
export const openForUsage = (path: string, options: UsageOpenOptions): Chain =>
  openChain(path, { ...options, access: 'read' })

/**
 * Tells the usage of an open image. Throws ImageError, also if a snapshot is missing, and SystemError.
 * @param cancel ends the work on a larger image when it is aborted; then MountError is thrown
 */
export async function runUsage(
  chain: Chain,
  { names, mapCells }: UsageRequest,
  progress: (part: number) => void,
  cancel?: AbortSignal,
): Promise<ImageUsage> {
  const setup: UsageSetup = { chain, chosen: chosenOf(chain, names), mapCells }
  return chain.layers.some(isLongWork)
    ? runApart('usage', setup, progress, cancel)
    : usageOf(setup, { progress })
}

/** Opens, tells and closes. Throws as the two do. */
export async function usageAt(
  path: string,
  options: UsageOpenOptions,
  request: UsageRequest,
  progress: (part: number) => void,
  cancel?: AbortSignal,
): Promise<ImageUsage> {
  const chain = openForUsage(path, options)
  try {
    return await runUsage(chain, request, progress, cancel)
  } finally {
    closeChain(chain)
  }
}

function chosenOf(chain: Chain, names: readonly SnapshotName[]): UsageSetup['chosen'] {
  const [top] = chain.layers
  const { path } = top
  const { snapshots } = chain
  const format = formatOf(top)
  if (names.length > 0 && !format.usage) {
    const what = `there are no figures for snapshots of ${format.name} images`
    throw new ImageError('UNSUPPORTED', what, { path, hint: 'name the image alone' })
  }
  return names.map(name => {
    const snapshot = snapshots[indexOfSnapshot({ path, snapshots }, name)]
    if (!snapshot) throw new TypeError('the index is that of a snapshot')
    const { offset } = (format.internalSnapshots as InternalSnapshots<unknown>).tableOf(snapshot)
    return { id: snapshot.id, offset }
  })
}
