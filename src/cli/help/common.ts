/** Options that several commands have in common. */
import type { Options } from './description.js'

export const PROGRESS = {
  type: 'boolean',
  short: 'p',
  help: 'show progress also if standard error is no terminal',
} as const satisfies Options[string]

export const QUIET = {
  type: 'boolean',
  short: 'q',
  help: 'print errors and warnings only',
} as const satisfies Options[string]

export const FORMAT = {
  type: 'string',
  short: 'f',
  value: 'F',
  help: '{formats} (found by its bytes)',
} as const satisfies Options[string]

export const ALLOW_PATH = {
  type: 'string',
  multiple: true,
  value: 'DIR',
  help: 'IMAGE may also name files below DIR (its own folder)',
} as const satisfies Options[string]
