/**
 * The signals of the log: SIGUSR1 switches its level, or prints how far a command has come; SIGUSR2 opens its file again. Import this module before all others:
 * without a handler, SIGUSR1 makes Node listen for a debugger, which gives every local user the rights of this process,
 * and SIGUSR2 ends the process.
 */
import { createRequire } from 'node:module'
import type { LogTarget } from '../log.js'

let log: LogTarget | undefined

/** The signals that end a server. SIGHUP is not one of them: it makes a server in the background open its log again. */
export const ENDING_SIGNALS = ['SIGINT', 'SIGTERM'] as const

const progress = new Set<() => void>()

process.on('SIGUSR1', () => {
  log?.switchLevel()
  for (const show of progress) show()
})
process.on('SIGUSR2', () => log?.reopen())

/** Makes the signals act on `target`. Before this call they do nothing. */
export function obeyLogSignals(target: LogTarget): void {
  log = target
}

/** Calls `show` for each SIGUSR1. Returns a function that ends this. */
export function onProgressSignal(show: () => void): () => void {
  progress.add(show)
  return () => progress.delete(show)
}

/**
 * An option for Node that keeps SIGUSR1 from opening the debugger before this module is loaded. No machine has this
 * address (RFC 5737), so Node cannot listen there.
 */
export const NO_DEBUGGER = '--inspect-port=192.0.2.1:9229'

/** Whether the user has asked Node for the debugger. */
const wantsDebugger = [...process.execArgv, process.env.NODE_OPTIONS ?? ''].some(option =>
  /--inspect(?!-port)/.test(option),
)

/** Closes a debugger that SIGUSR1 has opened before this module was loaded. */
export function closeDebugger(): void {
  if (wantsDebugger || !process.features.inspector) return
  const inspector: typeof import('node:inspector') = createRequire(import.meta.url)(
    'node:inspector',
  )
  if (inspector.url() !== undefined) inspector.close()
}

closeDebugger()
