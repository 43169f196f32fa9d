/** `vimgfs measure`: says how large a new image would be, as `qemu-img measure` does. */
import { UsageError } from '../errors.js'
import { bitmapShapes } from '../image/convert/bitmaps.js'
import { checkOptions, creatorOf } from '../image/making/new-image.js'
import type { BitmapShape } from '../formats/creating.js'
import { SECTOR_BYTES } from '../sector.js'
import { parseChoice, parseWords } from './arguments.js'
import { OPTIONS } from './help/measure.js'
import { BACKING_OPTIONS, parseCreateOptions } from './create-options.js'
import { print } from './output.js'
import { parseDiskSize } from '../sizes.js'
import { SourceOpener } from './sources.js'

interface Disk {
  readonly sizeBytes: number
  readonly data: Iterable<{ readonly offset: number; readonly length: number }>
  /** Those of IMAGE; undefined if it can have none. */
  readonly bitmaps?: readonly BitmapShape[] | undefined
}

export async function run(args: string[]): Promise<number> {
  const words = { required: [], optional: ['IMAGE'] }
  const { values, positionals } = parseWords(args, OPTIONS, 'measure', words)
  const [name] = positionals
  const { 'target-format': format = 'raw', size } = values
  const output = parseChoice(values.output ?? 'human', '--output', OPTIONS.output.choices)
  if ((name === undefined) === (size === undefined)) {
    throw new UsageError('give either IMAGE or --size; vimgfs help measure shows how to call it')
  }
  if (size !== undefined && values.snapshot !== undefined) {
    throw new UsageError('-l names a snapshot of IMAGE, and --size has no IMAGE')
  }
  const creator = await creatorOf(format)
  const known = [...BACKING_OPTIONS, ...creator.options]
  const given = parseCreateOptions(known, values.options ?? [], format)
  const { backing_file, backing_fmt, ...options } = given
  const isOnBase = backing_file !== undefined || backing_fmt !== undefined
  checkOptions(creator.options, options, format)
  const { measure } = creator
  const say = ({ sizeBytes, data, bitmaps: found }: Disk) => {
    const whole = Math.ceil(sizeBytes / SECTOR_BYTES) * SECTOR_BYTES
    const { required, fullyAllocated } = measure({ sizeBytes: whole, options, data })
    // As with QEMU: all of the disk may differ from a base, which nobody has looked at.
    const bitmaps = found && creator.measureBitmaps?.(options, found)
    const fields = {
      ...(bitmaps !== undefined && { bitmaps }),
      required: isOnBase ? fullyAllocated : required,
      'fully-allocated': fullyAllocated,
    }
    if (output === 'json') print(`${JSON.stringify(fields, undefined, 4)}\n`)
    else {
      const last = bitmaps === undefined ? '' : `bitmaps size: ${bitmaps}\n`
      print(`required size: ${fields.required}\nfully allocated size: ${fullyAllocated}\n${last}`)
    }
  }
  if (size !== undefined) {
    say({ sizeBytes: parseDiskSize(size, '--size'), data: [] })
    return 0
  }
  const opener = new SourceOpener(values, false)
  const source = await opener.openChosen(name as string, values.snapshot)
  try {
    const { sizeBytes } = source
    const bitmaps = await bitmapShapes(source)
    say({ sizeBytes, data: dataOf(source.pieces(0, sizeBytes)), bitmaps })
    return 0
  } finally {
    source.close()
    opener.close()
  }
}

function* dataOf(pieces: Iterable<{ kind: string; offset: number; length: number }>) {
  for (const { kind, offset, length } of pieces) if (kind === 'data') yield { offset, length }
}
