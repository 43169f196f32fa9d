/** The options and the help of `vimgfs check`. */
import { FORMAT, PROGRESS } from './common.js'
import type { CommandHelp, Options } from './description.js'
import { REMOTE_OPTIONS } from './remote.js'

export const OPTIONS = {
  output: {
    type: 'string',
    choices: ['human', 'json'],
    help: 'for people (the default) or for programs, with the fields of qemu-img check',
  },
  repair: {
    type: 'string',
    short: 'r',
    choices: ['leaks', 'all'],
    help: `leaks: give back space that nothing uses; all: repair the rest, too. Nobody else may have
      IMAGE open. Have a copy of it. No byte of the disk or of a snapshot reads differently
      afterwards: what cannot be known stays. Snapshots whose tables are lost are dropped; what
      they may own is kept until --repair=leaks. Of a vmdk only sparse extents are repaired that
      are neither compressed nor seSparse.`,
  },
  format: FORMAT,
  'force-share': {
    type: 'boolean',
    short: 'U',
    help: 'check an image that others write: what is found may be wrong',
  },
  'allow-path': {
    type: 'string',
    multiple: true,
    value: 'DIR',
    help: 'a vmdk may also name extents below DIR (its own folder)',
  },
  progress: PROGRESS,
  quiet: {
    type: 'boolean',
    short: 'q',
    help: 'print errors only: the exit code says what was found',
  },
  'source-cache': {
    type: 'string',
    short: 'T',
    value: 'MODE',
    help: "taken for qemu-img's sake; it changes nothing",
  },
  ...REMOTE_OPTIONS,
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[OPTION…] IMAGE'],
  words: 'IMAGE',
  summary: 'find leaks and damage in tables, and repair them',
  text: [
    `Checks the tables of IMAGE ({checkable}): all that is used must be counted, and nothing may
      be used twice. Of a vmdk it checks all extents, but not the parents. IMAGE may be mounted,
      and named by its mount point; then writers wait for the check.`,
  ],
  options: OPTIONS,
  exit: '0 sound, 1 could not be checked, 2 damaged, 3 only space is lost, 63 the format has nothing to check',
  examples: ['vimgfs check disk.qcow2', 'vimgfs check --repair all disk.qcow2'],
}
