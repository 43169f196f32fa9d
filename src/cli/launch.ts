/** Starts the server of a mount in the background, and waits for its report. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import readline from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import { MountError, printable } from '../errors.js'
import type { AskPassphrase } from '../image/opening/encryption.js'
import type { LeftMount } from '../fs/mounting/left-mount.js'
import { Interrupted } from '../interruption.js'
import { journalForServer } from '../journal.js'
import { complain, mention } from './output.js'
import type { Question } from './passphrase-relay.js'
import { ENDING_SIGNALS, NO_DEBUGGER } from './signals.js'

/** Tells the server in the background on which descriptor to report. It gets answers on the next descriptor. */
export const REPORT_FD_VARIABLE = 'VIMGFS_REPORT_FD'

/** Threads of a server: those of Node, two that serve, one that decompresses, and fusermount3. */
const SERVER_THREADS = 16
/** How long Node may take to start. */
const START_TIMEOUT_MS = 45_000

/** One line of the report. The first one says that the server runs; the last one asks nothing. */
export interface StartReport {
  readonly runs?: true
  readonly ask?: Question
  /** One line that says why the server waits. */
  readonly wait?: string
  readonly error?: string
  /** The exit code that goes with `error`. */
  readonly code?: number
  readonly lines?: readonly string[]
  readonly warnings?: readonly string[]
}

/** Starts the server and waits for its report. The server starts a session of its own once it has mounted. */
export async function launch(
  args: string[],
  mountpoint: string,
  quiet: boolean,
  passphraseFiles: readonly string[],
): Promise<number> {
  const script = process.argv[1] as string
  const { requireThreads } = await import('../fs/mounting/rlimits.js')
  requireThreads(SERVER_THREADS)
  const { LeftMount } = await import('../fs/mounting/left-mount.js')
  const leftMount = new LeftMount(mountpoint)
  let server: ChildProcess | undefined
  const interruption = new AbortController()
  const { passphraseSource } = await import('./passphrase.js')
  const passphrases = passphraseSource(passphraseFiles, interruption.signal)
  // A signal during the start must end the server, too. Spawning takes a while: if a signal ended this process
  // meanwhile, an unknown server would remain.
  for (const signal of [...ENDING_SIGNALS, 'SIGHUP'] as const) {
    process.on(signal, () => {
      interruption.abort()
      server?.kill('SIGTERM')
    })
  }
  const child = spawn(
    process.execPath,
    [...process.execArgv, NO_DEBUGGER, script, 'mount', ...args],
    {
      stdio: ['ignore', 'ignore', 'pipe', 'pipe', 'pipe'],
      // Node would read certificates at its start; see main.ts.
      env: {
        ...process.env,
        NODE_EXTRA_CA_CERTS: undefined,
        JOURNAL_STREAM: journalForServer(),
        [REPORT_FD_VARIABLE]: '3',
      },
    },
  )
  server = child
  const said = new Said(child)
  const report = await reportOf(child, passphrases.ask, said, leftMount)
    .catch(error => {
      throw interruption.signal.aborted ? new Interrupted() : error
    })
    .finally(() => passphrases.close())
  child.unref()
  for (const stream of child.stdio) stream?.destroy()
  if (interruption.signal.aborted) throw new Interrupted()
  if (report.error !== undefined) {
    complain(`vimgfs: ${report.error}\n`)
    return report.code ?? 1
  }
  complain(said.text)
  for (const warning of report.warnings ?? []) complain(`vimgfs: ${printable(warning)}\n`)
  // The disk is mounted, also if this line cannot be written.
  if (!quiet) mention(`${report.lines?.join('\n')}\n`)
  return 0
}

/** Returns the server's last report. Answers what it asks before. */
async function reportOf(
  child: ChildProcess,
  source: AskPassphrase,
  said: Said,
  leftMount: LeftMount,
): Promise<StartReport> {
  const failed = once(child, 'error').then(([error]) => Promise.reject(error))
  const exit = once(child, 'close')
  exit.catch(() => {})
  // There is no child if there were no descriptors for its pipes.
  if ((child.stdio as unknown) === undefined) return failed
  const [, , , reports, answers] = child.stdio as [unknown, unknown, unknown, Readable, Writable]
  // The pipe breaks when the server ends.
  answers.on('error', () => {})
  // If threads are scarce, Node hangs before it runs anything.
  const timer = setTimeout(() => child.kill('SIGKILL'), START_TIMEOUT_MS)
  const last = (async () => {
    for await (const line of readline.createInterface({ input: reports })) {
      clearTimeout(timer)
      const report = JSON.parse(line) as StartReport
      if (report.runs) continue
      if (report.wait !== undefined) complain(`vimgfs: ${printable(report.wait)}\n`)
      if (report.wait !== undefined) continue
      if (!report.ask) return report
      const { answer } = await import('./passphrase-relay.js')
      await answer(report.ask, source, answers)
    }
    clearTimeout(timer)
    await exit
    const isGone = await leftMount.remove()
    const wayOut = isGone ? '' : '; take its mount away with vimgfs umount'
    throw new MountError(`the server ended before the mount answered${said.reason}${wayOut}`)
  })()
  return Promise.race([last, failed])
}

/** The lines that the server prints on standard error while it starts. */
class Said {
  text = ''

  constructor(private readonly child: ChildProcess) {
    child.stderr?.on('data', part => {
      this.text += part
    })
  }

  /** Why it has ended, as the end of a sentence: its first words, or its signal. */
  get reason(): string {
    const lines = this.text.split('\n').map(line => line.trim())
    const line =
      lines.find(line => /error|fail|fatal/i.test(line)) ?? lines.find(line => line !== '')
    if (line !== undefined) return `: ${printable(line)}`
    const { signalCode } = this.child
    if (signalCode === null) return ''
    return `: ${signalCode} has ended it; there may be too few processes (ulimit -u) or too little memory`
  }
}
