/** Options of `vimgfs mount` in a list for -o. */
import t from 'tap'
import { OPTIONS } from '../../src/cli/help/mount.js'
import { isSpelled, withSpelled } from '../../src/cli/spelled-options.js'
import { optionPieces, parseMountOptions } from '../../src/fs/mounting/options.js'
import { UsageError } from '../../src/errors.js'

const spelled = (...option: string[]) => withSpelled({ option }, OPTIONS)

t.test('every option has a spelling', async t => {
  for (const [name, { type }] of Object.entries(OPTIONS)) {
    if (name === 'option') continue
    const text = type === 'string' ? `${name}=some\\,value` : name
    t.ok(isSpelled(text, OPTIONS), name)
    const { option, ...values } = spelled(text) as Record<string, unknown>
    const isMany = 'multiple' in OPTIONS[name as keyof typeof OPTIONS]
    const value = type === 'boolean' ? true : isMany ? ['some,value'] : 'some,value'
    t.same(values, { [name]: value })
    const expected = name === 'read-only' ? ['ro'] : name === 'read-write' ? ['rw'] : []
    t.same(option, expected, 'the file system does not see it')
  }
})

t.test('no option of a mount has the name of an option of the command', async t => {
  for (const name of Object.keys(OPTIONS)) t.throws(() => parseMountOptions([name]), UsageError)
})

t.test('among others', async t => {
  const list = 'ro,format=raw,allow-path=/a\\,b,fsname=x\\,y,allow-path=/c,quiet,noexec'
  t.same(spelled(list, 'threads=4'), {
    option: ['ro', 'fsname=x\\,y', 'noexec'],
    format: 'raw',
    'allow-path': ['/a,b', '/c'],
    quiet: true,
    threads: '4',
  })
  t.same(optionPieces('a,,b'), ['a', 'b'])
})

t.test('mistakes', async t => {
  for (const list of ['quiet=yes', 'format', 'format=', 'read-only,read-write']) {
    t.throws(() => spelled(list), UsageError, list)
  }
  t.throws(() => parseMountOptions(spelled('threds=4').option ?? []), /unknown mount option/)
})
