/** `vimgfs map`: which layer and file each part of a disk comes from, as `qemu-img map` says it. */
import { ImageError } from '../errors.js'
import { withoutHidden } from '../hidden-characters.js'
import { splitImageName } from '../image/reading/image-name.js'
import { type MapEntry, mapOf } from '../image/map.js'
import { whileThere } from '../image/reading/source.js'
import { parse, parseChoice } from './arguments.js'
import { OPTIONS } from './help/map.js'
import { printAll } from './output.js'
import { parseDiskSize } from '../sizes.js'
import { SourceOpener } from './sources.js'

export async function run(args: string[]): Promise<number> {
  const { values, positionals } = parse(args, OPTIONS, 'map', ['IMAGE'])
  const [name] = positionals as [string]
  const output = parseChoice(values.output ?? 'human', '--output', OPTIONS.output.choices)
  const start = sizeOf(values['start-offset'], '--start-offset') ?? 0
  const length = sizeOf(values['max-length'], '--max-length') ?? Number.POSITIVE_INFINITY
  const opener = new SourceOpener(values, false)
  const source = await opener.open(name)
  try {
    const entries = mapOf(source, splitImageName(name).image, start, length)
    const lines = output === 'json' ? json(entries) : human(entries, source.path)
    printAll(whileThere([source], lines), () => source.requireThere())
    return 0
  } finally {
    source.close()
    opener.close()
  }
}

const sizeOf = (text: string | undefined, option: string): number | undefined =>
  text === undefined ? undefined : parseDiskSize(text, option)

function* json(entries: Iterable<MapEntry>): Generator<string> {
  let before = '['
  for (const { start, length, depth, present, zero, data, offset } of entries) {
    const place = offset === undefined ? '' : `, "offset": ${offset}`
    yield `${before}{ "start": ${start}, "length": ${length}, "depth": ${depth}, "present": ${present}, "zero": ${zero}, "data": ${data}${place}}`
    before = ',\n'
  }
  yield ']\n'
}

function* human(entries: Iterable<MapEntry>, path: string): Generator<string> {
  yield row('Offset', 'Length', 'Mapped to', 'File')
  for (const { start, length, zero, data, offset, file = '' } of entries) {
    if (!data || zero) continue
    if (offset === undefined) {
      const what = 'some of its clusters are compressed or encrypted, and have no place in a file'
      throw new ImageError('UNSUPPORTED', what, { path, hint: '--output=json shows them, too' })
    }
    yield row(hex(start), hex(length), hex(offset), withoutHidden(file))
  }
}

const row = (start: string, length: string, at: string, file: string): string =>
  `${[start, length, at].map(text => text.padEnd(16)).join('')}${file}\n`

/** As C's printf does: 0 has no prefix. */
const hex = (number: number): string => (number === 0 ? '0' : `0x${number.toString(16)}`)
