/** The options and the help of `vimgfs snapshot`. */
import { FORMAT } from './common.js'
import type { CommandHelp, Options } from './description.js'
import { REMOTE_OPTIONS } from './remote.js'

export const ACTIONS = ['list', 'create', 'delete', 'rename', 'revert'] as const

export const OPTIONS = {
  list: {
    type: 'boolean',
    short: 'l',
    help: 'the same as the action list; so is IMAGE alone',
  },
  create: {
    type: 'string',
    short: 'c',
    value: 'TAG',
    help: 'the same as the actions create, delete and revert',
  },
  delete: {
    type: 'string',
    short: 'd',
    value: 'TAG',
    help: 'the same as the actions create, delete and revert',
  },
  apply: {
    type: 'string',
    short: 'a',
    value: 'TAG',
    help: 'the same as the actions create, delete and revert',
  },
  freeze: {
    type: 'boolean',
    actions: ['create'],
    help: 'create: meanwhile freeze the file systems on a mounted disk; for root',
  },
  replace: {
    type: 'boolean',
    actions: ['create'],
    help: 'create: delete the snapshots of the same TAG afterwards',
  },
  wait: {
    type: 'boolean',
    actions: ['delete'],
    help: "delete: wait until nobody has the snapshot's file in a mount open",
  },
  id: {
    type: 'string',
    multiple: true,
    value: 'N',
    actions: ['delete', 'rename', 'revert'],
    help: 'instead of TAG: the snapshot with the ID N; delete takes several',
  },
  'older-than': {
    type: 'string',
    value: 'AGE',
    actions: ['delete'],
    help: 'delete: all that are older than AGE, such as 12h, 30d or 8w',
  },
  'dry-run': {
    type: 'boolean',
    actions: ['delete'],
    help: 'delete: only say what would be deleted',
  },
  discard: {
    type: 'boolean',
    actions: ['revert'],
    help: 'revert: do not keep the present state',
  },
  force: {
    type: 'boolean',
    actions: ['revert'],
    help: 'revert: also if another image in its folder needs IMAGE, which breaks that',
  },
  layers: {
    type: 'boolean',
    actions: ['list'],
    help: 'list: also the layers that IMAGE stands on, and their snapshots',
  },
  output: {
    type: 'string',
    choices: ['human', 'json'],
    actions: ['list'],
    help: 'list: for people (the default) or for programs, with all layers',
  },
  format: FORMAT,
  'allow-path': {
    type: 'string',
    multiple: true,
    value: 'DIR',
    actions: ['list', 'create'],
    help: 'list, create: IMAGE may also name files below DIR (its own folder)',
  },
  'force-share': {
    type: 'boolean',
    short: 'U',
    actions: ['list'],
    help: 'list: changes nothing, since listing takes no locks',
  },
  progress: {
    type: 'boolean',
    short: 'p',
    actions: ['create', 'delete', 'rename', 'revert'],
    help: 'show progress also if standard error is no terminal',
  },
  quiet: {
    type: 'boolean',
    short: 'q',
    help: 'print errors only',
  },
  ...REMOTE_OPTIONS,
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: [
    'list   [OPTION…] IMAGE',
    'create [OPTION…] IMAGE TAG',
    'delete [OPTION…] IMAGE TAG…',
    'rename [OPTION…] IMAGE TAG NEW',
    'revert [OPTION…] IMAGE TAG',
  ],
  words: 'ACTION IMAGE TAG…',
  actions: ACTIONS,
  summary: 'list, take and delete snapshots, and go back to one',
  text: [
    `Lists, takes and deletes the snapshots within a qcow2 image, and makes its disk what one of
      them is. IMAGE may be mounted: then its mount point names it, too, and the mount goes on
      meanwhile. After a power cut, a full disk or an error, IMAGE is as it was before or as it is
      after, nothing in between.`,
    `A snapshot of a vmdk is a child disk: create makes disk-TAG.vmdk beside disk.vmdk. From then
      on, use the child: it holds what is written, and disk.vmdk stays as it is. VMware does not
      list the snapshot. vimgfs commit disk-TAG.vmdk merges it back; to go back, delete the child.`,
    `list shows the table of qemu-img. It also shows the snapshots of a vmdk's machine (.vmsd),
      and the files that they have frozen.`,
    `create takes all that was written before to a mount. What file systems mounted on its disk
      still hold in memory is in the snapshot with --freeze only; without, they are there as after
      a power cut. It refuses a TAG that exists. delete, rename and revert refuse one that exists
      twice: then name it by ID.`,
    `revert first takes the snapshot before-revert-DATE of the present state, unless a snapshot
      shows that state already. Delete it when you no longer need it. It refuses an image with
      persistent bitmaps.`,
  ],
  options: OPTIONS,
  exit: '0 done, 1 not done, and IMAGE is as it was, 2 wrong usage',
  examples: [
    'vimgfs snapshot create disk.qcow2 before-upgrade',
    'vimgfs snapshot list disk.qcow2',
    'vimgfs snapshot revert disk.qcow2 before-upgrade',
    'vimgfs snapshot delete disk.qcow2 --older-than 30d',
    'vimgfs snapshot create disk.vmdk before-upgrade',
  ],
}
