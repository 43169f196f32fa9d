/** The options and the help of `vimgfs umount`. */
import type { CommandHelp, Options } from './description.js'

export const OPTIONS = {
  lazy: {
    type: 'boolean',
    short: 'l',
    help: `take it away at once, also while it is in use, and do not wait: the server saves what was
      written when it ends; if that fails, only its log says so`,
  },
  all: { type: 'boolean', short: 'a', help: 'unmount all that you have mounted' },
  'all-users': { type: 'boolean', help: 'unmount what all users have mounted; for root only' },
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[--lazy] MOUNTPOINT|IMAGE…', '[--lazy] --all'],
  words: 'MOUNTPOINT…',
  summary: 'unmount an image, and return when its server has ended',
  text: [
    `Unmounts MOUNTPOINT, or all mounts of IMAGE, and returns when the server has ended and all that
      was written is in the image. It also removes a mount whose server was killed. It fails, and
      MOUNTPOINT stays mounted, if the server does not answer, or if another mount namespace (of a
      container, for example) has the mount, too; the line names the process.`,
    'If one of several cannot be unmounted, the others are unmounted all the same.',
  ],
  options: OPTIONS,
  examples: ['vimgfs umount /mnt/x'],
}
