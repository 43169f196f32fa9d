/** What ends a process of tests, and that nothing of it is left then. */
import { existsSync } from 'node:fs'
import { basename } from 'node:path'
import t from 'tap'
import * as activity from '../support/activity.js'
import { needsRoot } from '../support/run.js'
import { until } from '../support/until.js'

const module = new URL('../../scripts/test-process.mjs', import.meta.url)
const { TestProcess } = await import(module.href)

const LIMITS = { quietSeconds: 2, busySeconds: 2, leftQuietSeconds: 1, lookMs: 100 }

async function runOf(script: string, limits = LIMITS) {
  const process = new TestProcess(activity, ['-e', script], { NODE_OPTIONS: '' }, limits)
  let output = ''
  const add = (data: Buffer) => {
    output += data
  }
  const end = await process.run({ stdout: add, stderr: add })
  return { ...end, output, hangs: process.hangs, left: process.left.join('\n') }
}

/** Prints the folder for temporary files, and starts something that nobody waits for. */
const LEAVES = `
  const { execFileSync, spawn } = require('node:child_process')
  console.log(process.env.TMPDIR)
  const child = spawn('sleep', ['100000'], { detached: true, stdio: 'inherit' })
  child.unref()
`

t.test('what waits for ever', async t => {
  const { hangs, output, left } = await runOf(`${LEAVES} setInterval(() => {}, 1000)`)
  t.match(hangs, /it hangs/)
  t.match(left, /^process \d+ sleep 100000$/)
  t.notOk(existsSync(output.trim()), 'its files are gone')
})

t.test('an endless loop', async t => {
  const { hangs, signal } = await runOf('for (;;);')
  t.match(hangs, /it does not end/)
  t.match(signal, /SIGALRM|SIGKILL/)
})

t.test('a process that waits for the work of another one', async t => {
  // Asking for the processor time takes some of the system's, too.
  const work = `const used = () => { const { user, system } = process.cpuUsage(); return user + system }
    while (used() < 3e6);`
  const script = `require('node:child_process').execFile(process.execPath, ['-e', \`${work}\`])`
  const found = await runOf(script, { ...LIMITS, busySeconds: 100 })
  t.match(found, { hangs: undefined, exitCode: 0, left: '' })
})

t.test('what prints now and then, and does nothing else', async t => {
  const script = `
    let n = 0
    const timer = setInterval(() => { console.log('ok'); if (++n > 3) clearInterval(timer) }, 1000)`
  t.match(await runOf(script), { hangs: undefined, exitCode: 0, left: '' })
})

t.test('what a test leaves counts, and goes', needsRoot(), async t => {
  const { exitCode, hangs, left, output } = await runOf(`${LEAVES}
    const folder = process.env.TMPDIR + '/a b'
    require('node:fs').mkdirSync(folder)
    execFileSync('mount', ['-t', 'tmpfs', 'none', folder])
    require('node:fs').writeFileSync(folder + '/disk', '')
    require('node:fs').truncateSync(folder + '/disk', 2 ** 20)
    console.log(String(execFileSync('losetup', ['--find', '--show', folder + '/disk'])))`)
  t.match({ exitCode, hangs }, { exitCode: 0, hangs: undefined })
  t.match(left, /^mount .*a b\nloop device \/dev\/loop\d+\nprocess \d+ sleep 100000$/)
  const [folder = '', device = ''] = output.split('\n')
  t.notOk(existsSync(folder), 'its files are gone')
  t.same(activity.mountsBelow(folder), [])
  t.match(device, /^\/dev\/loop\d+$/)
  t.ok(await until(() => !existsSync(`/sys/block/${basename(device)}/loop`)))
})
