/** The descriptions of commands, from which parsing, help, manual and completion come. */
import t from 'tap'
import { allHelps } from '../../src/cli/help/commands.js'
import { formatNames } from '../../src/cli/help/names.js'
import { helpText, unfolded } from '../../src/cli/help/render.js'
import { FLAGS, VALUES } from '../../src/fs/mounting/options.js'
import { LOG_LEVELS } from '../../src/log.js'
import { MOUNT_OPTIONS, OPTIONS as MOUNT } from '../../src/cli/help/mount.js'
import { TRANSPORTS } from '../../src/fs/session.js'

const names = await formatNames()
const helps = await allHelps()

for (const [name, help] of helps) {
  t.test(`${name}: help of each option, 80 columns, an example`, async t => {
    const text = helpText(name, help, names)
    const lines = text.split('\n')
    t.same(
      lines.filter(line => line.length > 80),
      [],
      'fits 80 columns',
    )
    t.match(text, /\n\nExample:\n( {2}\S.*\n)+$/)
    t.match(text, `\n  vimgfs ${name} `)
    t.notMatch(text, /\{[a-z]+\}/, 'all names of formats are known')
    for (const [key, option] of Object.entries(help.options)) {
      const short = 'short' in option ? `-${option.short}, ` : ''
      t.match(text, `${short}--${key}`, key)
      t.ok(unfolded(option.help).length > 5, `${key} has a text`)
      if (option.type === 'string') {
        t.ok(option.value !== undefined || option.choices !== undefined, `${key} names its value`)
      }
    }
    for (const key of Object.keys(help.suboptions ?? {})) t.ok(key in help.options, key)
  })
}

t.test('the options of -o, as the mount takes them', async t => {
  const described = new Set(
    MOUNT_OPTIONS.flatMap(([term]) => term.split(', ').map(word => word.split('=')[0])),
  )
  for (const name of [...FLAGS, ...VALUES]) t.ok(described.has(name), name)
})

t.test('choices that others know, too', async t => {
  t.same(MOUNT['log-level'].choices, LOG_LEVELS)
  t.same(MOUNT.transport.choices, TRANSPORTS)
})
