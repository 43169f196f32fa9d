/** The options and the help of `vimgfs umount`. */
import type { CommandHelp, Options } from './description.js'

export const OPTIONS = {
  lazy: {
    type: 'boolean',
    short: 'l',
    help: `take it away at once, also while it is in use, and do not wait: the server saves what was
      written when it ends; if that fails, only its log says so`,
  },
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[--lazy] MOUNTPOINT'],
  words: 'MOUNTPOINT',
  summary: 'unmount it, and return when its server has ended',
  text: [
    `Unmounts MOUNTPOINT, and returns when its server has ended and all that was written is in
      the image. It also removes a mount whose server was killed. It fails, and MOUNTPOINT stays
      mounted, if the server does not answer, or if another mount namespace (of a container, for
      example) has the mount, too; the line names the process.`,
  ],
  options: OPTIONS,
  examples: ['vimgfs umount /mnt/x'],
}
