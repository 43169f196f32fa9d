/** The options and the help of `vimgfs refresh`. */
import type { CommandHelp, Options } from './description.js'

export const OPTIONS = {} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['MOUNTPOINT'],
  words: 'MOUNTPOINT',
  summary: 'show what others have made of a mounted image',
  text: [
    `Makes a read-only mount open its image again, by its path as at mounting, and returns when
      the mount shows what is there now. Mounts that write need none.`,
    `A mount whose image another program has changed answers EIO until then. A mount with
      force-share shows the snapshots that the machine has taken or deleted, and what it has
      written. If the image cannot be opened, one line says why, and the mount stays as it was.`,
  ],
  options: OPTIONS,
  examples: ['vimgfs refresh /mnt/x'],
}
