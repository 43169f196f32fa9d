/**
 * The guard of `vimgfs snapshot create --freeze`, which starts it: holds file systems frozen while its standard input is open,
 * and thaws them then. It takes no arguments: the first line of its input is a list of mounts.
 */
import fs from 'node:fs'
import { type GuardAnswer, openMount } from '../control/freezer.js'
import type { StandingMount } from '../control/standing-on.js'
import { inWords, oneLine, UsageError } from '../errors.js'
import { freeze, thaw } from '../io/freezing.js'

export async function run(args: string[]): Promise<number> {
  if (args.length > 0) throw new UsageError('hold-frozen takes no arguments; snapshot starts it')
  // Only the end of its input ends it.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGPIPE'] as const) {
    process.on(signal, () => {})
  }
  const { line, isEnd } = readLine()
  if (line === '') return 0
  const mounts = JSON.parse(line) as StandingMount[]
  const frozen = new Map<number, number>()
  let error: string | undefined
  for (const [place, mount] of mounts.entries()) {
    try {
      const fd = openMount(mount)
      if (freeze(fd)) frozen.set(place, fd)
    } catch (reason) {
      error = whyNot(mount, reason)
      break
    }
  }
  try {
    tell({ frozen: [...frozen.keys()], ...(error !== undefined && { error }) })
    if (error === undefined && !isEnd) while (readLine().line !== '');
  } catch {
    // The command has gone.
  }
  // In the other order: what stands on another one is thawed after it.
  for (const fd of [...frozen.values()].reverse()) thaw(fd)
  return 0
}

function whyNot({ mountpoint, type }: StandingMount, error: unknown): string {
  const { code } = error as NodeJS.ErrnoException
  if (code === undefined) return oneLine(error as Error)
  const why = code === 'EOPNOTSUPP' ? `${type} does not know how` : inWords(error)
  return `${mountpoint} cannot be frozen: ${why}; unmount it, or leave out --freeze: the snapshot is then as after a power cut`
}

const tell = (answer: GuardAnswer) => fs.writeSync(1, `${JSON.stringify(answer)}\n`)

/** Reads until a line or the input ends. */
function readLine(): { line: string; isEnd: boolean } {
  const chunk = Buffer.alloc(64 * 1024)
  let text = ''
  for (;;) {
    const bytes = fs.readSync(0, chunk)
    if (bytes === 0) return { line: text, isEnd: true }
    text += chunk.toString('utf8', 0, bytes)
    if (text.endsWith('\n')) return { line: text.trimEnd(), isEnd: false }
  }
}
