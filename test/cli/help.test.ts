/** The descriptions of commands, from which parsing, help, the manual and completion come. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { candidates } from '../../src/cli/completion/candidates.js'
import { OFFERS, plain } from '../../src/cli/completion/values.js'
import { split } from '../../src/cli/completion/command-line.js'
import { allHelps } from '../../src/cli/help/commands.js'
import { MOUNT_OPTIONS, OPTIONS as MOUNT } from '../../src/cli/help/mount.js'
import { formatNames } from '../../src/cli/help/names.js'
import { helpText } from '../../src/cli/help/render.js'
import { unfolded } from '../../src/cli/help/wrapping.js'
import { FLAGS, VALUES } from '../../src/fs/mounting/options.js'
import { TRANSPORTS } from '../../src/fs/session.js'
import { LOG_LEVELS } from '../../src/log.js'
import { manualPages } from '../../src/manual/pages.js'
import { attempt, needs, tempFolder } from '../support/run.js'

const names = await formatNames()
const helps = await allHelps()
const pages = await manualPages('2026-01-31', '1.2.3')
const machine = {
  tagsOf: async () => ['a tag'],
  mountpoints: () => ['/mnt'],
  isFile: () => true,
}
const offered = async (...words: string[]) =>
  (await candidates(words, machine)).map(one => ('paths' in one ? `:${one.paths}` : one.word))

for (const [name, help] of helps) {
  t.test(`${name}: its options in help, manual and completion`, async t => {
    const text = helpText(name, help, names)
    const wide = text.split('\n').filter(line => line.length > 80)
    t.same(wide, [], 'fits 80 columns')
    t.match(text, /\n\nExample:\n( {2}\S.*\n)+$/)
    t.match(text, new RegExp(`\\n  vimgfs ${name}[ \\n]`))
    t.notMatch(text, /\{[a-z]+\}/, 'all names of formats are known')
    const page = pages.get(`vimgfs-${name}.1`) ?? ''
    t.notMatch(page, /\{[a-z]+\}/)
    const completed = await offered(name, '-')
    for (const [key, option] of Object.entries(help.options)) {
      const short = option.short === undefined ? '' : `-${option.short}, `
      t.match(text, `${short}--${key}`, `${key} is in the help`)
      for (const word of [`--${key}`, ...(short === '' ? [] : [short.slice(0, 2)])]) {
        t.match(page, word.replaceAll('-', '\\-'), `${word} of ${key} is in the manual`)
      }
      t.ok(unfolded(option.help).length > 5, `${key} has a text`)
      t.ok(completed.includes(`--${key}`), `${key} is completed`)
      if (short !== '') t.ok(completed.includes(short.slice(0, 2)), `${short} is completed`)
      if (option.type === 'boolean') continue
      if (option.choices) t.same(await offered(name, `--${key}`, ''), option.choices)
      else if (help.suboptions?.[key]) t.not((await offered(name, `--${key}`, '')).length, 0)
      else
        t.ok(plain(option.value ?? '') in OFFERS, `values of ${key}: ${option.value} is in OFFERS`)
    }
    for (const key of Object.keys(help.suboptions ?? {})) t.ok(key in help.options, key)
    if (help.actions) return
    for (const word of help.words.split(' ').filter(one => one !== ''))
      t.ok(plain(word) in OFFERS, word)
  })
}

t.test('the options of -o, as the mount takes them', async t => {
  const terms = MOUNT_OPTIONS.flatMap(([term]) => term.split(', ')).map(split)
  const described = new Set(terms.map(([name]) => name))
  for (const name of [...FLAGS, ...VALUES]) t.ok(described.has(name), name)
  for (const [, value] of terms) {
    if (value !== undefined && !value.includes('|')) t.ok(value in OFFERS, `${value} is in OFFERS`)
  }
  const page = pages.get('mount.vimgfs.8') ?? ''
  for (const name of described) t.match(page, name.replaceAll('-', '\\-').replace('…', '...'), name)
})

t.test('choices that others know, too', async t => {
  t.same(MOUNT['log-level'].choices, LOG_LEVELS)
  t.same(MOUNT.transport.choices, TRANSPORTS)
})

t.test('mandoc finds nothing in the manual', needs('mandoc'), async t => {
  const folder = tempFolder(t)
  for (const [name, text] of pages) writeFileSync(join(folder, name), text)
  const files = readdirSync(folder).map(name => join(folder, name))
  const { man } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
  const installed = [...pages.keys()].map(name => `dist/man/${name}`).sort()
  t.same(man, installed, 'npm installs all pages, which package.json lists')
  const { code, stdout, stderr } = await attempt('mandoc', ['-T', 'lint', ...files])
  t.same({ code, stdout, stderr }, { code: 0, stdout: '', stderr: '' })
})
