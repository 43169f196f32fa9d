/** The options and the help of `vimgfs compare`. */
import { PROGRESS } from './common.js'
import type { CommandHelp, Options } from './description.js'
import { REMOTE_OPTIONS } from './remote.js'

export const OPTIONS = {
  strict: {
    type: 'boolean',
    short: 's',
    help: 'the sizes must be equal, too, and what is data, zeros and unallocated',
  },
  format: {
    type: 'string',
    short: 'f',
    value: 'F',
    help: 'the first one is {formats} (found by its bytes)',
  },
  'second-format': {
    type: 'string',
    short: 'F',
    value: 'F',
    help: 'the same for the second one',
  },
  progress: PROGRESS,
  quiet: {
    type: 'boolean',
    short: 'q',
    help: 'print errors only',
  },
  'force-share': {
    type: 'boolean',
    short: 'U',
    help: 'read them also while others write them',
  },
  'passphrase-file': {
    type: 'string',
    multiple: true,
    value: 'FILE',
    help: 'see vimgfs help mount',
  },
  'allow-path': {
    type: 'string',
    multiple: true,
    value: 'DIR',
    help: 'the images may also name files below DIR (their own folders)',
  },
  'ignore-cid': {
    type: 'boolean',
    help: 'read a vmdk whose parent has changed since it was made',
  },
  'source-cache': {
    type: 'string',
    short: 'T',
    value: 'MODE',
    help: "taken for qemu-img's sake; it changes nothing",
  },
  ...REMOTE_OPTIONS,
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[OPTION…] IMAGE[@TAG] IMAGE[@TAG]'],
  words: 'IMAGE[@TAG] IMAGE[@TAG]',
  summary: 'tell whether two disks have the same content',
  text: [
    `Compares the content of two disks, of any formats, and says where they first differ.
      IMAGE@TAG is a snapshot. What one disk has past the end of the other one must be zeros.`,
  ],
  options: OPTIONS,
  exit: '0 equal, 1 different, 2 wrong usage, or one cannot be opened, 3 the tables of one are damaged, 4 one cannot be read',
  examples: ['vimgfs compare disk.qcow2@before-upgrade backup.raw'],
}
