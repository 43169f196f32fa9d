/** `vimgfs commit`: writes what an image holds into its backing file. */
import { printable } from '../errors.js'
import { parse } from './arguments.js'
import { OPTIONS } from './help/commit.js'
import { changing } from './changing.js'
import { humanSize } from './human.js'
import { print } from './output.js'
import { checkCacheMode, requireWhole } from './qemu-options.js'

export async function run(args: string[]): Promise<number> {
  const { commitImage } = await import('../image/changing/commit.js')
  const { values, positionals } = parse(args, OPTIONS, 'commit', ['IMAGE'])
  checkCacheMode(values.cache, '-t')
  const [name] = positionals as [string]
  requireWhole(name, 'commit')
  const { base, bytes, isEmptied } = await changing(values, settings =>
    commitImage(name, {
      ...settings,
      base: values.base,
      keep: values.keep ?? false,
      ignoreCid: values['ignore-cid'] ?? false,
    }),
  )
  const state = isEmptied ? 'which is empty now' : 'which keeps its data'
  const text = `${humanSize(bytes)} of ${printable(name)}, ${state}, are in ${printable(base)}\n`
  if (!values.quiet) print(text)
  return 0
}
