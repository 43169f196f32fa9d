/** The options and the help of `vimgfs usage`. */
import { ALLOW_PATH, FORMAT, PROGRESS } from './common.js'
import type { CommandHelp, Options } from './description.js'
import { REMOTE_OPTIONS } from './remote.js'

export const OPTIONS = {
  json: {
    type: 'boolean',
    help: 'for programs',
  },
  html: {
    type: 'string',
    value: 'FILE',
    help: 'write a page with a map of the disk into FILE, which is replaced',
  },
  id: {
    type: 'string',
    multiple: true,
    value: 'ID',
    help: 'a snapshot by its ID',
  },
  format: FORMAT,
  'force-share': {
    type: 'boolean',
    short: 'U',
    help: 'look at an image that others write: the figures may be wrong',
  },
  'allow-path': ALLOW_PATH,
  'ignore-cid': {
    type: 'boolean',
    help: 'look at a vmdk whose parent has changed since',
  },
  progress: PROGRESS,
  quiet: {
    type: 'boolean',
    short: 'q',
    help: 'show no progress',
  },
  ...REMOTE_OPTIONS,
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[OPTION…] IMAGE [TAG…]'],
  words: 'IMAGE [TAG…]',
  summary: 'show where space went, and what each snapshot holds',
  text: [
    `Shows where the space of IMAGE went: data, compressed data, allocated zeros, tables, leaks, and
      how much of each backing file the disk still reads. For each snapshot of a qcow2 image it
      shows what the snapshot refers to, and what it alone holds: so much comes back when it is
      deleted. Of several TAGs it also shows what deleting all of them gives back. Reads no data,
      and needs no passphrase. IMAGE may be mounted, and named by its mount point; then writers
      wait.`,
  ],
  options: OPTIONS,
  examples: ['vimgfs usage disk.qcow2 before-upgrade', 'vimgfs usage --html usage.html disk.qcow2'],
}
