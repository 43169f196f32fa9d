/**
 * Where the lines of the log go. A log that fails must not end, hold up or prevent serving, so a sink never
 * throws and does not wait: what it cannot write now is lost, and it says later how much was.
 */
import fs from 'node:fs'
import { jsonWithoutHidden } from './hidden-characters.js'
import { closeFile, connectDatagram, isReadyToWrite, sendDatagram } from './io/libc.js'

/** What pino writes to. */
export abstract class LogSink {
  private lostLines = 0

  /** Takes a line of JSON with its newline. Never throws. */
  write(json: string): void {
    // Whoever looks at the log with a terminal sees names that somebody else chose.
    const line = jsonWithoutHidden(json)
    if (this.lostLines > 0 && this.tryPut(lossLine(this.lostLines))) this.lostLines = 0
    if (this.lostLines > 0 || !this.tryPut(line)) this.lostLines++
  }

  /** Opens its place again, where that has a name: logrotate moves the file away. Never throws. */
  abstract reopen(): void

  /** Writes a line; false where that failed. May throw. */
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

/** A file; each line is one write to its end, so servers may share it. */
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
      // The old file is better than none.
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

/** A pipe takes so many bytes without waiting when poll(2) says that it is ready (PIPE_BUF). */
const PIPE_BYTES = 4096
/** How long a reader that was fast enough before may take for a part of a line. */
const PATIENCE_MS = 200

/** A descriptor of others, such as standard error: its reader may be slow, or have stopped. */
export class DescriptorSink extends LogSink {
  private patienceMs = PATIENCE_MS
  private isTorn = false

  /** @param format makes the text that is written of a line of JSON */
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

  /** Writes `text` as it is, if that can be done at once. Never throws. */
  say(text: string): void {
    try {
      this.putText(text)
    } catch {
      // Nobody can read it.
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
const LOG_DAEMON = 3 << 3
/** pino's levels to syslog's severities. */
const severityOf = (level: number): number =>
  level >= 50 ? 3 : level >= 40 ? 4 : level >= 30 ? 6 : 7

export class SyslogSink extends LogSink {
  private fd: number

  /** Throws SystemError where no syslog listens. */
  constructor(private readonly socket = SYSLOG_SOCKET) {
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

  protected override put(line: string): boolean {
    const { level = 30 } = JSON.parse(line) as { level?: number }
    const priority = LOG_DAEMON | severityOf(level)
    const datagram = Buffer.from(`<${priority}>vimgfs[${process.pid}]: ${line.trimEnd()}`)
    if (sendDatagram(this.fd, datagram)) return true
    // A syslog that was started anew has another socket by the same name.
    this.reopen()
    return sendDatagram(this.fd, datagram)
  }
}

/** Takes everything, where there is no place at all. */
export class NoSink extends LogSink {
  override reopen(): void {}

  protected override put(): boolean {
    return true
  }
}
