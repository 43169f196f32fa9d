/** The options and the help of `vimgfs convert`. */
import { PROGRESS } from './common.js'
import type { CommandHelp, Options } from './description.js'
import { REMOTE_OPTIONS } from './remote.js'

const NO_EFFECT = `taken for qemu-img's sake; they change nothing: all is written in the fastest way, and
  is on the disk at the end`

export const OPTIONS = {
  format: {
    type: 'string',
    short: 'f',
    value: 'F',
    help: 'format of SRC (found by its bytes)',
  },
  'output-format': {
    type: 'string',
    short: 'O',
    value: 'FMT',
    help: 'format of DST: {creatable} (raw)',
  },
  options: {
    type: 'string',
    short: 'o',
    multiple: true,
    value: 'NAME=VALUE,…',
    help: 'options of DST; -o help lists those of -O F',
  },
  compress: {
    type: 'boolean',
    short: 'c',
    help: `store the data compressed, on up to four processors (more with the variable
      UV_THREADPOOL_SIZE=N)`,
  },
  snapshot: {
    type: 'string',
    short: 'l',
    value: 'TAG',
    help: 'the same as SRC@TAG; also snapshot.name=TAG, snapshot.id=ID',
  },
  base: {
    type: 'string',
    short: 'B',
    value: 'IMAGE',
    help: `DST stands on IMAGE, and stores only what differs from it. A relative name is relative to
      the folder of DST.`,
  },
  'base-format': {
    type: 'string',
    short: 'F',
    value: 'F',
    help: 'format of IMAGE (found by its bytes)',
  },
  bitmaps: {
    type: 'boolean',
    help: `DST, a qcow2 image, gets the persistent bitmaps of SRC, too`,
  },
  'skip-broken-bitmaps': {
    type: 'boolean',
    help: 'with --bitmaps: leave out those that were not closed',
  },
  'no-create': {
    type: 'boolean',
    short: 'n',
    help: `write into DST, an image or a block device that is large enough already; -O then says its
      format (found by its bytes)`,
  },
  sparse: {
    type: 'string',
    short: 'S',
    value: 'SIZE',
    help: 'how many zeros in a row take no space (4k; more than 2M count as 2M); 0 stores all',
  },
  force: {
    type: 'boolean',
    help: 'replace DST if it is there',
  },
  verify: {
    type: 'boolean',
    help: 'read DST again and compare it with SRC',
  },
  salvage: {
    type: 'boolean',
    help: 'where SRC is damaged, write zeros, list the places and end with 3',
  },
  progress: PROGRESS,
  quiet: {
    type: 'boolean',
    short: 'q',
    help: 'never show progress; SIGUSR1 prints it once',
  },
  'force-share': {
    type: 'boolean',
    short: 'U',
    help: 'read SRC also while another program writes it: what is read may be torn',
  },
  'allow-path': {
    type: 'string',
    multiple: true,
    value: 'DIR',
    help: 'images may also name files below DIR (their own folders)',
  },
  'ignore-cid': {
    type: 'boolean',
    help: 'read a vmdk whose parent has changed since',
  },
  'passphrase-file': {
    type: 'string',
    multiple: true,
    value: 'FILE',
    help: 'passphrase of SRC; one option for each encrypted layer',
  },
  'target-passphrase-file': {
    type: 'string',
    value: 'FILE',
    help: 'passphrase of DST (-o encrypt.format=luks, or -n)',
  },
  coroutines: {
    type: 'string',
    short: 'm',
    value: 'N',
    help: NO_EFFECT,
  },
  'out-of-order': {
    type: 'boolean',
    short: 'W',
    help: NO_EFFECT,
  },
  'copy-range': {
    type: 'boolean',
    short: 'C',
    help: NO_EFFECT,
  },
  cache: {
    type: 'string',
    short: 't',
    value: 'MODE',
    help: NO_EFFECT,
  },
  'source-cache': {
    type: 'string',
    short: 'T',
    value: 'MODE',
    help: NO_EFFECT,
  },
  'target-is-zero': {
    type: 'boolean',
    help: NO_EFFECT,
  },
  'rate-limit': {
    type: 'string',
    short: 'r',
    value: 'N',
    help: 'refused: nothing limits the rate',
  },
  ...REMOTE_OPTIONS,
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[OPTION…] SRC… DST'],
  words: 'SRC… DST',
  summary: 'copy a disk into an image of another kind',
  text: [
    `Copies the disk of SRC, an image or IMAGE@SNAPSHOT, with all that it stands on, into the new
      image DST. Holes and zeros take no space there. DST appears when it is whole and on the
      disk; before that nothing is there, whatever happens. SRC may be of any format ({readable}).
      Several SRC become one disk, one after the other.`,
  ],
  options: OPTIONS,
  notes: [
    `On xfs and btrfs, data are shared with SRC where both store them plain: that takes no time
      and no space, and zeros in them are not searched.`,
  ],
  exit: '0 done; 1 not done; 2 wrong usage; 3 done, but parts of SRC were lost (--salvage)',
  examples: [
    'vimgfs convert -O vmdk -o subformat=streamOptimized disk.qcow2 disk.vmdk',
    'vimgfs convert -c -O qcow2 disk.qcow2@before-upgrade old.qcow2',
  ],
}
