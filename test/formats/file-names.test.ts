/** The names of files in a mount: fit for a file system, distinct, and plain where they can be. */
import fc from 'fast-check'
import t from 'tap'
import { distinctNames, encodeTag, layerName, stemOf } from '../../src/image/file-names.js'
import { holds } from '../support/property.js'
import { cpuMs } from '../support/cpu.js'

const tags = [
  { title: 'plain', tag: 'before-upgrade', encoded: 'before-upgrade' },
  { title: 'spaces and quotes', tag: `you can't see "me"`, encoded: `you can't see "me"` },
  { title: 'empty', tag: '', encoded: '' },
  { title: 'dots', tag: '..', encoded: '..' },
  { title: 'a path', tag: '../etc/passwd', encoded: '..%2Fetc%2Fpasswd' },
  { title: 'percent', tag: '100%', encoded: '100%25' },
  { title: 'what looks encoded', tag: '%2F', encoded: '%252F' },
  { title: 'control characters', tag: 'a\nb\0c\x7f\x1b', encoded: 'a%0Ab%00c%7F%1B' },
  { title: 'other scripts', tag: 'Übung 日本 🐟', encoded: 'Übung 日本 🐟' },
  { title: 'C1 controls', tag: 'a\u0085b', encoded: 'a%C2%85b' },
  { title: 'line separators', tag: 'a\u2028b', encoded: 'a%E2%80%A8b' },
  { title: 'not UTF-8', tag: Buffer.from('a\xe4/\xff', 'latin1'), encoded: 'a%E4%2F%FF' },
  { title: 'half of a character', tag: Buffer.from([0xf0, 0x9f]), encoded: '%F0%9F' },
]
for (const { title, tag, encoded } of tags) {
  t.test(title, async t => t.equal(encodeTag(Buffer.from(tag as string)), encoded))
}

const stems = [
  ['/x/disk.qcow2', 'disk'],
  ['/x/disk', 'disk'],
  ['/x/disk.tar.gz', 'disk.tar'],
  ['/x/.qcow2', '.qcow2'],
  ['/x/a%b\n.img', 'a%25b%0A'],
] as const
for (const [image, stem] of stems) {
  t.test(`the stem of ${JSON.stringify(image)}`, async t => t.equal(stemOf(image), stem))
}

const layers = [
  ['/x/base.qcow2', 'base'],
  ['/x/base.QCOW2', 'base'],
  ['/x/base.vhd', 'base'],
  ['/x/base.img', 'base'],
  ['/x/disk.before-upgrade', 'disk.before-upgrade'],
  ['/x/disk.1701349200', 'disk.1701349200'],
  ['/x/base.qcow2.old', 'base.qcow2.old'],
  ['/x/base', 'base'],
  ['/x/.qcow2', '.qcow2'],
] as const
for (const [image, name] of layers) {
  t.test(`the layer ${image}`, async t => t.equal(layerName(image), name))
}

const tagged = (tag: string, id: string) => ({ tag: Buffer.from(tag), id })
const lists = [
  {
    title: 'each its own',
    tags: [tagged('a', '1'), tagged('b', '2')],
    names: ['disk@a', 'disk@b'],
  },
  {
    title: 'twice the same',
    tags: [tagged('a', '1'), tagged('b', '2'), tagged('a', '3')],
    names: ['disk@a~1', 'disk@b', 'disk@a~3'],
  },
  {
    title: 'a tag equal to the encoding of another one',
    tags: [tagged('a', '1'), tagged('a', '2'), tagged('a~1', '3')],
    names: ['disk@a~1~1', 'disk@a~2', 'disk@a~1'],
  },
  {
    title: 'even the IDs are the same',
    tags: [tagged('a', '1'), tagged('a', '1'), tagged('a', '1')],
    names: ['disk@a~1', 'disk@a~1~1', 'disk@a~1~2'],
  },
  {
    title: 'different only until they are encoded',
    tags: [tagged('', '1'), tagged('', '2')],
    names: ['disk@~1', 'disk@~2'],
  },
  {
    title: 'too long',
    tags: [tagged('x'.repeat(300), '7')],
    names: [`disk@${'x'.repeat(240)}~7`],
  },
  {
    title: 'too long, cut at no half of a character',
    tags: [tagged('é'.repeat(200), '7'), tagged('\n'.repeat(200), '8')],
    names: [`disk@${'é'.repeat(120)}~7`, `disk@${'%0A'.repeat(80)}~8`],
  },
]
for (const { title, tags, names } of lists) {
  t.test(title, async t => t.same(distinctNames('disk', tags), names))
}

t.test('a long stem leaves room for what follows it', async t => {
  const stem = stemOf(`/x/${'s'.repeat(250)}.img`)
  const many = Array.from({ length: 30 }, (_, i) => tagged('snapshot', String(1000 + i)))
  const names = distinctNames(stem, many)
  t.equal(new Set(names).size, 30)
  const longest = Math.max(...names.map(name => Buffer.byteLength(`${name}.vmstate`)))
  t.ok(longest <= 255, `${longest} bytes`)
})

t.test('any tags', async t => {
  const tag = fc.oneof(
    fc.string({ unit: fc.constantFrom('a', '~', '1', '/', '%', '\n', 'é') }),
    fc.string({ unit: 'binary', maxLength: 300 }),
  )
  const lists = fc.array(fc.tuple(tag, fc.constantFrom('1', '2', '10', '')), { maxLength: 20 })
  const runs = await holds(lists, 300, list => {
    const names = distinctNames(
      'disk',
      list.map(([tag, id]) => tagged(tag, id)),
    )
    if (new Set(names).size !== list.length) throw new Error('two of one name')
    for (const name of names) {
      if (Buffer.byteLength(`${name}.vmstate`) > 255) throw new Error(`too long: ${name}`)
      if (/[/\x00-\x1f]/.test(name)) throw new Error(`unfit: ${name}`)
    }
  })
  t.ok(runs >= 100, `${runs} lists`)
})

t.test('as many as a table can have, all of one name', async t => {
  const many = Array.from({ length: 65536 }, () => tagged('same', '1'))
  const started = cpuMs()
  t.equal(new Set(distinctNames('disk', many)).size, 65536)
  const milliseconds = cpuMs() - started
  t.ok(milliseconds < 3000, `took ${Math.round(milliseconds)} ms`)
})
