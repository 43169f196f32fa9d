/** `vimgfs resize`: makes the disk of an image larger or smaller. */
import { printable, UsageError } from '../errors.js'
import { parseChoice, parseWords } from './arguments.js'
import { CHANGING_OPTIONS, changing } from './changing.js'
import { humanSize } from './human.js'
import { print } from './output.js'
import { parseSizeChange } from '../sizes.js'

const OPTIONS = {
  ...CHANGING_OPTIONS,
  shrink: { type: 'boolean' },
  preallocation: { type: 'string' },
  upgrade: { type: 'boolean' },
  output: { type: 'string' },
} as const

export async function run(args: string[]): Promise<number> {
  const { resizeImage } = await import('../image/resize.js')
  const words = { required: ['IMAGE', 'SIZE'], takesNegative: true }
  const { values, positionals } = parseWords(args, OPTIONS, 'resize', words)
  const [name, sizeText] = positionals as [string, string]
  const output = parseChoice(values.output ?? 'human', '--output', ['human', 'json'])
  const { sign, bytes } = parseSizeChange(sizeText, 'SIZE')
  if (sign === '-' && !values.shrink) {
    throw new UsageError('a smaller disk needs --shrink: its end is cut off')
  }
  const modes = ['off', 'metadata', 'falloc', 'full'] as const
  const preallocation = parseChoice(values.preallocation ?? 'off', '--preallocation', modes)
  const { beforeBytes, afterBytes, lostBytes } = await changing(values, settings =>
    resizeImage(name, {
      ...settings,
      sizeOf: now => (sign === undefined ? bytes : sign === '+' ? now + bytes : now - bytes),
      shrinks: values.shrink ?? false,
      preallocation,
      upgrades: values.upgrade ?? false,
    }),
  )
  if (output === 'json') {
    const fields = { filename: name, before: beforeBytes, after: afterBytes, lost: lostBytes }
    print(`${JSON.stringify(fields, undefined, 4)}\n`)
  } else if (!values.quiet) {
    const lost = lostBytes > 0 ? `; ${humanSize(lostBytes)} of data were cut off` : ''
    const sizes = `${humanSize(afterBytes)} (before: ${humanSize(beforeBytes)})`
    print(`${printable(name)}: ${sizes}${lost}\n`)
  }
  return 0
}
