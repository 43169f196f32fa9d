/** A line on a terminal that says what a command waits for, and goes when that has ended. */
import { complain } from './output.js'

/** Work that takes less than this is not worth a line. */
const SHOWN_AFTER_MS = 1000

/** Returns what takes `line`, the last one on standard error, off the terminal. */
export function clearing(line: string): string {
  // A terminal without control sequences, such as that of an editor: spaces cover the line.
  const isDumb = process.env.TERM === 'dumb'
  return isDumb ? `\r${' '.repeat([...line].length)}\r` : '\r\x1b[K'
}

export class Note {
  private readonly timer: NodeJS.Timeout | undefined
  private isShown = false

  constructor(
    private readonly text: string,
    private readonly say: (text: string) => void = complain,
    isTerminal = process.stderr.isTTY === true,
    afterMs = SHOWN_AFTER_MS,
  ) {
    if (isTerminal) this.timer = setTimeout(() => this.show(), afterMs).unref()
  }

  end(): void {
    clearTimeout(this.timer)
    if (this.isShown) this.say(clearing(this.text))
    this.isShown = false
  }

  private show(): void {
    this.isShown = true
    this.say(this.text)
  }
}
