/** Reports that cannot be written: results, hints and the log. They never end or prevent serving. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, readlinkSync, renameSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  letGo,
  attemptIn,
  hasEnded,
  HERE,
  isMounted,
  isRunning,
  kill,
  MAIN,
  mount,
  mountFolder,
  NO_LOG,
  noFuse,
  READ_ONLY,
  runIn,
  sampleImage,
  serversOf,
  sharedFolder,
  until,
  launched,
} from '../support/mount.js'
import { needsRoot, type Finished } from '../support/run.js'

const SAMPLE = sampleImage(t)
const skip = noFuse()

/** Runs the command with a shell's redirections after it. */
const inShell = (words: readonly string[], redirections: string): Promise<Finished> => {
  const script = `exec "$@" ${redirections}`
  return attemptIn(HERE, 'bash', ['-c', script, 'bash', process.execPath, MAIN, ...words])
}

t.test('a result that cannot be printed: one line, exit code 1', async t => {
  for (const words of [
    ['info', SAMPLE],
    ['info', '--output=json', SAMPLE],
    ['check', SAMPLE],
    ['check', '--output=json', SAMPLE],
    ['help', 'mount'],
    ['--version'],
    ['--help'],
  ]) {
    const { code, stderr } = await inShell(words, '>/dev/full')
    t.same(
      [code, stderr],
      [1, 'vimgfs: standard output cannot be written: no space is left there\n'],
      words.join(' '),
    )
    const both = await inShell(words, '>/dev/full 2>&1')
    t.equal(both.code, 1)
  }
})

t.test('an error that cannot be printed keeps its exit code', async t => {
  t.equal((await inShell(['info', '/no/such'], '2>/dev/full')).code, 1)
  t.equal((await inShell(['infos'], '2>/dev/full')).code, 2)
  t.equal((await inShell(['infos'], '2>&-')).code, 2)
})

t.test('mounting in the background', skip, async t => {
  for (const redirections of [
    '>/dev/full',
    '2>/dev/full',
    '>/dev/full 2>&1',
    '<&- >&- 2>&-',
    '> >(exec true)',
  ]) {
    const folder = mountFolder(t)
    // -o ro,force-share has a warning to print.
    const words = ['mount', ...NO_LOG, '-o', 'ro,force-share', SAMPLE, folder]
    const { code } = await inShell(words, redirections)
    t.equal(code, 0, redirections)
    await serves(t, folder)
  }
})

t.test('serving in front', skip, async t => {
  for (const redirections of ['>/dev/full', '2>/dev/full', '>/dev/full 2>&1', '>&- 2>&-']) {
    const folder = mountFolder(t)
    const args = ['mount', '-f', '--log-level', 'trace', ...READ_ONLY, SAMPLE, folder]
    const ended = inShell(args, redirections)
    t.ok(await until(() => isMounted(HERE, folder)), redirections)
    await serves(t, folder)
    t.equal((await ended).code, 0)
  }
})

t.test('in front, the reader of the output goes away, or stops reading', skip, async t => {
  for (const how of ['goes', 'stops'] as const) {
    const folder = mountFolder(t)
    const args = ['-f', '--log-level', 'trace', SAMPLE, folder]
    const child = spawn(process.execPath, [MAIN, 'mount', ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    t.teardown(() => child.kill('SIGKILL'))
    const ended = once(child, 'exit')
    t.ok(await until(() => isMounted(HERE, folder)), how)
    if (how === 'goes') {
      child.stdout.destroy()
      child.stderr.destroy()
    }
    const [pid = 0] = serversOf(folder)
    // Each is a line of the log; a pipe has room for some hundred.
    for (let i = 0; i < 2000; i++) {
      kill(pid, 'SIGUSR1')
      if (i % 10 === 0) await new Promise(setImmediate)
    }
    await serves(t, folder)
    if (how === 'stops') child.stderr.resume()
    t.equal((await ended)[0], 0)
  }
})

t.test('a log on a full device, and one that the machine does not give', needsRoot(), async t => {
  await t.test('/dev/full', async t => {
    const folder = mountFolder(t)
    const { code } = await launched(HERE, ['mount', '--log-file', '/dev/full', SAMPLE, folder])
    t.equal(code, 0)
    await serves(t, folder)
  })
  await t.test('a file system that is read-only, with --log-file and without', async t => {
    const holder = sharedFolder(t)
    const folder = mountFolder(t)
    const script = [
      letGo(),
      `mount -t tmpfs -o ro none /var/log`,
      `[ ! -e /dev/log ] || mount --bind /dev/null /dev/log`,
      `export TMPDIR=${holder}`,
      `"$@" --log-file /var/log/x.log ${SAMPLE} ${folder} && "$1" "$2" umount ${folder}`,
      `"$@" ${SAMPLE} ${folder} && "$1" "$2" umount ${folder}`,
      `mount -t tmpfs -o ro none ${holder}`,
      `"$@" ${SAMPLE} ${folder} && "$1" "$2" umount ${folder}`,
    ].join('\n')
    const words = [process.execPath, MAIN, 'mount']
    const { code, stdout, stderr } = await attemptIn(HERE, 'unshare', [
      ...['--mount', '--propagation', 'private', 'sh', '-e', '-c', script, 'sh', ...words],
    ])
    t.equal(code, 0, stderr)
    const place = `${holder}/vimgfs-0.log`
    t.match(stdout, `(log: ${place})`)
    const reason = 'the log cannot be written: its file system is read-only'
    t.match(stderr, `vimgfs: /var/log/x.log: ${reason}`)
    t.match(stderr, `the log is ${place}`)
    t.match(stderr, 'nothing is logged')
  })
})

t.test('SIGUSR1 switches the level, and no debugger listens', skip, async t => {
  const { folder, pid, log } = await mount(t, SAMPLE, { args: READ_ONLY })
  for (const level of ['debug', 'info', 'debug']) {
    const before = log().split(`level is ${level}`).length
    kill(pid, 'SIGUSR1')
    t.ok(await until(() => log().split(`level is ${level}`).length > before), level)
  }
  t.same(listening(pid), [])
  await serves(t, folder)
})

t.test('SIGUSR1 before the program is loaded', skip, async t => {
  const folder = mountFolder(t)
  const starting = launched(HERE, ['mount', ...NO_LOG, ...READ_ONLY, SAMPLE, folder])
  // Node itself takes some ten milliseconds to start, in both processes.
  let sent = 0
  while (!(await isMounted(HERE, folder))) {
    for (const pid of serversOf(folder)) kill(pid, 'SIGUSR1')
    if (++sent > 2000) break
  }
  const { code, stderr } = await starting
  if (code !== 0) {
    // The very first moments of a process have no handler of Node's either.
    t.comment(stderr)
    return
  }
  const [pid = 0] = serversOf(folder)
  t.same(listening(pid), [])
  await serves(t, folder)
})

t.test('SIGUSR2 and SIGHUP open the log again', skip, async t => {
  const { folder, pid, logFile } = await mount(t, SAMPLE, { args: READ_ONLY })
  for (const signal of ['SIGUSR2', 'SIGHUP'] as const) {
    renameSync(logFile, `${logFile}.1`)
    kill(pid, signal)
    t.ok(await until(() => existsSync(logFile)), signal)
    kill(pid, 'SIGUSR1')
    t.ok(await until(() => readFileSync(logFile, 'utf8').includes('level is')))
  }
  t.ok(isRunning(pid))
  await serves(t, folder)
  t.match(readFileSync(logFile, 'utf8'), '"msg":"unmounted"')
})

/** It answers, and unmounting ends it. */
async function serves(t: Test, folder: string): Promise<void> {
  const [pid = 0] = serversOf(folder)
  t.match(await runIn(HERE, 'ls', [folder]), 'disk.raw', 'it answers')
  const { code, stderr } = await launched(HERE, ['umount', folder])
  t.equal(code, 0, stderr)
  t.ok(await hasEnded(t, pid), 'and ends')
}

/** The sockets of a process that listen (proc(5), /proc/pid/net/tcp). */
function listening(pid: number): string[] {
  const sockets = readdirSync(`/proc/${pid}/fd`).flatMap(fd => {
    try {
      return /^socket:\[([0-9]+)\]/.exec(readlinkSync(join(`/proc/${pid}/fd`, fd)))?.[1] ?? []
    } catch {
      return []
    }
  })
  return readFileSync(`/proc/${pid}/net/tcp`, 'utf8')
    .split('\n')
    .map(line => line.trim().split(/ +/))
    .filter(fields => fields[3] === '0A' && sockets.includes(fields[9] ?? ''))
    .map(fields => fields[1] ?? '')
}
