/** Where passphrases come from, but for the terminal, and how they come to a server in the background. */
import { closeSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import t, { type Test } from 'tap'
import { passphraseSource } from '../../src/cli/passphrase.js'
import { answer, PassphraseRelay, type Question } from '../../src/cli/passphrase-relay.js'
import { MountError } from '../../src/errors.js'
import { unixSocketPair } from '../../src/io/libc.js'
import { run } from '../support/run.js'

const NEVER = new AbortController().signal
/** What asks. */
const asking = (files: readonly string[]) => passphraseSource(files, NEVER).ask

const texts = (passphrases: readonly Buffer[]): string[] => passphrases.map(each => `${each}`)

function fileOf(t: Test, name: string, content: string | Buffer): string {
  const file = join(t.testdir(), name)
  writeFileSync(file, content)
  return file
}

t.test('the end of the line is not part of it, or perhaps it is', async t => {
  for (const [content, expected] of [
    ['secret', ['secret']],
    ['secret\n', ['secret', 'secret\n']],
    ['secret\r\n', ['secret', 'secret\r\n']],
    ['two\nlines\n', ['two\nlines', 'two\nlines\n']],
    ['secret\r', ['secret\r']],
  ] as const) {
    const ask = asking([fileOf(t, 'passphrase', content)])
    t.same(texts(await ask('disk.qcow2', 'LUKS')), expected, JSON.stringify(content))
  }
  const bytes = Buffer.from([0, 255, 10, 0])
  const [binary] = await asking([fileOf(t, 'key', bytes)])('disk.qcow2', 'LUKS')
  t.same(binary, bytes, 'keys are no text')
})

t.test('each file is for one layer, the last for all that follow', async t => {
  const folder = t.testdir({ one: '1', two: '2' })
  const ask = asking([join(folder, 'one'), join(folder, 'two')])
  const asked = []
  for (const path of ['top', 'middle', 'base']) asked.push(...texts(await ask(path, 'LUKS')))
  t.same(asked, ['1', '2', '2'])
})

t.test('the variable names a file where no option does', async t => {
  const before = process.env.VIMGFS_PASSPHRASE_FILE
  t.teardown(() => {
    if (before === undefined) delete process.env.VIMGFS_PASSPHRASE_FILE
    else process.env.VIMGFS_PASSPHRASE_FILE = before
  })
  const folder = t.testdir({ variable: 'of the variable', option: 'of the option' })
  process.env.VIMGFS_PASSPHRASE_FILE = join(folder, 'variable')
  t.same(texts(await asking([])('disk', 'LUKS')), ['of the variable'])
  t.same(texts(await asking([join(folder, 'option')])('disk', 'LUKS')), ['of the option'])
})

t.test('files that are none', async t => {
  const folder = t.testdir({ empty: '', line: '\n', dosLine: '\r\n' })
  for (const [name, message] of [
    [join(folder, 'missing'), /missing cannot be opened: no such file/],
    [folder, /cannot be read: it is a folder/],
    [join(folder, 'empty'), /the passphrase is empty/],
    [join(folder, 'line'), /the passphrase is empty/],
    [join(folder, 'dosLine'), /the passphrase is empty/],
    ['/dev/zero', /\/dev\/zero is too long: 8388608 bytes/],
  ] as const) {
    await t.rejects(asking([name])('disk', 'LUKS'), { name: MountError.name, message })
  }
})

t.test('waiting for a passphrase can be interrupted', async t => {
  const fifo = join(t.testdir(), 'fifo')
  await run('mkfifo', [fifo])
  const controller = new AbortController()
  const { ask } = passphraseSource([fifo], controller.signal)
  const asked = ask('disk', 'LUKS')
  controller.abort()
  await t.rejects(asked, { message: /interrupted; nothing is mounted/ })
  await t.rejects(ask('disk', 'LUKS'), { message: /interrupted/ }, 'and asks nobody any more')
  // Opening it is not over, and would keep the test.
  writeFileSync(fifo, 'late')
})

/** A relay whose answers are there already; nobody gives others. */
function relayOf(t: Test, answers: Buffer) {
  const questions: Question[] = []
  const [theirs, ours] = unixSocketPair()
  writeSync(theirs, answers)
  closeSync(theirs)
  const relay = new PassphraseRelay(ours, question => questions.push(question))
  t.teardown(() => relay.close())
  return { relay, questions }
}

/** What `answer` sends. */
async function sent(source: Parameters<typeof answer>[1]): Promise<Buffer> {
  const pipe = new PassThrough()
  await answer({ path: 'disk', method: 'LUKS' }, source, pipe)
  pipe.end()
  return Buffer.concat(await pipe.toArray())
}

t.test('an answer is a count and passphrases with their lengths', async t => {
  const bytes = await sent(async () => [Buffer.from('one'), Buffer.from('three\n')])
  t.same(bytes, Buffer.from('\x02\x03\0\0\0one\x06\0\0\0three\n', 'latin1'))
  const typed = await sent(async () => Object.assign([Buffer.from('me')], { isTyped: true }))
  t.same(typed, Buffer.from('\x81\x02\0\0\0me', 'latin1'), 'somebody has typed it')
  t.match(await relayOf(t, typed).relay.ask('disk', 'LUKS'), { isTyped: true, length: 1 })
  const refusal = await sent(async () => {
    throw new MountError('no')
  })
  t.same(refusal, Buffer.from('\0\x02\0\0\0no', 'latin1'), 'or why there is none')
  await t.rejects(
    sent(async () => Promise.reject(new TypeError('a mistake'))),
    TypeError,
  )
})

t.test('what comes over the pipe', async t => {
  const whole = await sent(async () => [Buffer.from('one'), Buffer.from('three\n')])
  const refusal = await sent(async () => {
    throw new MountError('no')
  })
  const { relay, questions } = relayOf(t, Buffer.concat([whole, whole, refusal]))
  t.same(texts(await relay.ask('top', 'LUKS')), ['one', 'three\n'])
  t.same(texts(await relay.ask('base', 'AES')), ['one', 'three\n'])
  await t.rejects(relay.ask('third', 'LUKS'), { name: MountError.name, message: 'no' })
  t.same(questions, [
    { path: 'top', method: 'LUKS' },
    { path: 'base', method: 'AES' },
    { path: 'third', method: 'LUKS' },
  ])
})

t.test('the command has gone', async t => {
  const { relay, questions } = relayOf(t, Buffer.from('\x01\x09\0\0\0cut', 'latin1'))
  await t.rejects(relay.ask('disk', 'LUKS'), { message: /interrupted; nothing is mounted/ })
  t.same(questions, [{ path: 'disk', method: 'LUKS' }])
})
