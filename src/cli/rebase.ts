/** `vimgfs rebase`: gives an image another backing file. */
import { printable, UsageError } from '../errors.js'
import { parse, parseChoice } from './arguments.js'
import { humanSize } from './human.js'
import { complain, print } from './output.js'
import { passphraseSource } from './passphrase.js'
import { Progress } from './progress.js'
import { turn } from './turn.js'

const OPTIONS = {
  format: { type: 'string', short: 'f' },
  backing: { type: 'string', short: 'b' },
  'backing-format': { type: 'string', short: 'F' },
  unsafe: { type: 'boolean', short: 'u' },
  force: { type: 'boolean' },
  progress: { type: 'boolean', short: 'p' },
  quiet: { type: 'boolean', short: 'q' },
  'allow-path': { type: 'string', multiple: true },
  'passphrase-file': { type: 'string', multiple: true },
} as const

export async function run(args: string[]): Promise<number> {
  const { FORMAT_NAMES } = await import('../formats/registry.js')
  const { rebaseImage } = await import('../image/rebase.js')
  const { values, positionals } = parse(args, OPTIONS, 'rebase', ['IMAGE'])
  const [name] = positionals as [string]
  const { backing, quiet = false } = values
  if (backing === undefined) {
    throw new UsageError(
      '-b BASE is missing (-b "" for none); vimgfs help rebase shows how to call it',
    )
  }
  const choice = (value: string | undefined, option: string) =>
    value === undefined ? undefined : parseChoice(value, option, FORMAT_NAMES)
  const passphrases = passphraseSource(
    values['passphrase-file'] ?? [],
    new AbortController().signal,
  )
  const progress = new Progress(0, { force: values.progress, quiet })
  try {
    const { bytes, warnings } = await rebaseImage(name, {
      format: choice(values.format, '--format'),
      backing: backing === '' ? undefined : backing,
      backingFormat: choice(values['backing-format'], '--backing-format'),
      isUnsafe: values.unsafe ?? false,
      force: values.force ?? false,
      allowPaths: values['allow-path'] ?? [],
      ask: passphrases.ask,
      progress: turn((done, total) => progress.update(done, total)),
    })
    progress.end()
    for (const warning of warnings) complain(`vimgfs: ${printable(warning)}\n`)
    const base = backing === '' ? 'no backing file' : printable(backing)
    const copied = values.unsafe ? '' : `; ${humanSize(bytes)} were copied into it`
    if (!quiet) print(`${printable(name)} stands on ${base} now${copied}\n`)
    return 0
  } finally {
    progress.end()
    passphrases.close()
  }
}
