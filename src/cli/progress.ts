/** Shows how far a command has come: one line on a terminal, with the rate and the time left. */
import { clearing } from './note.js'
import { complain } from './output.js'
import { humanSize } from './human.js'
import { onProgressSignal } from './signals.js'

export interface ProgressOptions {
  /** -p: show it although standard error is no terminal. */
  readonly force?: boolean | undefined
  /** -q: never show it. */
  readonly quiet?: boolean | undefined
  /** Whether it is known only what part of all work is done, from 0 to 1, not how many bytes. */
  readonly isPart?: boolean | undefined
}

const EVERY_MS = 200
/** The time left is not guessed from a smaller part. */
const GUESSED_FROM = 0.001

/**
 * The progress of a command through `totalBytes` bytes. SIGUSR1 prints it once, also where it is not shown. That needs a turn
 * of the event loop, so a long command must take one now and then.
 */
export class Progress {
  private readonly begun = performance.now()
  private readonly isShown: boolean
  private readonly isPart: boolean
  private readonly isTerminal = process.stderr.isTTY === true
  private shownAt = Number.NEGATIVE_INFINITY
  private hasLine = false
  private shownLine = ''
  private done = 0
  private readonly stopListening: () => void

  constructor(
    private totalBytes: number,
    { force = false, quiet = false, isPart = false }: ProgressOptions = {},
    private readonly say: (text: string) => void = complain,
  ) {
    this.isPart = isPart
    this.isShown = !quiet && (force || this.isTerminal)
    this.stopListening = onProgressSignal(() => this.say(`${this.clear()}${this.line()}\n`))
  }

  /** Reports that `done` of all bytes are done; `totalBytes` changes how many there are. */
  update(done: number, totalBytes = this.totalBytes): void {
    this.done = done
    this.totalBytes = totalBytes
    if (!this.isShown) return
    const now = performance.now()
    if (now - this.shownAt < EVERY_MS) return
    this.shownAt = now
    this.show()
  }

  /** Adds to what is done. */
  add(bytes: number): void {
    this.update(this.done + bytes)
  }

  /** Ends the line: call it also after an error, before the error is printed. */
  end(): void {
    this.stopListening()
    if (!this.isShown || !this.hasLine) return
    if (this.done >= this.totalBytes) this.show()
    this.say(this.isTerminal ? clearing(this.shownLine) : '\n')
    this.hasLine = false
  }

  private show(): void {
    const line = this.line()
    this.say(`${this.isTerminal ? clearing(this.shownLine) : '\r'}${line}`)
    this.hasLine = true
    this.shownLine = line
  }

  private clear(): string {
    const clear = this.hasLine && this.isTerminal ? clearing(this.shownLine) : ''
    this.hasLine = false
    return clear
  }

  private line(): string {
    const seconds = (performance.now() - this.begun) / 1000
    const part = this.totalBytes > 0 ? Math.min(1, this.done / this.totalBytes) : 1
    const percent = `${(part * 100).toFixed(1)} %`.padStart(7)
    const rate = seconds > 0 ? this.done / seconds : 0
    const left = rate > 0 ? (this.totalBytes - this.done) / rate : 0
    const time = part < 1 && part >= GUESSED_FROM && rate > 0 ? `, ${duration(left)} left` : ''
    if (this.isPart) return `${percent}${time}`
    const speed = rate > 0 ? `, ${humanSize(rate)}/s` : ''
    return `${percent}  ${humanSize(this.done)} of ${humanSize(this.totalBytes)}${speed}${time}`
  }
}

/** Returns a time for people: "5 s", "3:05 min", "2:03 h". */
function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds))
  if (whole < 60) return `${whole} s`
  const two = (number: number) => String(number).padStart(2, '0')
  if (whole < 3600) return `${Math.floor(whole / 60)}:${two(whole % 60)} min`
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)} h`
}
