/** `vimgfs resize`: makes the disk of an image larger or smaller. */
import { printable, UsageError } from '../errors.js'
import { parseChoice, parseWords } from './arguments.js'
import { OPTIONS } from './help/resize.js'
import { changing } from './changing.js'
import { humanSize } from './human.js'
import { print } from './output.js'
import { requireWhole } from './qemu-options.js'
import { parseSizeChange } from '../sizes.js'

export async function run(args: string[]): Promise<number> {
  const { resizeImage } = await import('../image/changing/resize.js')
  const words = { required: ['IMAGE', 'SIZE'], takesNegative: true }
  const { values, positionals } = parseWords(args, OPTIONS, 'resize', words)
  const [name, sizeText] = positionals as [string, string]
  requireWhole(name, 'resize')
  const output = parseChoice(values.output ?? 'human', '--output', OPTIONS.output.choices)
  const { sign, bytes } = parseSizeChange(sizeText, 'SIZE')
  if (sign === '-' && !values.shrink) {
    throw new UsageError('a smaller disk needs --shrink: its end is cut off')
  }
  const preallocation = parseChoice(
    values.preallocation ?? 'off',
    '--preallocation',
    OPTIONS.preallocation.choices,
  )
  const mounted = await resizeMounted(name, { sign: sign ?? '', bytes }, values)
  const { beforeBytes, afterBytes, lostBytes } =
    mounted ??
    (await changing(values, settings =>
      resizeImage(name, {
        ...settings,
        sizeOf: now => (sign === undefined ? bytes : sign === '+' ? now + bytes : now - bytes),
        shrinks: values.shrink ?? false,
        preallocation,
        upgrades: values.upgrade ?? false,
      }),
    ))
  if (output === 'json') {
    const fields = { filename: name, before: beforeBytes, after: afterBytes, lost: lostBytes }
    print(`${JSON.stringify(fields, undefined, 4)}\n`)
  } else if (!values.quiet) {
    const lost = lostBytes > 0 ? `; ${humanSize(lostBytes)} of data were cut off` : ''
    const sizes = `${humanSize(afterBytes)} (before: ${humanSize(beforeBytes)})`
    print(`${printable(name)}: ${sizes}${lost}\n`)
    for (const device of mounted?.loops ?? []) {
      print(`${device} stands on it, and learns the size by: losetup -c ${device}\n`)
    }
  }
  return 0
}

type Values = ReturnType<typeof parseWords<typeof OPTIONS>>['values']

/** Makes the disk larger through the server that has the image mounted. Returns undefined if none has. Throws MountError. */
async function resizeMounted(
  name: string,
  size: { readonly sign: string; readonly bytes: number },
  values: Values,
) {
  const { ask, ifMounted, learnSize } = await import('./mounted.js')
  const { standingOn } = await import('../control/standing-on.js')
  const resized = await ifMounted(name, async server => {
    for (const option of ['preallocation', 'upgrade'] as const) {
      if (option in values) throw new UsageError(`--${option} is not for images that are mounted`)
    }
    const { force, quiet } = { force: values.progress, quiet: values.quiet }
    const answer = await ask(server, { do: 'resize', ...size }, { force, quiet })
    await learnSize(server)
    const { beforeBytes, afterBytes } = (answer ?? {}) as Record<string, unknown>
    const { device, diskFiles } = server.greeting
    const { loops } = standingOn(device, diskFiles.slice(0, 1))
    return { beforeBytes: Number(beforeBytes), afterBytes: Number(afterBytes), lostBytes: 0, loops }
  })
  return resized?.result
}
