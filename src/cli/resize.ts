/** `vimgfs resize`: makes the disk of an image larger or smaller. */
import { printable, UsageError } from '../errors.js'
import { parseChoice, parseWords } from './arguments.js'
import { humanSize } from './human.js'
import { complain, print } from './output.js'
import { passphraseSource } from './passphrase.js'
import { Progress } from './progress.js'
import { parseSizeChange } from './sizes.js'
import { turn } from './turn.js'

const OPTIONS = {
  format: { type: 'string', short: 'f' },
  shrink: { type: 'boolean' },
  preallocation: { type: 'string' },
  upgrade: { type: 'boolean' },
  force: { type: 'boolean' },
  output: { type: 'string' },
  progress: { type: 'boolean', short: 'p' },
  quiet: { type: 'boolean', short: 'q' },
  'allow-path': { type: 'string', multiple: true },
  'passphrase-file': { type: 'string', multiple: true },
} as const

export async function run(args: string[]): Promise<number> {
  const { FORMAT_NAMES } = await import('../formats/registry.js')
  const { resizeImage } = await import('../image/resize.js')
  const words = { required: ['IMAGE', 'SIZE'], takesNegative: true }
  const { values, positionals } = parseWords(args, OPTIONS, 'resize', words)
  const [name, sizeText] = positionals as [string, string]
  const { quiet = false, format, preallocation } = values
  const output = parseChoice(values.output ?? 'human', '--output', ['human', 'json'])
  const { sign, bytes } = parseSizeChange(sizeText, 'SIZE')
  if (sign === '-' && !values.shrink) {
    throw new UsageError('a smaller disk needs --shrink: its end is cut off')
  }
  const modes = ['off', 'metadata', 'falloc', 'full'] as const
  const passphrases = passphraseSource(
    values['passphrase-file'] ?? [],
    new AbortController().signal,
  )
  const progress = new Progress(0, { force: values.progress, quiet })
  try {
    const resized = await resizeImage(name, {
      format: format && parseChoice(format, '--format', FORMAT_NAMES),
      allowPaths: values['allow-path'] ?? [],
      sizeOf: now => (sign === undefined ? bytes : sign === '+' ? now + bytes : now - bytes),
      shrinks: values.shrink ?? false,
      preallocation: parseChoice(preallocation ?? 'off', '--preallocation', modes),
      upgrades: values.upgrade ?? false,
      force: values.force ?? false,
      ask: passphrases.ask,
      progress: turn((done, total) => progress.update(done, total)),
    })
    progress.end()
    for (const warning of resized.warnings) complain(`vimgfs: ${printable(warning)}\n`)
    const { beforeBytes, afterBytes, lostBytes } = resized
    if (output === 'json') {
      const fields = { filename: name, before: beforeBytes, after: afterBytes, lost: lostBytes }
      print(`${JSON.stringify(fields, undefined, 4)}\n`)
    } else if (!quiet) {
      const lost = lostBytes > 0 ? `; ${humanSize(lostBytes)} of data were cut off` : ''
      const sizes = `${humanSize(afterBytes)} (before: ${humanSize(beforeBytes)})`
      print(`${printable(name)}: ${sizes}${lost}\n`)
    }
    return 0
  } finally {
    progress.end()
    passphrases.close()
  }
}
