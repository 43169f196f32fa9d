/** The options and the help of `vimgfs list`. */
import type { CommandHelp, Options } from './description.js'

export const OPTIONS = {
  json: { type: 'boolean', help: 'print a list of objects, with the same names' },
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[--json]'],
  words: '',
  summary: 'show the images that are mounted, and how they are',
  text: [
    `Shows your mounts; for root, those of all users. Each has its mount point, image, format, mode
      (ro, rw or scratch), the time of mounting, the server's process, and a state:`,
    [
      ['ok', 'all that was written is in the image'],
      ['dirty', 'something was written since the last flush'],
      ['errors', 'nothing can be written any more; the log and .vimgfs/status.json say why'],
      ['image replaced', 'another program has removed, replaced or changed a file of the image'],
      ['unknown', 'the server is of another version of vimgfs'],
      ['no answer', 'the server has died, is stopped, or waits for its storage'],
    ],
  ],
  options: OPTIONS,
  examples: ['vimgfs list --json'],
}
