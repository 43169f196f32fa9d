/** Decides the owners and the modes of a mount's files. */
import type { Chain } from '../../image/opening/chain.js'
import { filesFrom } from '../../image/layer.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { MountOptions } from '../mounting/options.js'
import type { Appearance } from './tree.js'

export function appearanceOf({ layers, isWritable }: Chain, options: MountOptions): Appearance {
  const { umask, manage, scratch } = options
  const gid = options.gid ?? process.getgid?.() ?? 0
  const group = options.gid === undefined ? gid : undefined
  // The user who could open the image may read its content.
  const ours = umask === undefined ? 0o600 : 0
  const modeOf = (files: readonly FileSpec[]) =>
    umask === undefined ? commonMode(files, group) : 0o777 & ~umask
  const readable = (mode: number) => (mode | ours) & 0o444
  const [top] = layers
  const fileMode = readable(modeOf([top]))
  const modes = layers.map((_, index) => modeOf(filesFrom(layers, index)))
  const writtenModes = modes.map(mode => (mode & 0o666) | ours)
  return {
    uid: options.uid ?? process.getuid?.() ?? 0,
    gid,
    fileMode,
    layerModes: modes.map(readable),
    diskMode: isWritable || scratch ? (writtenModes[0] as number) : readable(modes[0] as number),
    writtenModes: scratch && writtenModes,
    // Users who may read the image may enter the folder: the files' names come from the image.
    dirMode: fileMode | (fileMode >> 2) | (manage && isWritable ? 0o200 : 0),
    modified: top.modified,
  }
}

/**
 * Returns the permission bits that all of `files` grant to the group `group` and to others. The group bits of a file that
 * belongs to another group say nothing about `group`. So such a file grants to both only what its group and others have
 * in common.
 * @param group undefined if the user has named a group that replaces each file's own
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
