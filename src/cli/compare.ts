/** `vimgfs compare`: whether two disks have the same content, with the words and exit codes of `qemu-img compare`. */
import { exitCodeOf, isExpected, oneLine, printable, UsageError } from '../errors.js'
import { type Compared, compareDisks } from '../image/comparing/compare.js'
import type { Source } from '../image/reading/source.js'
import { parse } from './arguments.js'
import { OPTIONS } from './help/compare.js'
import { complain, print } from './output.js'
import { Progress } from './progress.js'
import { checkCacheMode } from './qemu-options.js'
import { SourceOpener } from './sources.js'

/** Those of qemu-img compare. */
const EXIT = { same: 0, different: 1, unopened: 2, lostTables: 3, unreadable: 4 }

export async function run(args: string[]): Promise<number> {
  const { values, positionals } = parse(args, OPTIONS, 'compare', ['IMAGE', 'IMAGE'])
  checkCacheMode(values['source-cache'], '-T')
  const [first, second] = positionals as [string, string]
  const { strict: isStrict = false, progress: force, quiet = false } = values
  const opener = new SourceOpener(values)
  const opened: Source[] = []
  try {
    try {
      opened.push(await opener.open(first))
      opened.push(await opener.openSecond(second))
    } catch (error) {
      if (!isExpected(error) || error instanceof UsageError) throw error
      complain(`vimgfs: ${oneLine(error)}\n`)
      return Math.max(EXIT.unopened, exitCodeOf(error))
    }
    opener.close()
    const [a, b] = opened as [Source, Source]
    const total = Math.max(a.sizeBytes, b.sizeBytes)
    const shown = new Progress(total, { force, quiet })
    const found = await compareDisks(a, b, {
      isStrict,
      progress: done => shown.update(done),
    }).finally(() => shown.end())
    return tell(found, [a, b], quiet)
  } finally {
    for (const source of opened) source.close()
  }
}

function tell(found: Compared, [a, b]: [Source, Source], quiet: boolean): number {
  const say = (line: string) => {
    if (!quiet) print(`${line}\n`)
  }
  if ('sizesDiffer' in found && found.sizesDiffer) say('Warning: Image size mismatch!')
  switch (found.kind) {
    case 'same':
      say('Images are identical.')
      return EXIT.same
    case 'sizes':
      say('Strict mode: Image size mismatch!')
      return EXIT.different
    case 'allocation':
      say(`Strict mode: Offset ${found.offset} block status mismatch!`)
      return EXIT.different
    case 'content':
      say(`Content mismatch at offset ${found.offset}!`)
      return EXIT.different
    case 'lost tables':
      if (!isExpected(found.error)) throw found.error
      complain(`vimgfs: ${oneLine(found.error)}\n`)
      return EXIT.lostTables
    case 'unreadable': {
      const { side, offset, reason } = found.failure
      const path = side === 'a' ? a.path : b.path
      complain(printable(`vimgfs: ${path}: it cannot be read at ${offset}: ${reason}`).concat('\n'))
      return EXIT.unreadable
    }
  }
}
