/**
 * Where messages go: to a terminal in readable form; to a file or a pipe as JSON; from a server in the background to the
 * file that the user names, under systemd to the journal, to syslog, or to a default file. A log that cannot be opened or written does not prevent
 * mounting; only a file name that cannot be right is refused.
 */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import pino, { type Logger } from 'pino'
import { inWords, MountError } from './errors.js'
import { shownRecord } from './hidden-characters.js'
import { isJournal, startsInJournal } from './journal.js'
import {
  DescriptorSink,
  FileSink,
  JournalSink,
  type LogSink,
  NoSink,
  SyslogSink,
  withSeverity,
} from './log-sinks.js'

export type { Logger }

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

export interface LogTarget {
  readonly logger: Logger
  /** The place to name to the user; undefined if nothing is logged. */
  readonly place: string | undefined
  /** Why the place is not the one that was asked for. */
  readonly warnings: readonly string[]
  /** Opens the log's file again, or its socket. */
  reopen(): void
  /** Switches between the level that was asked for and the next more detailed one. */
  switchLevel(): void
}

const STDERR = 2

/** Returns a log to `file`, or to standard error. Throws MountError if the name of the file cannot be right. */
export async function foregroundLog(level: LogLevel, file: string | undefined): Promise<LogTarget> {
  if (file === undefined) return target(level, await terminalSink(), 'stderr')
  const opened = openOrExplain(file)
  return opened instanceof FileSink
    ? target(level, opened, path.resolve(file))
    : target(level, await terminalSink(), 'stderr', [`${opened}; it goes to standard error`])
}

/** Returns a log for a server in the background. Throws MountError if the name of `file` cannot be right. */
export function backgroundLog(level: LogLevel, file: string | undefined): LogTarget {
  const opened = file === undefined ? undefined : openOrExplain(file)
  if (file !== undefined && opened instanceof FileSink) {
    return target(level, opened, path.resolve(file))
  }
  const failures = typeof opened === 'string' ? [opened] : []
  const [sink, place] = someSink(failures)
  const outcome = place === undefined ? 'nothing is logged' : `the log is ${place}`
  // Without --log-file the line after mounting names the place, so there is nothing to warn about.
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
  if (isJournal(STDERR)) return new DescriptorSink(STDERR, withSeverity)
  if (!process.stderr.isTTY) return new DescriptorSink(STDERR)
  const { prettyFactory } = await import('pino-pretty')
  const pretty = prettyFactory({ colorize: true, ignore: 'pid,hostname' })
  return new DescriptorSink(STDERR, line => pretty(shownRecord(line)))
}

/** Returns the first place that takes a log, and its name. Adds to `failures` why the ones before it do not. */
function someSink(failures: string[]): [LogSink, string | undefined] {
  try {
    if (startsInJournal()) return [new JournalSink(), 'journalctl -t vimgfs']
  } catch {
    // A container may have the variables, and no journal.
  }
  try {
    return [new SyslogSink(), 'syslog']
  } catch {
    // Many machines have no syslog.
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
  // An empty or relative value counts as unset (XDG Base Directory Specification).
  const given = process.env.XDG_STATE_HOME ?? ''
  const state = path.isAbsolute(given) ? given : stateFolder()
  return [...(state === undefined ? [] : [path.join(state, 'vimgfs', 'vimgfs.log')]), last]
}

/** Returns the folder for the default log; undefined for a user without a home. */
function stateFolder(): string | undefined {
  try {
    return path.join(os.homedir(), '.local', 'state')
  } catch {
    return undefined
  }
}

/** The errors of open(2) that mean a wrong name, if open may create the file and follows no link. */
const MISTAKES: Record<string, string> = {
  ENOENT: 'its folder does not exist',
  ELOOP: 'it is a symbolic link',
  ENXIO: 'it is a FIFO without a reader, or a socket',
  EISDIR: inWords({ code: 'EISDIR' }),
  ENOTDIR: inWords({ code: 'ENOTDIR' }),
  ENAMETOOLONG: inWords({ code: 'ENAMETOOLONG' }),
}

const failure = (file: string, error: unknown): string => {
  const { code = '' } = error as NodeJS.ErrnoException
  const why = error instanceof MountError ? error.message : (MISTAKES[code] ?? inWords(error))
  return `${file}: the log cannot be written: ${why}`
}

/** Returns the opened file, or the reason if the machine refuses it. Throws MountError for a user's mistake. */
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
  // In a folder that others may write to, never write through a link of theirs.
  return fs.openSync(file, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0o600)
}

/** Opens a default log file. It may lie in a folder that all users may write to. */
function openOwnFile(file: string): number {
  const fd = openForAppending(file)
  const stat = fs.fstatSync(fd)
  if (stat.isFile() && stat.uid === process.geteuid?.()) return fd
  fs.closeSync(fd)
  throw new MountError('another user has made it')
}
