/** The options and the help of `vimgfs resize`. */
import { ALLOW_PATH, FORMAT, PROGRESS, QUIET } from './common.js'
import type { CommandHelp, Options } from './description.js'

export const OPTIONS = {
  shrink: {
    type: 'boolean',
    help: `the disk may become smaller. If there is data past its new end, the line says how much, and
      nothing is cut off without --force.`,
  },
  preallocation: {
    type: 'string',
    value: 'MODE',
    choices: ['off', 'metadata', 'falloc', 'full'],
    help: `what of the new part to allocate: off (the default), metadata (its tables), falloc (its
      space), full (written with zeros)`,
  },
  upgrade: {
    type: 'boolean',
    help: 'raise the version of a qcow2 image to 3 if its snapshots need that',
  },
  force: {
    type: 'boolean',
    help: 'cut data off; also change an image that others in its folder stand on',
  },
  output: {
    type: 'string',
    choices: ['human', 'json'],
    help: 'what to print: a line, or filename, before, after and lost in bytes',
  },
  progress: PROGRESS,
  quiet: QUIET,
  format: FORMAT,
  'allow-path': ALLOW_PATH,
  'passphrase-file': {
    type: 'string',
    multiple: true,
    value: 'FILE',
    help: 'as for mount',
  },
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[OPTION…] IMAGE [+|-]SIZE'],
  words: 'IMAGE SIZE',
  summary: 'make a disk larger or smaller',
  text: [
    `Makes IMAGE's disk larger or smaller: SIZE (512M, 20G, 1.5T), or the difference to it. The
      new part reads as zeros. Sizes are rounded up to 512 bytes. {resizable} images have sizes
      that change.`,
  ],
  options: OPTIONS,
  notes: [
    `IMAGE may be mounted, and named by its mount point; then its disk only grows. Nobody else
      may have it open. Shrink partitions and file systems before the disk, and let them grow
      after it.`,
  ],
  examples: ['vimgfs resize disk.qcow2 +10G'],
}
