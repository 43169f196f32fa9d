/** The options and the help of `vimgfs stats`. */
import type { CommandHelp, Options } from './description.js'

export const OPTIONS = {
  watch: {
    type: 'string',
    value: '[S]',
    help: 'print the rates every S seconds (1), until the mount ends or you press Ctrl-C',
  },
  json: { type: 'boolean', help: 'print JSON; with --watch one object in each line' },
  openmetrics: { type: 'boolean', help: 'print the counts as OpenMetrics text, for Prometheus' },
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['[--watch [S]] [--json] MOUNTPOINT', '--openmetrics MOUNTPOINT'],
  words: 'MOUNTPOINT',
  summary: 'show what a mount has served, as rates',
  text: [
    `Shows requests and bytes since mounting and for each second, errors, flushes, and how long
      requests took. Looking takes a few requests, which count, too.`,
  ],
  options: OPTIONS,
  examples: ['vimgfs stats --watch 5 /mnt/x'],
}
