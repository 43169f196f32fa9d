/** `vimgfs commit`: writes what an image holds into its backing file. */
import { printable } from '../errors.js'
import { parse, parseChoice } from './arguments.js'
import { humanSize } from './human.js'
import { complain, print } from './output.js'
import { passphraseSource } from './passphrase.js'
import { Progress } from './progress.js'
import { turn } from './turn.js'

const OPTIONS = {
  format: { type: 'string', short: 'f' },
  base: { type: 'string', short: 'b' },
  keep: { type: 'boolean', short: 'd' },
  'ignore-cid': { type: 'boolean' },
  force: { type: 'boolean' },
  progress: { type: 'boolean', short: 'p' },
  quiet: { type: 'boolean', short: 'q' },
  'allow-path': { type: 'string', multiple: true },
  'passphrase-file': { type: 'string', multiple: true },
} as const

export async function run(args: string[]): Promise<number> {
  const { FORMAT_NAMES } = await import('../formats/registry.js')
  const { commitImage } = await import('../image/commit.js')
  const { values, positionals } = parse(args, OPTIONS, 'commit', ['IMAGE'])
  const [name] = positionals as [string]
  const { quiet = false } = values
  const format =
    values.format === undefined ? undefined : parseChoice(values.format, '--format', FORMAT_NAMES)
  const passphrases = passphraseSource(
    values['passphrase-file'] ?? [],
    new AbortController().signal,
  )
  const progress = new Progress(0, { force: values.progress, quiet })
  try {
    const { base, bytes, isEmptied, warnings } = await commitImage(name, {
      format,
      base: values.base,
      keep: values.keep ?? false,
      ignoreCid: values['ignore-cid'] ?? false,
      force: values.force ?? false,
      allowPaths: values['allow-path'] ?? [],
      ask: passphrases.ask,
      progress: turn((done, total) => progress.update(done, total)),
    })
    progress.end()
    for (const warning of warnings) complain(`vimgfs: ${printable(warning)}\n`)
    const state = isEmptied ? 'which is empty now' : 'which keeps its data'
    const text = `${humanSize(bytes)} of ${printable(name)}, ${state}, are in ${printable(base)}\n`
    if (!quiet) print(text)
    return 0
  } finally {
    progress.end()
    passphrases.close()
  }
}
