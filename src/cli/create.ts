/** `vimgfs create`: makes a new image. */
import path from 'node:path'
import { printable, UsageError } from '../errors.js'
import type { OptionValues } from '../formats/creating.js'
import { parseChoice, parseWords } from './arguments.js'
import { OPTIONS } from './help/create.js'
import { humanSize } from './human.js'
import { print } from './output.js'

export async function run(args: string[]): Promise<number> {
  const [{ creatorOf }, { createImage }, texts, { parseDiskSize }] = await Promise.all([
    import('../image/making/new-image.js'),
    import('../image/making/create-image.js'),
    import('./create-options.js'),
    import('../sizes.js'),
  ])
  const { values } = parseWords(args, OPTIONS, 'create', {
    required: [],
    optional: ['FILE', 'SIZE'],
  })
  const { format = 'raw', options: optionTexts = [] } = values
  const creator = await creatorOf(format)
  if (texts.wantsList(optionTexts)) {
    texts.printOptions(creator.options, format)
    return 0
  }
  const known = [...texts.COMMON_OPTIONS, ...creator.options]
  const words = { required: ['FILE'], optional: ['SIZE'] }
  const { positionals } = parseWords(args, OPTIONS, 'create', words)
  const [file, sizeText] = positionals as [string, string?]
  const { size, backing_file, backing_fmt, ...options } = texts.parseCreateOptions(
    known,
    optionTexts,
    format,
  )
  const output = parseChoice(values.output ?? 'human', '--output', OPTIONS.output.choices)
  const sizeBytes =
    sizeText === undefined ? (size as number | undefined) : parseDiskSize(sizeText, 'SIZE')
  if (sizeText !== undefined && size !== undefined && size !== sizeBytes) {
    throw new UsageError(`SIZE is ${sizeText}, and the option size another one; give one of them`)
  }
  const backing = backingOf(
    values.backing ?? (backing_file as string | undefined),
    values['backing-format'] ?? (backing_fmt as string | undefined),
    values.unsafe === true,
    sizeBytes,
  )
  const isEncrypted = creator.isEncrypted?.(options) === true
  if (!isEncrypted && values['passphrase-file'] !== undefined) {
    throw new UsageError('--passphrase-file is for encrypted images: -o encrypt.format=luks')
  }
  const passphrase = isEncrypted ? await passphraseOf(file, values['passphrase-file']) : undefined
  const { Progress } = await import('./progress.js')
  const progress = new Progress(0, { force: values.progress, quiet: values.quiet })
  try {
    await createImage(file, {
      ...{ format, sizeBytes, options: options as OptionValues, backing, passphrase },
      force: values.force === true,
      allowPaths: values['allow-path'] ?? [],
      onProgress: (done, total) => progress.update(done, total),
    })
  } finally {
    progress.end()
    passphrase?.fill(0)
  }
  await report(file, format, output, values.quiet === true)
  if (values.format === undefined) (await import('./suffix-hint.js')).hintAtSuffix(file, '-f')
  return 0
}

function backingOf(
  name: string | undefined,
  format: string | undefined,
  isUnseen: boolean,
  sizeBytes: number | undefined,
) {
  if (name === undefined || name === '') {
    if (format !== undefined) throw new UsageError('-F needs -b, the backing file')
    if (isUnseen) throw new UsageError('-u needs -b, the backing file')
    return undefined
  }
  if (isUnseen && sizeBytes === undefined)
    throw new UsageError('-u needs SIZE, the size of the disk')
  return { name, format, isUnseen }
}

async function passphraseOf(file: string, name: string | undefined): Promise<Buffer> {
  const { passphraseSource } = await import('./passphrase.js')
  const source = passphraseSource(name === undefined ? [] : [name], new AbortController().signal)
  try {
    return await source.askNew(path.resolve(file))
  } finally {
    source.close()
  }
}

async function report(
  file: string,
  format: string,
  output: 'human' | 'json',
  isQuiet: boolean,
): Promise<void> {
  if (output === 'json') {
    await (await import('./info.js')).run(['--output=json', `--format=${format}`, '--', file])
    return
  }
  if (isQuiet) return
  const { describe } = await import('../image/info.js')
  const [info] = describe(file, { format }, false)
  if (info) print(`${printable(file)}: ${format}, ${humanSize(info['virtual-size'])}\n`)
}
