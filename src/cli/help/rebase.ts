/** The options and the help of `vimgfs rebase`. */
import { ALLOW_PATH, FORMAT, PROGRESS, QUIET } from './common.js'
import type { CommandHelp, Options } from './description.js'

export const OPTIONS = {
  backing: {
    type: 'string',
    short: 'b',
    value: 'BASE',
    help: `the new backing file, as IMAGE is to name it: a relative name starts in the folder of IMAGE;
      "" for none`,
  },
  'backing-format': {
    type: 'string',
    short: 'F',
    value: 'F',
    help: 'the format of BASE (found by its bytes)',
  },
  unsafe: {
    type: 'boolean',
    short: 'u',
    help: `change the name only: for a backing file that was moved or renamed. If BASE holds something
      else, the disk changes. With -F, BASE need not be there.`,
  },
  force: {
    type: 'boolean',
    help: 'also if other images need IMAGE',
  },
  progress: PROGRESS,
  quiet: QUIET,
  format: FORMAT,
  'allow-path': ALLOW_PATH,
  'passphrase-file': {
    type: 'string',
    multiple: true,
    value: 'FILE',
    help: "as for mount: of IMAGE and the layers below, then of BASE's",
  },
  cache: {
    type: 'string',
    short: 't',
    value: 'MODE',
    help: "taken for qemu-img's sake; they change nothing",
  },
  'source-cache': {
    type: 'string',
    short: 'T',
    value: 'MODE',
    help: "taken for qemu-img's sake; they change nothing",
  },
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['-b BASE [OPTION…] IMAGE'],
  words: 'IMAGE',
  summary: 'make an image stand on another backing file',
  text: [
    `Makes IMAGE (qcow2 or vmdk) stand on BASE. Where the old backing file and BASE differ, IMAGE
      first gets the old content, so its disk reads as before. Images with snapshots are refused,
      because their snapshots would change.`,
  ],
  options: OPTIONS,
  notes: ['Nobody else may have IMAGE open.'],
  examples: ['vimgfs rebase -b new-base.qcow2 overlay.qcow2'],
}
