/** The start and the end of all bundles with commands. */
import { reported } from './reporting.js'

/** Runs a command with the program's arguments, and sets the exit code. */
export function startWith(main: (args: string[]) => Promise<number>): void {
  // Node's own output, such as a warning, must not end the program if it cannot be written.
  process.stdout.on('error', () => {})
  process.stderr.on('error', () => {})
  let hasEnded = false
  process.once('exit', () => {
    // A command that waits for what never comes must not look done.
    if (!hasEnded) process.exitCode ||= 1
  })
  void reported(() => main(process.argv.slice(2))).then(code => {
    process.exitCode = code
    hasEnded = true
  })
}
