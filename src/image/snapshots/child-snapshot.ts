/** Takes a snapshot of a disk whose snapshots are child disks: the disk stays as it is, and a new child holds what is written. */
import path from 'node:path'
import { ImageError } from '../../errors.js'
import { MAX_NEW_SNAPSHOT_NAME_BYTES } from '../../formats/limits.js'
import { formatOf } from '../../formats/registry.js'
import { closeChain, type OpenOptions } from '../opening/chain.js'
import { createImage } from '../making/create-image.js'
import { openChain } from '../opening/open-chain.js'

/**
 * Makes the child of the disk at `name` beside it, and returns the child's path; undefined if the format's snapshots are no
 * child disks. The disk itself does not change. Throws ImageError, SystemError, and then leaves nothing behind.
 */
export async function createChild(
  name: string,
  tag: string,
  options: Pick<OpenOptions, 'format' | 'allowPaths'> = {},
): Promise<string | undefined> {
  const chain = openChain(name, { ...options, describe: 'image' })
  closeChain(chain)
  const [layer] = chain.layers
  const format = formatOf(layer)
  if (!format.externalSnapshots) return undefined
  if (format.contentId?.(layer) === undefined) {
    throw new ImageError('UNSUPPORTED', 'it has no content ID by which a child could know it', {
      path: layer.path,
      hint: 'name the descriptor of the disk',
    })
  }
  const parent = path.basename(layer.path)
  const { dir, name: stem, ext } = path.parse(layer.path)
  requireFileName(tag, layer.path)
  const child = path.join(dir, `${stem}-${tag}${ext}`)
  await createImage(child, {
    format: format.name,
    backing: { name: parent, format: format.name },
    options: format.externalSnapshots.childOptions(layer),
    allowPaths: options.allowPaths ?? [],
  })
  return child
}

/** The tag becomes a part of a file's name. */
function requireFileName(tag: string, image: string): void {
  const isPossible = tag !== '' && !/[\0-\x1f\x7f/\\"]/.test(tag)
  if (isPossible && Buffer.byteLength(tag) <= MAX_NEW_SNAPSHOT_NAME_BYTES) return
  throw new ImageError('REFUSED', 'the tag cannot be a part of a file name', {
    path: image,
    hint: 'choose one without slashes, quotes and control characters',
  })
}
