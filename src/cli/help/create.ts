/** The options and the help of `vimgfs create`. */
import { PROGRESS } from './common.js'
import type { CommandHelp, Options } from './description.js'

export const OPTIONS = {
  format: {
    type: 'string',
    short: 'f',
    value: 'FMT',
    help: '{creatable} (raw)',
  },
  options: {
    type: 'string',
    short: 'o',
    multiple: true,
    value: 'NAME=VALUE,…',
    help: `options of the format, with qemu-img's names and defaults; vimgfs create -f FMT -o help
      lists them`,
  },
  backing: {
    type: 'string',
    short: 'b',
    value: 'BASE',
    help: `the image that the new one stands on: it only holds what differs. The name is stored as it
      is given, and starts from FILE's folder. Without SIZE, the disk is as large as BASE's.`,
  },
  'backing-format': {
    type: 'string',
    short: 'F',
    value: 'F',
    help: "BASE's format (found by its bytes, and stored)",
  },
  unsafe: {
    type: 'boolean',
    short: 'u',
    help: 'do not look at BASE; it may be missing. Needs SIZE.',
  },
  'passphrase-file': {
    type: 'string',
    value: 'FILE',
    help: `the file with the passphrase of an encrypted image (-o encrypt.format=luks); a newline at
      its end does not count; - is standard input. Without it, vimgfs reads the file that
      VIMGFS_PASSPHRASE_FILE names, or asks twice.`,
  },
  force: {
    type: 'boolean',
    help: 'replace files that exist already',
  },
  output: {
    type: 'string',
    choices: ['human', 'json'],
    help: 'what to print of the new image: a line, or the fields of vimgfs info',
  },
  quiet: {
    type: 'boolean',
    short: 'q',
    help: 'print errors only',
  },
  progress: PROGRESS,
  'allow-path': {
    type: 'string',
    multiple: true,
    value: 'DIR',
    help: 'BASE may also name files below DIR (its own folder)',
  },
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[-f FMT] [-o OPTION,…] [-b BASE [-F F]] FILE [SIZE]'],
  words: 'FILE SIZE',
  summary: 'make a new image, or one that stands on another',
  text: ['Makes the new, empty image FILE for a disk of SIZE, such as 512M, 20G or 1.5T.'],
  options: OPTIONS,
  notes: [
    `FILE appears when it is whole: after an error, Ctrl-C or kill there is nothing. A data file
      and the extents of a vmdk lie beside it.`,
  ],
  exit: '0 made, 1 could not be made, 2 wrong usage',
  examples: [
    'vimgfs create -f qcow2 disk.qcow2 20G',
    'vimgfs create -f qcow2 -b disk.qcow2 overlay.qcow2',
    'vimgfs create -f vmdk -o subformat=monolithicFlat disk.vmdk 20G',
  ],
}
