/** The options and the help of `vimgfs info`. */
import { ALLOW_PATH, FORMAT } from './common.js'
import type { CommandHelp, Options } from './description.js'
import { REMOTE_OPTIONS } from './remote.js'

export const OPTIONS = {
  output: {
    type: 'string',
    choices: ['human', 'json'],
    help: 'for people (the default) or for programs',
  },
  'backing-chain': {
    type: 'boolean',
    help: 'describe all layers down to the last backing file',
  },
  partitions: {
    type: 'boolean',
    help: 'list the partitions of the disk, or of snapshot TAG',
  },
  format: FORMAT,
  'force-share': {
    type: 'boolean',
    short: 'U',
    help: 'read an image that a machine has open; it may be torn',
  },
  'allow-path': ALLOW_PATH,
  'passphrase-file': {
    type: 'string',
    multiple: true,
    value: 'FILE',
    help: 'with --partitions: see vimgfs help mount',
  },
  'ignore-cid': {
    type: 'boolean',
    help: 'read a vmdk whose parent has changed since it was made',
  },
  ...REMOTE_OPTIONS,
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[OPTION…] IMAGE', '--partitions [OPTION…] IMAGE[@TAG]'],
  words: 'IMAGE[@TAG]',
  summary: 'show format, sizes, snapshots and backing files',
  text: ['Describes IMAGE, with the fields and numbers of qemu-img info.'],
  options: OPTIONS,
  examples: [
    'vimgfs info --output=json disk.qcow2',
    'vimgfs info --partitions disk.qcow2@before-upgrade',
  ],
}
