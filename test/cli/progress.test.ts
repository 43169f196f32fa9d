/** The line of progress, and sizes on the command line. */
import t from 'tap'
import { UsageError } from '../../src/errors.js'
import { parseWords } from '../../src/cli/arguments.js'
import { clearing, Note } from '../../src/cli/note.js'
import { Progress } from '../../src/cli/progress.js'
import { parseDiskSize, parseSizeChange, toSectors } from '../../src/sizes.js'
import { until } from '../support/until.js'

const GiB = 2 ** 30

t.test('progress is shown by force, in one line', async t => {
  const said: string[] = []
  const progress = new Progress(4 * GiB, { force: true }, text => said.push(text))
  progress.update(GiB)
  progress.add(3 * GiB)
  progress.end()
  const text = said.join('')
  t.match(text, /25\.0 % {2}1 GiB of 4 GiB, .*\/s, .*left/)
  t.match(text, /100\.0 % {2}4 GiB of 4 GiB/)
  t.notMatch(text.trimEnd(), /\n/)
})

t.test('progress through work that is not counted in bytes', async t => {
  const said: string[] = []
  const progress = new Progress(1, { force: true, isPart: true }, text => said.push(text))
  progress.update(0.25)
  progress.end()
  t.match(said.join(''), / 25\.0 %, \d.* left\s*$/)
  t.notMatch(said.join(''), / of /)
})

t.test('a signal prints it once, also where it is not shown', async t => {
  const said: string[] = []
  const progress = new Progress(2 * GiB, { quiet: true }, text => said.push(text))
  progress.update(GiB)
  t.strictSame(said, [])
  process.emit('SIGUSR1', 'SIGUSR1')
  t.match(said.join(''), /^ *50\.0 %.*\n$/)
  progress.end()
  process.emit('SIGUSR1', 'SIGUSR1')
  t.equal(said.length, 1)
})

t.test('sizes of disks', async t => {
  const sizes: Record<string, number> = {
    0: 0,
    512: 512,
    '1k': 1024,
    '20G': 20 * GiB,
    '20GiB': 20 * GiB,
    '1.5g': 1.5 * GiB,
    '16T': 2 ** 44,
    '7P': 7 * 2 ** 50,
  }
  for (const [text, bytes] of Object.entries(sizes)) t.equal(parseDiskSize(text, 'SIZE'), bytes)
  for (const text of ['', 'x', '-1', '1.5', '1,5G', '1X', '8E', '1e3', ' 1', '١']) {
    t.throws(() => parseDiskSize(text, 'SIZE'), UsageError, text)
  }
  t.strictSame(parseSizeChange('+1G', 'SIZE'), { sign: '+', bytes: GiB })
  t.strictSame(parseSizeChange('-1G', 'SIZE'), { sign: '-', bytes: GiB })
  t.strictSame(parseSizeChange('1G', 'SIZE'), { sign: undefined, bytes: GiB })
  t.strictSame([0, 1, 512, 513].map(toSectors), [0, 512, 512, 1024])
})

t.test('commands with optional words', async t => {
  const words = { required: ['IMAGE'], optional: ['SIZE'], takesNegative: true }
  const options = { q: { type: 'boolean', short: 'q' } } as const
  const parse = (...args: string[]) => parseWords(args, options, 'resize', words)
  t.strictSame(parse('a').positionals, ['a'])
  t.strictSame(parse('a', '-5G').positionals, ['a', '-5G'])
  t.strictSame(parse('a', '-5G', '-q').positionals, ['a', '-5G'])
  t.strictSame(parse('--', '-a', '-5G').positionals, ['-a', '-5G'])
  t.throws(() => parse(), /IMAGE is missing/)
  t.throws(() => parse('a', '1', '2'), /"2" is one argument too many/)
  const any = { required: ['IMAGE', 'TAG'], hasMore: true }
  t.strictSame(parseWords(['a', 'b', 'c'], options, 'x', any).positionals, ['a', 'b', 'c'])
  t.throws(() => parseWords(['a'], options, 'x', any), /TAG is missing/)
})

t.test('a line for what takes long, gone afterwards', async t => {
  const said: string[] = []
  const note = new Note('deriving the key', text => said.push(text), true, 0)
  t.ok(await until(() => said.length > 0))
  note.end()
  note.end()
  t.same(said, ['deriving the key', '\r\x1b[K'])
  const hidden = new Note('never', text => said.push(text), false, 0)
  const quick = new Note('never', text => said.push(text), true)
  for (const one of [hidden, quick]) one.end()
  t.equal(said.length, 2, 'not without a terminal, and not for what is quick')
})

t.test('a terminal without control sequences', async t => {
  const { TERM } = process.env
  process.env.TERM = 'dumb'
  t.equal(clearing('50 %'), '\r    \r')
  process.env.TERM = 'xterm'
  t.equal(clearing('50 %'), '\r\x1b[K')
  if (TERM === undefined) delete process.env.TERM
  else process.env.TERM = TERM
})
