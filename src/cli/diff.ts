/** `vimgfs diff`: which ranges of a disk have changed between two snapshots, or since one. */
import { printable, UsageError } from '../errors.js'
import { changesOf, type Range } from '../image/comparing/diff.js'
import { isFile, splitImageName } from '../image/reading/image-name.js'
import { type Source, whileThere } from '../image/reading/source.js'
import { VERSION } from '../version.js'
import { parseChoice, parseWords } from './arguments.js'
import { OPTIONS } from './help/diff.js'
import { humanSize } from './human.js'
import { printAll } from './output.js'
import { Progress } from './progress.js'
import { SourceOpener } from './sources.js'

export async function run(args: string[]): Promise<number> {
  const words = { required: ['IMAGE', 'TAG'], optional: ['TAG'] }
  const { values, positionals } = parseWords(args, OPTIONS, 'diff', words)
  const output = parseChoice(values.output ?? 'human', '--output', OPTIONS.output.choices)
  const { exact: isExact = false, progress: force, quiet } = values
  const opener = new SourceOpener(values, isExact)
  const disks = await openBoth(positionals, opener)
  opener.close()
  const [before, after] = disks.pair
  const totalBytes = Math.max(before.sizeBytes, after.sizeBytes)
  const shown = new Progress(totalBytes, { force, quiet: quiet === true || !isExact })
  try {
    const progress = (done: number) => shown.update(done)
    const ranges = changesOf(before, after, { isExact, progress })
    printAll(whileThere(disks.pair, OUTPUTS[output](ranges, totalBytes)), () => {
      for (const source of disks.pair) source.requireThere()
    })
    return 0
  } finally {
    shown.end()
    disks.close()
  }
}

interface Disks {
  readonly pair: [before: Source, after: Source]
  close(): void
}

/** Opens the two disks that the words name. Throws ImageError, UsageError. */
async function openBoth(words: readonly string[], opener: SourceOpener): Promise<Disks> {
  const [first, second, third] = words as [string, string, string?]
  const { image, tag } = splitImageName(first)
  if (tag === undefined) {
    const opened = await opener.openImage(image)
    try {
      if (third !== undefined) {
        return { pair: [opened.disk(second), opened.disk(third)], close: () => opened.close() }
      }
      if (opened.hasTag(second) || !isImage(second)) {
        return { pair: [opened.disk(second), opened.disk()], close: () => opened.close() }
      }
    } catch (error) {
      opened.close()
      throw error
    }
    opened.close()
  } else if (third !== undefined) {
    const what = `"${printable(first)}" names a snapshot already, so one image may follow, not two tags`
    throw new UsageError(`${what}; vimgfs help diff shows how to call it`)
  }
  const before = await opener.open(first)
  try {
    const after = await opener.openSecond(second)
    const close = () => {
      after.close()
      before.close()
    }
    return { pair: [before, after], close }
  } catch (error) {
    before.close()
    throw error
  }
}

const isImage = (name: string): boolean => {
  const { image, tag } = splitImageName(name)
  return tag !== undefined || isFile(image)
}

const OUTPUTS = { human, json, ddrescue }

function* human(ranges: Iterable<Range>): Generator<string> {
  let bytes = 0
  let count = 0
  for (const { start, length } of ranges) {
    if (count++ === 0) yield row('Offset', 'Length')
    bytes += length
    yield row(hex(start), hex(length))
  }
  const where = count === 1 ? 'in 1 range' : `in ${count} ranges`
  yield count === 0
    ? 'nothing changed\n'
    : `${humanSize(bytes)} (${bytes} bytes) changed, ${where}\n`
}

const row = (start: string, length: string): string => `${start.padEnd(16)}${length}\n`
const hex = (number: number): string => `0x${number.toString(16)}`

function* json(ranges: Iterable<Range>): Generator<string> {
  let before = '['
  for (const { start, length } of ranges) {
    yield `${before}{ "start": ${start}, "length": ${length} }`
    before = ',\n'
  }
  yield before === '[' ? '[]\n' : ']\n'
}

/** The map of GNU ddrescue ("Mapfile structure"), for its option -m: what changed is `+`, the rest is `?`. */
function* ddrescue(ranges: Iterable<Range>, totalBytes: number): Generator<string> {
  yield `# Mapfile. Created by vimgfs ${VERSION}\n`
  yield '# current_pos  current_status  current_pass\n'
  yield `${wide(0)}     ?               1\n`
  yield '#      pos        size  status\n'
  let at = 0
  for (const { start, length } of ranges) {
    if (start > at) yield block(at, start - at, '?')
    yield block(start, length, '+')
    at = start + length
  }
  if (totalBytes > at) yield block(at, totalBytes - at, '?')
}

const block = (start: number, length: number, status: string): string =>
  `${wide(start)}  ${wide(length)}  ${status}\n`
const wide = (number: number): string => `0x${number.toString(16).toUpperCase().padStart(8, '0')}`
