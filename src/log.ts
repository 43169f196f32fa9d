/**
 * Where messages go: to the terminal in readable form, to a file or a pipe as JSON, and from a server
 * in the background to its file, to syslog, or to a file of its own: never into the void.
 */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import pino, { type Logger } from 'pino'
import { inWords, MountError } from './errors.js'
import { connectDatagram, sendDatagram } from './io/libc.js'

export type { Logger }

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

export interface LogTarget {
  readonly logger: Logger
  /** For the user: where to look. */
  readonly place: string
}

interface LineWriter {
  write(line: string): void
}

/** Logs to standard error. */
export async function terminalLog(level: LogLevel): Promise<LogTarget> {
  if (!process.stderr.isTTY)
    return { logger: pino({ level }, pino.destination({ fd: 2, sync: true })), place: 'stderr' }
  const { default: pretty } = await import('pino-pretty')
  const stream = pretty({ colorize: true, sync: true, destination: 2, ignore: 'pid,hostname' })
  return { logger: pino({ level }, stream), place: 'stderr' }
}

/** Logs to `file`, which is made if need be. Throws MountError. */
export function fileLog(level: LogLevel, file: string): LogTarget {
  const place = path.resolve(file)
  return { logger: pino({ level }, appender(place)), place }
}

/** For a server that nobody watches. Throws MountError when there is no place at all. */
export function backgroundLog(level: LogLevel): LogTarget {
  const syslog = syslogWriter()
  if (syslog) return { logger: pino({ level }, syslog), place: 'syslog' }
  const failures: string[] = []
  for (const file of fallbackFiles()) {
    try {
      fs.mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 })
      return fileLog(level, file)
    } catch (error) {
      failures.push((error as Error).message)
    }
  }
  throw new MountError(
    `there is no place for the log (${failures.join('; ')}); give one with --log-file`,
  )
}

function fallbackFiles(): string[] {
  const uid = process.getuid?.() ?? 0
  if (uid === 0) return ['/var/log/vimgfs.log']
  // An empty or relative one counts as unset (XDG Base Directory Specification).
  const given = process.env.XDG_STATE_HOME ?? ''
  const state = path.isAbsolute(given) ? given : path.join(os.homedir(), '.local', 'state')
  return [path.join(state, 'vimgfs', 'vimgfs.log'), path.join(os.tmpdir(), `vimgfs-${uid}.log`)]
}

/** What open(2) means where it may make the file, and follows no link. */
const REASONS: Record<string, string> = {
  ENOENT: 'its folder does not exist',
  ELOOP: 'it is a symbolic link',
  ENXIO: 'it is a FIFO that nobody reads, or a socket',
}

/** Each line is one write to a file opened for appending: servers may share it. */
function appender(file: string): LineWriter {
  const { O_WRONLY, O_APPEND, O_CREAT, O_NOFOLLOW, O_NONBLOCK } = fs.constants
  let fd: number
  try {
    // In a folder that others may write to, a link or a file of theirs is not ours to write to.
    fd = fs.openSync(file, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0o600)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    const special = code === undefined ? undefined : REASONS[code]
    throw new MountError(`${file}: the log cannot be written: ${special ?? inWords(error)}`)
  }
  return {
    write: line => {
      try {
        fs.writeSync(fd, line)
      } catch {
        // A full disk must not end the mount.
      }
    },
  }
}

const SYSLOG_SOCKET = '/dev/log'
const LOG_DAEMON = 3 << 3
/** pino's levels to syslog's severities. */
const severityOf = (level: number): number =>
  level >= 50 ? 3 : level >= 40 ? 4 : level >= 30 ? 6 : 7

function syslogWriter(): LineWriter | undefined {
  let fd: number
  try {
    fd = connectDatagram(SYSLOG_SOCKET)
  } catch {
    return undefined
  }
  return {
    write: line => {
      const { level = 30 } = JSON.parse(line) as { level?: number }
      const priority = LOG_DAEMON | severityOf(level)
      sendDatagram(fd, Buffer.from(`<${priority}>vimgfs[${process.pid}]: ${line.trimEnd()}`))
    },
  }
}
