/**
 * Where the lines of the log go. A log that fails must not end, delay or prevent serving. So a sink never throws and
 * never waits: a line that it cannot write now is lost, and a later line says how many were.
 */
import fs from 'node:fs'
import { jsonWithoutHidden } from './hidden-characters.js'
import { closeFile, connectDatagram, isReadyToWrite, sendDatagram } from './io/libc.js'

/** The target of a pino logger. */
export abstract class LogSink {
  private lostLines = 0

  /** Takes a line of JSON with its newline. Never throws. */
  write(json: string): void {
    // A user may read the log in a terminal, and other users may have chosen the names in it.
    const line = jsonWithoutHidden(json)
    if (this.lostLines > 0 && this.tryPut(lossLine(this.lostLines))) this.lostLines = 0
    if (this.lostLines > 0 || !this.tryPut(line)) this.lostLines++
  }

  /** Opens the file or socket again, if it has a name: logrotate moves the file away. Never throws. */
  abstract reopen(): void

  /** Writes a line. Returns false if that failed. May throw. */
  protected abstract put(line: string): boolean

  private tryPut(line: string): boolean {
    try {
      return this.put(line)
    } catch {
      return false
    }
  }
}

const lossLine = (count: number): string =>
  `${JSON.stringify({
    level: 40,
    time: Date.now(),
    pid: process.pid,
    msg: `${count} ${count === 1 ? 'line' : 'lines'} of the log could not be written`,
  })}\n`

/** A file. Each line is one write to its end, so several servers may share it. */
export class FileSink extends LogSink {
  private fd: number
  /** Whether the file ends inside a line. */
  private isTorn = false

  /** @param open opens the file for appending; throws */
  constructor(private readonly open: () => number) {
    super()
    this.fd = open()
  }

  override reopen(): void {
    let fd: number
    try {
      fd = this.open()
    } catch {
      // Go on with the old file.
      return
    }
    fs.closeSync(this.fd)
    this.fd = fd
    this.isTorn = false
  }

  protected override put(line: string): boolean {
    const bytes = Buffer.from(this.isTorn ? `\n${line}` : line)
    const written = fs.writeSync(this.fd, bytes)
    this.isTorn = written < bytes.length
    return !this.isTorn
  }
}

/** How many bytes a pipe takes without waiting if poll(2) says that it is ready (PIPE_BUF). */
const PIPE_BYTES = 4096
/** How long a reader may take for the rest of a line if it was fast enough before. */
const PATIENCE_MS = 200

/** A descriptor that vimgfs was given, such as standard error: its reader may be slow or stopped. */
export class DescriptorSink extends LogSink {
  private patienceMs = PATIENCE_MS
  private isTorn = false

  /** @param format turns a line of JSON into the text to write */
  constructor(
    private readonly fd: number,
    private readonly format: (line: string) => string = line => line,
  ) {
    super()
  }

  override reopen(): void {}

  protected override put(line: string): boolean {
    return this.putText(this.format(line))
  }

  /** Writes `text` as it is, if that needs no waiting. Never throws. */
  say(text: string): void {
    try {
      this.putText(text)
    } catch {
      // There is no reader any more.
    }
  }

  private putText(text: string): boolean {
    let rest = Buffer.from(this.isTorn ? `\n${text}` : text)
    while (rest.length > 0) {
      if (!isReadyToWrite(this.fd, this.patienceMs)) {
        this.patienceMs = 0
        return false
      }
      const written = fs.writeSync(this.fd, rest, 0, Math.min(rest.length, PIPE_BYTES))
      rest = rest.subarray(written)
      this.isTorn = rest.length > 0
    }
    this.patienceMs = PATIENCE_MS
    return true
  }
}

const SYSLOG_SOCKET = '/dev/log'
const JOURNAL_SOCKET = '/run/systemd/journal/socket'
const LOG_DAEMON = 3 << 3

/** Returns the severity, as syslog counts it, of a line of pino. */
function severityOf(line: string): number {
  const { level = 30 } = JSON.parse(line) as { level?: number }
  return level >= 60 ? 2 : level >= 50 ? 3 : level >= 40 ? 4 : level >= 30 ? 6 : 7
}

/** Returns a line with its severity in front, as systemd reads it from standard error (sd-daemon(3)). */
export const withSeverity = (line: string): string => `<${severityOf(line)}>${line}`

/** A socket that takes a datagram for each line. */
abstract class DatagramSink extends LogSink {
  private fd: number

  /** Throws SystemError if nobody listens. */
  constructor(private readonly socket: string) {
    super()
    this.fd = connectDatagram(socket)
  }

  override reopen(): void {
    let fd: number
    try {
      fd = connectDatagram(this.socket)
    } catch {
      return
    }
    closeFile(this.fd)
    this.fd = fd
  }

  protected abstract datagramOf(line: string, severity: number): string

  protected override put(line: string): boolean {
    const datagram = Buffer.from(this.datagramOf(line.trimEnd(), severityOf(line)))
    if (sendDatagram(this.fd, datagram)) return true
    // A restarted daemon has a new socket with the same name.
    this.reopen()
    return sendDatagram(this.fd, datagram)
  }
}

export class SyslogSink extends DatagramSink {
  constructor(socket = SYSLOG_SOCKET) {
    super(socket)
  }

  protected override datagramOf(line: string, severity: number): string {
    return `<${LOG_DAEMON | severity}>vimgfs[${process.pid}]: ${line}`
  }
}

/** The journal of systemd, in its own protocol (systemd's documentation, "Native Journal Protocol"): no field has a line break. */
export class JournalSink extends DatagramSink {
  constructor(socket = JOURNAL_SOCKET) {
    super(socket)
  }

  protected override datagramOf(line: string, severity: number): string {
    const fields = [`PRIORITY=${severity}`, 'SYSLOG_IDENTIFIER=vimgfs', `MESSAGE=${line}`]
    return `${fields.join('\n')}\n`
  }
}

/** Drops all lines, if there is no place for a log at all. */
export class NoSink extends LogSink {
  override reopen(): void {}

  protected override put(): boolean {
    return true
  }
}
