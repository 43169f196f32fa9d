/** The state of a mount, as its server tells it to `vimgfs list`. */
import { removedFiles } from '../../image/layer.js'
import { watchOf } from '../live/world.js'
import type { ServedImage } from '../served-image.js'

export interface MountState {
  readonly format: string
  readonly mode: 'ro' | 'rw' | 'scratch'
  /** When the server started, as ISO 8601 says it. */
  readonly since: string
  /** Whether something was written that a flush has still to make durable. */
  readonly dirty: boolean
  /** Why nothing can be written any more; null if it can, or never could. */
  readonly failure: string | null
  /** Whether a file of the image has been removed, replaced or changed by others. */
  readonly replaced: boolean
}

export function mountState(image: ServedImage): MountState {
  const { chain, scratch, views, world } = image
  const [top] = chain.layers
  const disks = scratch
    ? [...scratch.files.found].map(file => file.disk)
    : views.disk
      ? [views.disk]
      : []
  for (const disk of disks) disk.checkFiles()
  const watch = watchOf(world, () => {})
  return {
    format: top.format,
    mode: scratch ? 'scratch' : chain.isWritable ? 'rw' : 'ro',
    since: new Date(Date.now() - process.uptime() * 1000).toISOString(),
    dirty: disks.some(disk => disk.isDirty),
    failure: disks.find(disk => disk.failure !== '')?.failure ?? null,
    replaced: removedFiles(top).length > 0 || watch?.isChanged === true,
  }
}
