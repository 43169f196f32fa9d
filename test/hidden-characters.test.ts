/** Names that a terminal would obey, or show as others, never reach it unescaped. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { printable } from '../src/errors.js'
import { encodeTag } from '../src/image/file-names.js'
import { jsonWithoutHidden, shownRecord, withoutHidden } from '../src/hidden-characters.js'
import { LogSink } from '../src/log-sinks.js'
import { buildImage } from './fixtures/qcow2-builder.js'
import { MAIN } from './support/mount.js'
import { attempt, tempFolder } from './support/run.js'

const HIDDEN = [
  ...[0x00, 0x1b, 0x7f, 0x85, 0x9b, 0xad, 0x34f, 0x61c, 0x115f, 0x180e, 0x200b, 0x200c, 0x200d],
  ...[0x200e, 0x200f, 0x2028, 0x2029, 0x202a, 0x202b, 0x202c, 0x202d, 0x202e, 0x2060, 0x2066],
  ...[0x2067, 0x2068, 0x2069, 0x206f, 0x3164, 0xfeff, 0xfff9, 0xffa0, 0x1d173, 0xe0001, 0xe0041],
]
const SHOWN = ['ü', '中', 'ا', '✅\ufe0f', '😀', 'é', 'e\u0301', '\u00a0', '~', '\\']

t.test('messages', async t => {
  for (const code of HIDDEN) {
    const text = printable(`a${String.fromCodePoint(code)}b`)
    t.match(text, /^a\\(x[0-9a-f]{2}|u[0-9a-f]{4}|u\{[0-9a-f]{5}\})b$/, code.toString(16))
  }
  t.equal(withoutHidden('\u202egpj.exe'), '\\u202egpj.exe')
  t.equal(withoutHidden('\u{e0041}'), '\\u{e0041}')
  t.equal(withoutHidden('\ud83d'), '\\ud83d', 'half a character')
  for (const text of SHOWN) t.equal(printable(text), text)
})

t.test('JSON stays as it was', async t => {
  for (const code of HIDDEN) {
    const value = { name: `a${String.fromCodePoint(code)}b`, list: [1, 'x'] }
    const json = jsonWithoutHidden(JSON.stringify(value, null, 2))
    t.same(JSON.parse(json), value)
    t.equal(withoutHidden(json.replaceAll('\n', '')), json.replaceAll('\n', ''), code.toString(16))
  }
  for (const text of SHOWN) t.equal(jsonWithoutHidden(`"${text}"`), `"${text}"`)
})

t.test('the log', async t => {
  const lines: string[] = []
  class Sink extends LogSink {
    override reopen(): void {}
    protected override put(line: string): boolean {
      lines.push(line)
      return true
    }
  }
  const line = `${JSON.stringify({ level: 40, msg: 'a\u202eb' })}\n`
  new Sink().write(line)
  t.equal(lines[0], '{"level":40,"msg":"a\\u202eb"}\n')
  const stack = 'Error: x\u202e\n    at a (b.js:1:1)\n    at c'
  t.same(shownRecord(JSON.stringify({ msg: 'a\x1b[2J\nb', n: 1, inner: { stack } })), {
    msg: 'a\\x1b[2J\\x0ab',
    n: 1,
    inner: { stack: 'Error: x\\u202e\n    at a (b.js:1:1)\n    at c' },
  })
})

t.test('file names', async t => {
  t.equal(encodeTag(Buffer.from('\u202egpj')), '%E2%80%AEgpj')
  t.equal(encodeTag(Buffer.from('a\u200bb\u{e0041}')), 'a%E2%80%8Bb%F3%A0%81%81')
  for (const text of SHOWN) t.equal(encodeTag(Buffer.from(text)), text)
})

t.test('info and check', async t => {
  const image = join(tempFolder(t), 'a\u202eb\u200b.qcow2')
  const snapshots = [{ name: 's\u202es' }]
  writeFileSync(image, buildImage({ clusterBits: 12, sizeBytes: 4096, snapshots }).bytes())
  for (const args of [['info'], ['check'], ['info', '--output=json'], ['check', '--output=json']]) {
    const { stdout, stderr } = await attempt(process.execPath, [MAIN, ...args, image])
    const all = (stdout + stderr).replaceAll('\n', '')
    t.equal(withoutHidden(all), all, args.join(' '))
    t.match(all, /\\u202e/i)
    if (args.length > 1) t.equal(JSON.parse(stdout).filename, image)
  }
  const { stderr } = await attempt(process.execPath, [MAIN, 'info', `${image}x`])
  t.match(stderr, /a\\u202eb\\u200b\.qcow2x: .*no such file/)
})
