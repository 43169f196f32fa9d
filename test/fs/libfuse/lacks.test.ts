/** Documents and help say the same of the transports. */
import { readFileSync } from 'node:fs'
import t from 'tap'
import { type Lack, LACKS, lackLines } from '../../../src/fs/libfuse/lacks.js'
import { FUSE_NATIVE } from '../../../src/fs/libfuse/package.js'

const text = (name: string): string =>
  readFileSync(new URL(`../../../${name}`, import.meta.url), 'utf8')

t.test('the table in docs/libfuse.md lists all that the libfuse transport lacks', async t => {
  const page = text('docs/libfuse.md')
  for (const { what, errno, instead } of Object.values<Lack>(LACKS)) {
    const error = errno === undefined ? '–' : `\`${errno}\``
    t.ok(page.includes(`| ${what} | ${error} | ${instead} |\n`), what)
  }
})

t.test('a line each for the log', async t => {
  t.equal(lackLines().length, Object.keys(LACKS).length)
  t.match(lackLines()[0], /^fallocate\(2\): .* \(EOPNOTSUPP\): /)
})

t.test('the package is optional, of that version', async t => {
  const { optionalDependencies, dependencies } = JSON.parse(text('package.json'))
  const [name = '', version] = FUSE_NATIVE.split('@')
  t.same(optionalDependencies, { [name]: version })
  t.notOk(name in dependencies)
})
