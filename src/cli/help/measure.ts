/** The options and the help of `vimgfs measure`. */
import { ALLOW_PATH, FORMAT } from './common.js'
import type { CommandHelp, Options } from './description.js'
import { REMOTE_OPTIONS } from './remote.js'

export const OPTIONS = {
  'target-format': {
    type: 'string',
    short: 'O',
    value: 'FMT',
    help: `{creatable} (raw): all files of the image together. Compressed data count as if they could
      not be compressed.`,
  },
  options: {
    type: 'string',
    short: 'o',
    multiple: true,
    value: 'NAME=VALUE,…',
    help: 'options of the new image, as for vimgfs create',
  },
  size: {
    type: 'string',
    value: 'SIZE',
    help: 'for an empty disk of SIZE',
  },
  snapshot: {
    type: 'string',
    short: 'l',
    value: 'TAG',
    help: 'the same as IMAGE@TAG; also snapshot.name=TAG, snapshot.id=ID',
  },
  output: {
    type: 'string',
    choices: ['human', 'json'],
    help: 'for people (the default) or for programs, with the fields of qemu-img measure',
  },
  format: FORMAT,
  'force-share': {
    type: 'boolean',
    short: 'U',
    help: 'read an image that others write',
  },
  'allow-path': ALLOW_PATH,
  'ignore-cid': {
    type: 'boolean',
    help: 'read a vmdk whose parent has changed since',
  },
  'passphrase-file': {
    type: 'string',
    multiple: true,
    value: 'FILE',
    help: 'changes nothing: no passphrase is needed',
  },
  ...REMOTE_OPTIONS,
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[-O FMT] [-o OPTION,…] IMAGE', '[-O FMT] [-o OPTION,…] --size SIZE'],
  words: 'IMAGE[@TAG]',
  summary: 'say how large a new image of a disk would be',
  text: [
    `Says how large the file of a new image would be, in bytes: with the data that IMAGE (or
      IMAGE@TAG) has, and with data everywhere. All tables of the disk count. Reads no data.`,
  ],
  options: OPTIONS,
  examples: ['vimgfs measure -O qcow2 disk.raw'],
}
