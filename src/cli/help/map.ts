/** The options and the help of `vimgfs map`. */
import { ALLOW_PATH, FORMAT } from './common.js'
import type { CommandHelp, Options } from './description.js'
import { REMOTE_OPTIONS } from './remote.js'

export const OPTIONS = {
  output: {
    type: 'string',
    choices: ['human', 'json'],
    help: `for people: only data that lie in a file as they are (the default); or for programs: all
      parts, with the layer (depth, 0 is IMAGE itself), whether a layer has it (present), and
      whether it is zeros (zero) or data`,
  },
  'start-offset': {
    type: 'string',
    short: 's',
    value: 'N',
    help: 'begin there, such as 1M (0)',
  },
  'max-length': {
    type: 'string',
    short: 'l',
    value: 'N',
    help: 'show no more than that (all)',
  },
  format: FORMAT,
  'force-share': {
    type: 'boolean',
    short: 'U',
    help: 'read it also while others write it',
  },
  'allow-path': ALLOW_PATH,
  'ignore-cid': {
    type: 'boolean',
    help: 'read a vmdk whose parent has changed since it was made',
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
  usage: ['[OPTION…] IMAGE[@TAG]'],
  words: 'IMAGE[@TAG]',
  summary: 'show which parts are data, and where they are',
  text: [
    `Shows which parts of the disk are data, and in which file and where their bytes are, with
      the fields of qemu-img map. No data are read, and no passphrase is needed. IMAGE@TAG is a
      snapshot.`,
  ],
  options: OPTIONS,
  examples: ['vimgfs map --output=json disk.qcow2'],
}
