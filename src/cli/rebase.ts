/** `vimgfs rebase`: gives an image another backing file. */
import { printable, UsageError } from '../errors.js'
import { parse } from './arguments.js'
import { OPTIONS } from './help/rebase.js'
import { changing, formatOf } from './changing.js'
import { humanSize } from './human.js'
import { print } from './output.js'
import { checkCacheMode, requireWhole } from './qemu-options.js'

export async function run(args: string[]): Promise<number> {
  const { rebaseImage } = await import('../image/changing/rebase.js')
  const { values, positionals } = parse(args, OPTIONS, 'rebase', ['IMAGE'])
  checkCacheMode(values.cache, '-t')
  checkCacheMode(values['source-cache'], '-T')
  const [name] = positionals as [string]
  requireWhole(name, 'rebase')
  const { backing } = values
  if (backing === undefined) {
    throw new UsageError(
      '-b BASE is missing (-b "" for none); vimgfs help rebase shows how to call it',
    )
  }
  const backingFormat = await formatOf(values['backing-format'], '--backing-format')
  const { bytes } = await changing(values, settings =>
    rebaseImage(name, {
      ...settings,
      backing: backing === '' ? undefined : backing,
      backingFormat,
      isUnsafe: values.unsafe ?? false,
    }),
  )
  const base = backing === '' ? 'no backing file' : printable(backing)
  const copied = values.unsafe ? '' : `; ${humanSize(bytes)} were copied into it`
  if (!values.quiet) print(`${printable(name)} stands on ${base} now${copied}\n`)
  return 0
}
