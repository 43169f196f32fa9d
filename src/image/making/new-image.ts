/** Begins new images: finds the format's creator and judges what it is asked for. */
import { UsageError } from '../../errors.js'
import type {
  BackingTarget,
  CreateOption,
  FormatCreator,
  ImageBuilder,
  OptionValues,
  TargetFiles,
} from '../../formats/creating.js'
import { CREATABLE_NAMES, findFormat, listed } from '../../formats/registry.js'
import type { NewFiles } from './new-files.js'
import { SECTOR_BYTES } from '../../sector.js'

export interface NewImageRequest {
  /** The format's name. */
  readonly format: string
  /** In bytes: any size, which is rounded up to whole sectors. */
  readonly sizeBytes: number
  readonly options?: OptionValues
  readonly backing?: BackingTarget | undefined
  readonly passphrase?: Buffer | undefined
}

/** Returns what makes images of a format. Throws UsageError if nothing does. */
export async function creatorOf(name: string): Promise<FormatCreator> {
  const creating = findFormat(name)?.creating
  if (creating) return creating.load()
  throw new UsageError(
    `no images of the format "${name}" can be made, only ${listed(CREATABLE_NAMES, 'and')}`,
  )
}

/** Begins an image in `files`. Throws UsageError for options that are wrong, ImageError, SystemError. */
export async function beginImage(
  files: TargetFiles,
  { format, sizeBytes, options = {}, backing, passphrase }: NewImageRequest,
): Promise<ImageBuilder> {
  const creator = await creatorOf(format)
  checkOptions(creator.options, options, format)
  const sectorBytes = Math.ceil(sizeBytes / SECTOR_BYTES) * SECTOR_BYTES
  if (!Number.isSafeInteger(sectorBytes) || sectorBytes < 0) {
    throw new UsageError(`no disk can have ${sizeBytes} bytes`)
  }
  return creator.begin({ files, sizeBytes: sectorBytes, options, backing, passphrase })
}

/** Returns the files of a new image as a creator wants them. */
export const targetOf = (files: NewFiles): TargetFiles => ({
  path: files.main.path,
  main: files.main.store,
  beside: name => files.beside(name).store,
})

/** Throws UsageError unless all options are known, and have values of their types. */
export function checkOptions(
  known: readonly CreateOption[],
  options: OptionValues,
  format: string,
): void {
  for (const [name, value] of Object.entries(options)) {
    const option = known.find(one => one.name === name)
    if (!option) throw unknownOption(name, format)
    if (!isOfType(option.type, value)) {
      throw new UsageError(`the option ${name} cannot be ${JSON.stringify(value)}`)
    }
  }
}

export const unknownOption = (name: string, format: string): UsageError =>
  new UsageError(
    `${format} has no option "${name}"; vimgfs create -f ${format} -o help lists those that it has`,
  )

function isOfType(type: CreateOption['type'], value: unknown): boolean {
  if (type === 'switch') return typeof value === 'boolean'
  if (type === 'text') return typeof value === 'string'
  if (type === 'size' || type === 'count') return Number.isSafeInteger(value) && Number(value) >= 0
  return typeof value === 'string' && type.includes(value)
}
