/** The options and the help of `vimgfs commit`. */
import { ALLOW_PATH, FORMAT, PROGRESS, QUIET } from './common.js'
import type { CommandHelp, Options } from './description.js'

export const OPTIONS = {
  base: {
    type: 'string',
    short: 'b',
    value: 'FILE',
    help: `write into FILE, one of the images that IMAGE stands on; IMAGE keeps its data (the nearest)`,
  },
  keep: {
    type: 'boolean',
    short: 'd',
    help: 'do not make IMAGE empty',
  },
  'ignore-cid': {
    type: 'boolean',
    help: 'read a vmdk whose parent has changed since, as after a commit that was cut off',
  },
  force: {
    type: 'boolean',
    help: 'also if other images, or snapshots of IMAGE, read from the base: that breaks them',
  },
  progress: PROGRESS,
  quiet: QUIET,
  format: FORMAT,
  'allow-path': ALLOW_PATH,
  'passphrase-file': {
    type: 'string',
    multiple: true,
    value: 'FILE',
    help: 'as for mount: of IMAGE and the encrypted layers below, then of the base',
  },
  cache: {
    type: 'string',
    short: 't',
    value: 'MODE',
    help: "taken for qemu-img's sake; it changes nothing",
  },
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[OPTION…] IMAGE'],
  words: 'IMAGE',
  summary: 'write what an image holds into its backing file',
  text: [
    `Writes what IMAGE holds into its backing file, and makes IMAGE empty. The base grows if
      IMAGE's disk is larger. Until the base has the data for good, IMAGE keeps them. A vmdk
      follows the content ID of its parent. Only qcow2 images can be made empty; others keep their
      data, and read the same.`,
  ],
  options: OPTIONS,
  notes: ['Nobody else may have IMAGE or its base open.'],
  examples: ['vimgfs commit overlay.qcow2'],
}
