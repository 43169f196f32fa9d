/** Protects images from writing if other images only hold differences from them. */
import { printable } from '../../errors.js'
import type { Folder } from '../../io/folders.js'
import { WriteProtected } from '../../io/named-file.js'
import type { ExternalSnapshot, LayerSpec } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import { filesOf } from '../layer.js'
import { overlaysOf } from './overlays.js'

/**
 * Throws WriteProtected, which names them, if images in `folders` or snapshots need `top`, or another file that a mount of it
 * writes.
 * @param frozen the VM's snapshots that have frozen `top`
 * @param folders the folders of `top`
 * @param except the names of images there that do not count
 */
export function requireUnneeded(
  top: LayerSpec,
  frozen: readonly ExternalSnapshot[],
  folders: readonly Folder[],
  except: readonly string[] = [],
): void {
  const children = formatOf(top).children?.(top, folders) ?? []
  // A copy of its own descriptor names a disk's extents, too, and shows the same disk.
  const options = { except: formatOf(top).children && top.format }
  const disks = new Set([...children, ...overlaysOf(top.path, filesOf(top), folders, options)])
  for (const name of except) disks.delete(name)
  const names = [
    ...frozen.map(({ displayName }) => `the snapshot "${printable(displayName)}"`),
    ...[...disks].sort().map(name => `the disk "${printable(name)}"`),
  ]
  if (names.length === 0) return
  const more = names.length > 2 ? ` and ${names.length - 2} more` : ''
  const what = `${names.slice(0, 2).join(' and ')}${more} would be broken by writing it`
  throw new WriteProtected(
    top.path,
    `${what} (--force writes it)`,
    'use the image that needs it, or only read this one (mount -o ro)',
  )
}
