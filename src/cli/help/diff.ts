/** The options and the help of `vimgfs diff`. */
import type { CommandHelp, Options } from './description.js'
import { REMOTE_OPTIONS } from './remote.js'

export const OPTIONS = {
  exact: {
    type: 'boolean',
    help: 'read what the tables do not show to be equal, and compare it',
  },
  output: {
    type: 'string',
    value: 'KIND',
    choices: ['human', 'json', 'ddrescue'],
    help: `human: for people (the default); json: [{"start", "length"}]; ddrescue: a map for ddrescue
      -m: + changed, ? not changed`,
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
  progress: {
    type: 'boolean',
    short: 'p',
    help: 'with --exact: show progress also if standard error is no terminal',
  },
  quiet: {
    type: 'boolean',
    short: 'q',
    help: 'show no progress',
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
    help: 'with --exact: see vimgfs help mount',
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
  ...REMOTE_OPTIONS,
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[OPTION…] IMAGE TAG [TAG]', '[OPTION…] IMAGE[@TAG] IMAGE[@TAG]'],
  words: 'IMAGE[@TAG] TAG TAG',
  summary: 'show what has changed since a snapshot',
  text: [
    `Shows which parts of a disk have changed since the snapshot TAG, or between two snapshots,
      or between two images that have backing files in common. It reads tables only, so it is
      fast: what lies at the same place of a file is equal, everything else counts as changed,
      whole clusters at a time, also if they have the same content. What only the larger disk has
      counts as changed.`,
  ],
  options: OPTIONS,
  notes: [
    `If the second word is both a tag of IMAGE and a file, it is the tag; write ./FILE for the
      file.`,
  ],
  exit: '0 also if something changed, 1 error, 2 wrong usage',
  examples: ['vimgfs diff disk.qcow2 before-upgrade'],
}
