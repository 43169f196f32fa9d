/** What `npm test` says of the shape of src: circles of imports, and files that are too long. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { tempFolder } from '../support/run.js'

const module = new URL('../../scripts/structure.mjs', import.meta.url)
const { cyclesOf, importsOf, lengthsOf } = await import(module.href)

t.test('circles, of types and of what is imported when it is needed, too', async t => {
  const folder = tempFolder(t)
  mkdirSync(join(folder, 'deep'))
  const put = (name: string, text: string) => writeFileSync(join(folder, name), text)
  put('a.ts', `import fs from 'node:fs'\nimport { b } from './deep/b.js'\n`)
  put('deep/b.ts', `import type {\n  C,\n} from '../c.js'\n`)
  put('c.ts', `export const c = () => import('./a.js')\n`)
  put('d.ts', `export { c } from './c.js'\n`)
  t.same(cyclesOf(importsOf(folder)), [['a.ts', 'deep/b.ts', 'c.ts']])
  put('c.ts', '')
  t.same(cyclesOf(importsOf(folder)), [])
})

t.test('files of more than 400 lines', async t => {
  const folder = tempFolder(t)
  const put = (name: string, lines: number) => writeFileSync(join(folder, name), '\n'.repeat(lines))
  put('a.ts', 400)
  t.same(lengthsOf(folder), [])
  put('a.ts', 401)
  t.same(lengthsOf(folder), ['a.ts has 401 lines; at most 400 are allowed'])
})
