/**
 * The description of a command: the one source of its parsing, its help, its page of the manual and its completion.
 */

import type { Offer } from '../completion/values.js'

export interface OptionHelp {
  readonly type: 'boolean' | 'string'
  readonly short?: string
  readonly multiple?: boolean
  /** The word for its value. `src/cli/completion/values.ts` says for each word what shells offer. */
  readonly value?: string
  /** All values that it takes. The help shows them in place of `value`, unless there is one. */
  readonly choices?: readonly string[]
  /** Its effect. Neighbours with the same text are shown together. */
  readonly help: string
  /** The actions that know it, for a command that has actions: all, if this is missing. */
  readonly actions?: readonly string[]
}

/** All options of a command, as `parse` of arguments.ts takes them, by their long names and in the order of the help. */
export type Options = Readonly<Record<string, OptionHelp>>

/** Rows of a term and what it means. */
export type Rows = readonly (readonly [term: string, text: string])[]

/** A paragraph or rows. Line breaks do not count. */
export type Block = string | Rows

/**
 * Any text may contain {formats}, {readable}, {checkable}, {creatable} and {resizable}, which are names of formats; that of an
 * option also {choices}.
 */
export interface CommandHelp {
  /** The words after the command's name on the command line; one entry for each way to call it. */
  readonly usage: readonly string[]
  /** The same in the shortest form. The words are in the order in which they follow on the command line, for completion. */
  readonly words: string
  /** The candidates that shells offer for a word if not those of its name (`src/cli/completion/values.ts`). */
  readonly offers?: Readonly<Record<string, Offer>>
  /** All that the first word can be, if it is none of the user's. */
  readonly actions?: readonly string[]
  /** One line about the command, in the list of all commands. */
  readonly summary: string
  readonly text: readonly Block[]
  readonly options: Options
  /** Rows under an option, by its name. */
  readonly suboptions?: Readonly<Record<string, Rows>>
  readonly notes?: readonly Block[]
  /** The meaning of each exit code, if not 0 done, 1 not done and 2 wrong usage. */
  readonly exit?: string
  readonly examples: readonly string[]
}
