/** Files that must not outlive the program: they are removed when it ends, also by a signal that can be caught. */
import { constants } from 'node:os'
import fs from 'node:fs'

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const
const files = new Set<string>()

/** Removes the file at `path` when the program ends, until `keepAtEnd` is called. */
export function removeAtEnd(path: string): void {
  if (files.size === 0) {
    process.on('exit', removeAll)
    for (const signal of SIGNALS) process.on(signal, end)
  }
  files.add(path)
}

/** Takes back `removeAtEnd`. */
export function keepAtEnd(path: string | undefined): void {
  if (path === undefined || !files.delete(path) || files.size > 0) return
  process.off('exit', removeAll)
  for (const signal of SIGNALS) process.off(signal, end)
}

function removeAll(): void {
  for (const file of files) fs.rmSync(file, { force: true })
}

/** Ends as the signal would have ended the program, as far as a shell can tell. */
function end(signal: NodeJS.Signals): void {
  process.exit(128 + constants.signals[signal])
}
