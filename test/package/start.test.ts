/** npm start, the first thing a reader runs: it shows a mount, says what to try, and leaves nothing behind. */
import { existsSync, mkdirSync, readdirSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { cannotMount, hasMount, ROOT, run, SAMPLE, scratchFolder, Watched } from './processes.js'
import { until } from '../support/until.js'

const skip = cannotMount()

/** Temporary folders are made in `scratch`, so that one left behind is seen. */
function start(t: Test, scratch: string, ...args: string[]): Watched {
  const script = join(ROOT, 'scripts/start.mjs')
  const env = { INIT_CWD: scratch, TMPDIR: scratch }
  const started = new Watched(process.execPath, [script, ...args], ROOT, env)
  t.teardown(async () => {
    started.child.kill()
    await started.end
  })
  return started
}

function nothingIsLeft(t: Test, scratch: string, ...expected: string[]): void {
  t.notOk(hasMount(scratch), 'no mount is left')
  t.same(readdirSync(scratch), expected, 'no folder is left')
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  t.test(`the sample, until ${signal}`, { skip }, async t => {
    const scratch = scratchFolder(t)
    const started = start(t, scratch)
    await started.says('Ctrl-C unmounts.')

    for (const name of ['disk.raw', 'disk@fresh-install.raw', 'disk@before-upgrade.raw']) {
      t.match(started.output, `  ${name} `)
    }
    t.match(started.output, '16.0 MiB  2025-06-15')
    const [, first, second, third] = /another terminal:\n {2}(.*)\n {2}(.*)\n {2}(.*)\n\n/.exec(
      started.output,
    )!
    t.match(await run('sh', ['-c', first!], scratch), 'third flower pot', 'what it says works')
    t.ok(second)
    t.match(await run('sh', ['-c', third!], scratch), '{')

    started.child.kill(signal)
    t.equal(await started.end, 0)
    nothingIsLeft(t, scratch)
  })
}

t.test('an image and a mount point, relative to where npm was called', { skip }, async t => {
  const scratch = scratchFolder(t)
  symlinkSync(SAMPLE, join(scratch, "it's.qcow2"))
  mkdirSync(join(scratch, 'a mount'))
  const started = start(t, scratch, "it's.qcow2", 'a mount', '-o', 'ro')
  await started.says('Ctrl-C unmounts.')
  t.match(await run('ls', ['a mount'], scratch), "it's.raw")
  started.child.kill('SIGINT')
  t.equal(await started.end, 0)
  nothingIsLeft(t, scratch, 'a mount', "it's.qcow2")
})

t.test('what cannot be mounted: one line', { skip }, async t => {
  const scratch = scratchFolder(t)
  const started = start(t, scratch, 'missing.qcow2')
  t.equal(await started.end, 1)
  t.match(started.output, /^[^\n]*missing\.qcow2[^\n]*\n$/)
  nothingIsLeft(t, scratch)
})

t.test('an option where the image belongs: how to call it', async t => {
  const scratch = scratchFolder(t)
  const started = start(t, scratch, '--threads', '4')
  t.equal(await started.end, 1)
  t.match(started.output, /^Usage: [^\n]*\n$/)
  nothingIsLeft(t, scratch)
})

t.test('a server that is killed', { skip }, async t => {
  const scratch = scratchFolder(t)
  const started = start(t, scratch)
  await started.says('Ctrl-C unmounts.')
  await run('pkill', ['-KILL', '-P', String(started.child.pid)], scratch)
  t.equal(await started.end, 1)
  nothingIsLeft(t, scratch)
})

t.test('a file that is still open', { skip }, async t => {
  const scratch = scratchFolder(t)
  const started = start(t, scratch)
  await started.says('Ctrl-C unmounts.')
  const folder = join(scratch, readdirSync(scratch)[0]!)
  const reader = new Watched(
    'sh',
    ['-c', 'exec 3<disk.raw; echo open; exec sleep infinity'],
    folder,
  )
  await reader.says('open')

  started.child.kill('SIGINT')
  t.equal(await started.end, 0)
  const server = /Process (\d+) ends when the last open file is closed/.exec(started.output)?.[1]
  t.ok(server)
  nothingIsLeft(t, scratch)

  reader.child.kill()
  t.ok(await until(() => !existsSync(`/proc/${server}`)), 'it has ended')
})
