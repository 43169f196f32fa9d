/**
 * Where messages go: to the terminal in readable form, to a file or a pipe as JSON, and from a server
 * in the background to its file, to syslog, or to a file of its own. A log that cannot be opened or written
 * does not keep anybody from mounting; only a name that cannot be right is refused.
 */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import pino, { type Logger } from 'pino'
import { inWords, MountError } from './errors.js'
import { shownRecord } from './hidden-characters.js'
import { DescriptorSink, FileSink, type LogSink, NoSink, SyslogSink } from './log-sinks.js'

export type { Logger }

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

export interface LogTarget {
  readonly logger: Logger
  /** For the user: where to look; undefined where nothing is logged. */
  readonly place: string | undefined
  /** Why it is not the place that was asked for. */
  readonly warnings: readonly string[]
  /** Opens the log's file again, or its socket. */
  reopen(): void
  /** Switches between the level that was asked for and the next more detailed one. */
  switchLevel(): void
}

const STDERR = 2

/** Logs to `file`, or to standard error. Throws MountError where the name of the file cannot be right. */
export async function foregroundLog(level: LogLevel, file: string | undefined): Promise<LogTarget> {
  if (file === undefined) return target(level, await terminalSink(), 'stderr')
  const opened = openOrExplain(file)
  return opened instanceof FileSink
    ? target(level, opened, path.resolve(file))
    : target(level, await terminalSink(), 'stderr', [`${opened}; it goes to standard error`])
}

/** Logs for a server that nobody watches. Throws MountError where the name of `file` cannot be right. */
export function backgroundLog(level: LogLevel, file: string | undefined): LogTarget {
  const opened = file === undefined ? undefined : openOrExplain(file)
  if (file !== undefined && opened instanceof FileSink) {
    return target(level, opened, path.resolve(file))
  }
  const failures = typeof opened === 'string' ? [opened] : []
  const [sink, place] = someSink(failures)
  const outcome = place === undefined ? 'nothing is logged' : `the log is ${place}`
  // Which of the places that nobody asked for it is tells the hint.
  const warnings =
    opened !== undefined || place === undefined ? [`${failures.join('; ')}; ${outcome}`] : []
  return target(level, sink, place, warnings)
}

function target(
  level: LogLevel,
  sink: LogSink,
  place: string | undefined,
  warnings: readonly string[] = [],
): LogTarget {
  const logger = pino({ level }, sink)
  return {
    logger,
    place,
    warnings,
    reopen: () => sink.reopen(),
    switchLevel: () => {
      const detailed = LOG_LEVELS[Math.max(0, LOG_LEVELS.indexOf(level) - 1)] as LogLevel
      logger.level = logger.level === level ? detailed : level
      logger.info(`the log's level is ${logger.level}`)
    },
  }
}

async function terminalSink(): Promise<LogSink> {
  if (!process.stderr.isTTY) return new DescriptorSink(STDERR)
  const { prettyFactory } = await import('pino-pretty')
  const pretty = prettyFactory({ colorize: true, ignore: 'pid,hostname' })
  return new DescriptorSink(STDERR, line => pretty(shownRecord(line)))
}

/** The first place that takes a log, and its name; why the others do not is added to `failures`. */
function someSink(failures: string[]): [LogSink, string | undefined] {
  try {
    return [new SyslogSink(), 'syslog']
  } catch {
    // Many machines have none.
  }
  for (const file of fallbackFiles()) {
    try {
      fs.mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 })
      return [new FileSink(() => openOwnFile(file)), file]
    } catch (error) {
      failures.push(failure(file, error))
    }
  }
  return [new NoSink(), undefined]
}

function fallbackFiles(): string[] {
  const uid = process.getuid?.() ?? 0
  const last = path.join(os.tmpdir(), `vimgfs-${uid}.log`)
  if (uid === 0) return ['/var/log/vimgfs.log', last]
  // An empty or relative one counts as unset (XDG Base Directory Specification).
  const given = process.env.XDG_STATE_HOME ?? ''
  const state = path.isAbsolute(given) ? given : stateFolder()
  return [...(state === undefined ? [] : [path.join(state, 'vimgfs', 'vimgfs.log')]), last]
}

/** Undefined for a user without a home. */
function stateFolder(): string | undefined {
  try {
    return path.join(os.homedir(), '.local', 'state')
  } catch {
    return undefined
  }
}

/** What open(2) means of a name that cannot be right, where it may make the file and follows no link. */
const MISTAKES: Record<string, string> = {
  ENOENT: 'its folder does not exist',
  ELOOP: 'it is a symbolic link',
  ENXIO: 'it is a FIFO that nobody reads, or a socket',
  EISDIR: inWords({ code: 'EISDIR' }),
  ENOTDIR: inWords({ code: 'ENOTDIR' }),
  ENAMETOOLONG: inWords({ code: 'ENAMETOOLONG' }),
}

const failure = (file: string, error: unknown): string => {
  const { code = '' } = error as NodeJS.ErrnoException
  const why = error instanceof MountError ? error.message : (MISTAKES[code] ?? inWords(error))
  return `${file}: the log cannot be written: ${why}`
}

/** The opened file, or why the machine does not let us have it. Throws MountError for the user's mistake. */
function openOrExplain(name: string): FileSink | string {
  const file = path.resolve(name)
  try {
    return new FileSink(() => openForAppending(file))
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (code in MISTAKES) throw new MountError(failure(file, error))
    return failure(file, error)
  }
}

function openForAppending(file: string): number {
  const { O_WRONLY, O_APPEND, O_CREAT, O_NOFOLLOW, O_NONBLOCK } = fs.constants
  // In a folder that others may write to, a link or a file of theirs is not ours to write to.
  return fs.openSync(file, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0o600)
}

/** The same, for a name that nobody has chosen: it may lie in a folder that all may write to. */
function openOwnFile(file: string): number {
  const fd = openForAppending(file)
  const stat = fs.fstatSync(fd)
  if (stat.isFile() && stat.uid === process.geteuid?.()) return fd
  fs.closeSync(fd)
  throw new MountError('somebody else has made it')
}
