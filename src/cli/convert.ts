/** `vimgfs convert`: copies a disk into an image of another kind. */
import path from 'node:path'
import { MountError, printable, UsageError } from '../errors.js'
import { baseNamed } from '../image/convert/base.js'
import {
  convertInto,
  convertToNew,
  requireOther,
  verify,
  type Watching,
} from '../image/convert/convert.js'
import { type ConvertSource, JoinedDisk } from '../image/convert/joined-disk.js'
import type { OptionValues } from '../formats/creating.js'
import { creatorOf } from '../image/making/new-image.js'
import type { Loss } from '../image/reading/salvage.js'
import { openSource, type Source } from '../image/reading/source.js'
import { parseCount, parseWords } from './arguments.js'
import { OPTIONS } from './help/convert.js'
import { BACKING_OPTIONS, parseCreateOptions, printOptions, wantsList } from './create-options.js'
import { complain } from './output.js'
import type { PassphraseSource } from './passphrase.js'
import { Progress } from './progress.js'
import { checkCacheMode, piecesOf } from './qemu-options.js'
import { formatNamed, SourceOpener } from './sources.js'
import { SECTOR_BYTES } from '../sector.js'
import { parseDiskSize } from '../sizes.js'
import { hintAtSuffix } from './suffix-hint.js'

/** Runs of so many zeros are not stored, as with qemu-img. */
const SPARSE_BYTES = 4096
/** The limit of qemu-img. */
const MAX_SPARSE_BYTES = 16 * 2 ** 20
const EXIT = { done: 0, salvaged: 3 }

type Values = ReturnType<typeof parsed>['values']

const parsed = (args: string[], required: readonly string[]) =>
  parseWords(args, OPTIONS, 'convert', { required, hasMore: true })

export async function run(args: string[]): Promise<number> {
  const { 'output-format': format = 'raw', options = [] } = parsed(args, []).values
  if (wantsList(options)) {
    printOptions((await creatorOf(await formatNamed(format, '-O'))).options, format)
    return 0
  }
  const { values, positionals } = parsed(args, ['SRC', 'DST'])
  const [names, target] = [positionals.slice(0, -1), positionals.at(-1) as string]
  check(values)
  if (names.length > 1) checkJoined(values)
  const conversion = new Conversion(values, target)
  return conversion.run(names as [string, ...string[]])
}

/** Throws UsageError for options that do not go together. */
function check(values: Values): void {
  const { base, 'base-format': baseFormat } = values
  if (baseFormat !== undefined && base === undefined) throw new UsageError('-F needs -B')
  if (values.coroutines !== undefined) parseCount(values.coroutines, '-m', 1, 16)
  checkCacheMode(values.cache, '-t')
  checkCacheMode(values['source-cache'], '-T')
  if (values['rate-limit'] !== undefined) {
    throw new UsageError('-r is not supported: nothing limits the rate; leave it out')
  }
  if (values['skip-broken-bitmaps'] && !values.bitmaps) {
    throw new UsageError('--skip-broken-bitmaps needs --bitmaps')
  }
  if (!values['no-create']) {
    if (values['target-is-zero']) throw new UsageError('--target-is-zero needs -n')
    return
  }
  const refused = [
    ['-c', values.compress],
    ['-o', values.options],
    ['-B', base],
    ['--force', values.force],
    ['--bitmaps', values.bitmaps],
  ].find(([, value]) => value !== undefined)
  if (refused) {
    throw new UsageError(`${refused[0]} says how to make the target, and -n makes none`)
  }
}

/** Returns how many zeros in a row take no space. Throws UsageError. */
function sparseBytesOf(text: string | undefined): number {
  if (text === undefined) return SPARSE_BYTES
  const bytes = parseDiskSize(text, '-S')
  if (bytes % SECTOR_BYTES === 0 && bytes <= MAX_SPARSE_BYTES) return bytes
  throw new UsageError(`-S takes a multiple of ${SECTOR_BYTES} up to 16M, not "${text}"`)
}

/** Throws UsageError for options that are for one source only. */
function checkJoined({ snapshot, base, bitmaps, options = [] }: Values): void {
  const single = { '-l': snapshot, '-B': base, '--bitmaps': bitmaps }
  const [what] = Object.entries(single).find(([, value]) => value !== undefined) ?? []
  const named = what ?? options.flatMap(piecesOf).find(option => option.startsWith('backing_'))
  if (named === undefined) return
  throw new UsageError(`${named} is for one source, and these are several`)
}

/** Returns the bitmaps of an image, and says which are left out. Throws ImageError. */
async function bitmapsOf(source: ConvertSource, skipsBroken: boolean) {
  const { readBitmaps } = await import('../image/convert/bitmaps.js')
  const onBroken = (name: string) =>
    say(`${source.path}: bitmap "${name}" is left out: it was not closed`)
  return readBitmaps(source as Source, skipsBroken ? onBroken : undefined)
}

interface Base {
  readonly name: string
  readonly format: string | undefined
}

/** Returns the base that -B and -F, or the options of the same meaning, name. Throws UsageError if both do. */
function baseOf(
  { base, 'base-format': format }: Values,
  backingFile: OptionValues[string] | undefined,
  backingFormat: OptionValues[string] | undefined,
): Base | undefined {
  if (backingFile === undefined && backingFormat !== undefined && base === undefined) {
    throw new UsageError('backing_fmt needs -B, the backing file')
  }
  if (base !== undefined && backingFile !== undefined && base !== backingFile) {
    throw new UsageError(`-B names ${base}, and backing_file ${backingFile}; give one of them`)
  }
  const name = base ?? backingFile
  const stated = format ?? backingFormat
  return name === undefined ? undefined : { name: String(name), format: stated?.toString() }
}

class Conversion {
  private readonly ending = new AbortController()
  private readonly opener: SourceOpener
  private readonly lost: Loss[] = []
  private readonly sparseBytes: number
  private progress: Progress | undefined

  constructor(
    private readonly values: Values,
    private readonly target: string,
  ) {
    this.opener = new SourceOpener(values, true, this.ending.signal)
    this.sparseBytes = sparseBytesOf(values.sparse)
  }

  /** @param names the sources, whose disks follow one another in the target */
  async run(names: readonly [string, ...string[]]): Promise<number> {
    const source = await this.openSources(names)
    try {
      if (this.values['no-create']) await this.intoExisting(source)
      else await this.intoNew(source)
    } finally {
      this.progress?.end()
      source.close()
      this.opener.close()
    }
    return this.reportLost(source)
  }

  private async openSources(names: readonly [string, ...string[]]): Promise<ConvertSource> {
    if (names.length === 1) return this.opener.openChosen(names[0], this.values.snapshot)
    const sources: Source[] = []
    try {
      for (const name of names) sources.push(await this.opener.open(name))
      return new JoinedDisk(sources as [Source, ...Source[]])
    } catch (error) {
      for (const source of sources) source.close()
      throw error
    }
  }

  private async intoNew(source: ConvertSource): Promise<void> {
    const { values, target } = this
    const format = await formatNamed(values['output-format'] ?? 'raw', '-O')
    const creator = await creatorOf(format)
    const known = [...BACKING_OPTIONS, ...creator.options]
    const given = parseCreateOptions(known, values.options ?? [], format)
    const { backing_file, backing_fmt, ...options } = given
    const skipsBroken = values['skip-broken-bitmaps'] === true
    const isEncrypted = creator.isEncrypted?.(options) === true
    if (!isEncrypted && values['target-passphrase-file'] !== undefined) {
      throw new UsageError(
        '--target-passphrase-file is for encrypted targets: -o encrypt.format=luks',
      )
    }
    const base = await this.openBase(baseOf(values, backing_file, backing_fmt))
    const passphrase = isEncrypted ? await this.newPassphrase() : undefined
    try {
      await convertToNew(
        source,
        {
          ...{ path: target, format, options, base, passphrase },
          isPacked: values.compress === true,
          sparseBytes: this.sparseBytes,
          force: values.force === true,
          isVerified: values.verify === true,
          ...(values.bitmaps && { bitmaps: () => bitmapsOf(source, skipsBroken) }),
        },
        this.watching(source.sizeBytes),
      )
      if (values['output-format'] === undefined) hintAtSuffix(target, '-O')
    } finally {
      passphrase?.fill(0)
      base?.source.close()
    }
  }

  /** Opens the image that the target will stand on. A relative name is relative to the target's folder, as with qemu-img. */
  private async openBase(given: Base | undefined) {
    if (!given) return undefined
    const { name, format: stated } = given
    const full = path.resolve(path.dirname(this.target), name)
    const source = await this.opener.openSecond(full, stated)
    return baseNamed(name, source)
  }

  private async newPassphrase(): Promise<Buffer> {
    const passphrases = await this.targetPassphrases()
    try {
      return await passphrases.askNew(path.resolve(this.target))
    } finally {
      passphrases.close()
    }
  }

  private async targetPassphrases() {
    const { passphraseSource } = await import('./passphrase.js')
    const file = this.values['target-passphrase-file']
    return passphraseSource(file === undefined ? [] : [file], this.ending.signal, TARGET_FILE)
  }

  /** Writes into an image that is there, and closes it well whatever happens. */
  private async intoExisting(source: ConvertSource): Promise<void> {
    const passphrases = await this.targetPassphrases()
    try {
      const format = await this.overwrite(source, passphrases)
      if (this.values.verify) await this.verify(source, format, passphrases)
    } finally {
      passphrases.close()
    }
  }

  /** Returns the target's format. */
  private async overwrite(source: ConvertSource, passphrases: PassphraseSource): Promise<string> {
    const { values, target } = this
    const [{ openImage }, { namingItsMount }, { formatOfImage }] = await Promise.all([
      import('../image/open-image.js'),
      import('../image/opening/mounted.js'),
      import('../image/checking/check.js'),
    ])
    requireOther(target, source.files)
    const stated = values['output-format']
    const image = await openImage(target, {
      access: 'write',
      // As with qemu-img, a target that is no image is raw: a new volume has nothing that could be known.
      format:
        stated === undefined
          ? formatOfImage(target, undefined).name
          : await formatNamed(stated, '-O'),
      allowPaths: values['allow-path'] ?? [],
      passphrase: passphrases.ask,
    }).catch(error => {
      throw namingItsMount(error)
    })
    for (const warning of image.warnings) say(warning)
    const end = () =>
      this.ending.abort(new MountError('interrupted; a part of the target has been written'))
    for (const signal of ENDING_SIGNALS) process.on(signal, end)
    try {
      const watching = this.watching(source.sizeBytes)
      await convertInto(source, image.disk, image.path, this.sparseBytes, watching)
    } finally {
      for (const signal of ENDING_SIGNALS) process.off(signal, end)
      for (const warning of image.close()) say(warning)
    }
    return image.format
  }

  /** Reads the target as any reader would, and compares. */
  private async verify(
    source: ConvertSource,
    format: string,
    { ask }: PassphraseSource,
  ): Promise<void> {
    const allowPaths = this.values['allow-path'] ?? []
    const written = await openSource(path.resolve(this.target), { format, allowPaths, ask })
    try {
      await verify(source, written, {
        onProgress: offset => this.progress?.update(source.sizeBytes + offset),
        // They have been reported by the first reading.
        onLoss: this.values.salvage ? () => {} : undefined,
      })
    } finally {
      written.close()
    }
  }

  private watching(sizeBytes: number): Watching {
    const { progress: force, quiet, verify, salvage } = this.values
    const progress = new Progress(verify ? 2 * sizeBytes : sizeBytes, { force, quiet })
    this.progress = progress
    return {
      onProgress: offset => progress.update(offset),
      onLoss: salvage
        ? (offset, length, { message: reason }) => void this.lost.push({ offset, length, reason })
        : undefined,
      signal: this.ending.signal,
    }
  }

  /** Lists the places that could not be read. Returns the exit code. */
  private reportLost(source: ConvertSource): number {
    if (this.lost.length === 0) return EXIT.done
    const places = joined(this.lost)
    for (const { offset, length, reason } of places) {
      const what = `${length} bytes at ${offset} are zeros in the target: ${reason}`
      say(`${source.path}: ${what}`)
    }
    return EXIT.salvaged
  }
}

/** The option with the passphrase of the target. */
const TARGET_FILE = '--target-passphrase-file'
const ENDING_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

const say = (line: string) => complain(`vimgfs: ${printable(line)}\n`)

/** Returns the places in order, with neighbours joined. */
function joined(places: readonly Loss[]): Loss[] {
  const all: Loss[] = []
  for (const place of places.toSorted((a, b) => a.offset - b.offset)) {
    const last = all.at(-1)
    const end = place.offset + place.length
    if (last && last.offset + last.length >= place.offset) {
      all[all.length - 1] = { ...last, length: Math.max(last.length, end - last.offset) }
    } else all.push(place)
  }
  return all
}
