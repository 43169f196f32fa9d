/** The candidates that shells offer for the words that descriptions of commands use for values. */

export type Offer =
  /** Paths, which the shell itself completes. */
  | 'files'
  | 'folders'
  /** An image, or IMAGE@TAG. */
  | 'disks'
  | 'tags'
  | 'mounts'
  | 'commands'
  | 'readable formats'
  | 'creatable formats'
  | 'create options'
  | 'cache modes'
  /** Nothing: only the user knows it. */
  | 'nothing'

/** By the word, as `value` of an option, a word of `words`, or what follows = in a list of options. */
export const OFFERS: Readonly<Record<string, Offer>> = {
  FILE: 'files',
  IMAGE: 'files',
  BASE: 'files',
  DST: 'files',
  DIR: 'folders',
  'IMAGE[@TAG]': 'disks',
  SRC: 'disks',
  TAG: 'tags',
  MOUNTPOINT: 'mounts',
  COMMAND: 'commands',
  F: 'readable formats',
  FMT: 'creatable formats',
  'NAME=VALUE,…': 'create options',
  MODE: 'cache modes',
  ...nothing('SIZE', 'N', 'ID', 'AGE', 'SECONDS', 'OCTAL', 'NAME', 'S', 'HOST', 'PORT', 'ADDRESS'),
}

/** Returns a word of `words` as OFFERS has it: `[TAG…]` is TAG. */
export function plain(word: string): string {
  const whole = word.replace(/^\[(.*)\]$/, '$1')
  return whole.endsWith('…') && !whole.endsWith(',…') ? whole.slice(0, -1) : whole
}

function nothing(...words: string[]): Record<string, 'nothing'> {
  return Object.fromEntries(words.map(word => [word, 'nothing']))
}
