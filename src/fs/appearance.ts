/** How a mount shows its files: whom they belong to, and whom their modes let in. */
import type { Chain } from '../image/chain.js'
import { filesFrom } from '../image/layer.js'
import type { FileSpec } from '../io/file-spec.js'
import type { MountOptions } from './options.js'
import type { Appearance } from './tree.js'

export function appearanceOf({ layers, isWritable }: Chain, options: MountOptions): Appearance {
  const { umask } = options
  const gid = options.gid ?? process.getgid?.() ?? 0
  const group = options.gid === undefined ? gid : undefined
  // Whoever could open the image to mount it may read what it holds.
  const ours = umask === undefined ? 0o600 : 0
  const modeOf = (files: readonly FileSpec[]) =>
    umask === undefined ? commonMode(files, group) : 0o777 & ~umask
  const readable = (mode: number) => (mode | ours) & 0o444
  const [top] = layers
  const fileMode = readable(modeOf([top]))
  const diskMode = modeOf(filesFrom(layers, 0))
  return {
    uid: options.uid ?? process.getuid?.() ?? 0,
    gid,
    fileMode,
    layerModes: layers.map((_, index) => readable(modeOf(filesFrom(layers, index)))),
    diskMode: isWritable ? (diskMode & 0o666) | ours : readable(diskMode),
    // Who may read the image may enter: the names of the files are in it.
    dirMode: fileMode | (fileMode >> 2),
    modified: top.modified,
  }
}

/**
 * The permission bits that all of `files` grant to the group `group` and to others. Of a file of another group the
 * bits for its group say nothing of this one, so both have what the file grants to its group and to others alike.
 * @param group undefined where the user has named a group to take the place of each file's own
 */
export function commonMode(
  files: readonly Pick<FileSpec, 'mode' | 'gid'>[],
  group: number | undefined,
): number {
  return files.reduce((common, { mode, gid }) => {
    const [groups, others] = [(mode >> 3) & 7, mode & 7]
    const both = groups & others
    const isOwn = gid === group
    const granted = ((isOwn || group === undefined ? groups : both) << 3) | (isOwn ? others : both)
    return common & ((mode & 0o700) | granted)
  }, 0o777)
}
