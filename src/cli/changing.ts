/** The parts that the commands share which change an image in its place: commit, rebase, resize. */
import { printable } from '../errors.js'
import { parseChoice } from './arguments.js'
import { complain } from './output.js'
import { passphraseSource } from './passphrase.js'
import { Progress } from './progress.js'
import { turn } from './turn.js'

interface Values {
  readonly format?: string
  readonly force?: boolean
  readonly progress?: boolean
  readonly quiet?: boolean
  readonly 'allow-path'?: string[]
  readonly 'passphrase-file'?: string[]
}

/** Calls `work` with what the options say. Then it prints the warnings. Throws what `work` throws, and UsageError. */
export async function changing<R extends { readonly warnings: readonly string[] }>(
  values: Values,
  work: (settings: Awaited<ReturnType<typeof settingsOf>>) => Promise<R>,
): Promise<R> {
  const settings = await settingsOf(values)
  try {
    const result = await work(settings)
    settings.end()
    for (const warning of result.warnings) complain(`vimgfs: ${printable(warning)}\n`)
    return result
  } finally {
    settings.end()
  }
}

async function settingsOf(values: Values) {
  const format = await formatOf(values.format, '--format')
  const files = values['passphrase-file'] ?? []
  const passphrases = passphraseSource(files, new AbortController().signal)
  const progress = new Progress(0, { force: values.progress, quiet: values.quiet })
  return {
    format,
    force: values.force ?? false,
    allowPaths: values['allow-path'] ?? [],
    ask: passphrases.ask,
    progress: turn((done: number, total: number) => progress.update(done, total)),
    end: () => {
      progress.end()
      passphrases.close()
    },
  }
}

/** Returns the format that `option` names. Throws UsageError. */
export async function formatOf(value: string | undefined, option: string) {
  const { FORMAT_NAMES } = await import('../formats/registry.js')
  return value === undefined ? undefined : parseChoice(value, option, FORMAT_NAMES)
}
