/**
 * The signals that the log listens to: SIGUSR1 switches its level, SIGUSR2 opens its file again. The module
 * is to be imported before all others. Without a handler, SIGUSR1 makes Node listen for a debugger, which
 * gives every local user the rights of this process; and SIGUSR2 ends the process.
 */
import type { LogTarget } from '../log.js'

let log: LogTarget | undefined

/** The signals that end programs. To a server in the background SIGHUP means to open the log again. */
export const ENDING_SIGNALS = ['SIGINT', 'SIGTERM'] as const

process.on('SIGUSR1', () => log?.switchLevel())
process.on('SIGUSR2', () => log?.reopen())

/** Has the signals act on `target`; before this they do nothing. */
export function obeyLogSignals(target: LogTarget): void {
  log = target
}

/**
 * An option of Node's that keeps SIGUSR1 from opening the debugger before this module is loaded: no machine
 * has this address (RFC 5737), so Node cannot listen there.
 */
export const NO_DEBUGGER = '--inspect-port=192.0.2.1:9229'

/** Whether the user has asked for the debugger. */
const wantsDebugger = [...process.execArgv, process.env.NODE_OPTIONS ?? ''].some(option =>
  /--inspect(?!-port)/.test(option),
)

/** Closes a debugger that SIGUSR1 has opened before this module was loaded. */
export async function closeDebugger(): Promise<void> {
  if (wantsDebugger || !process.features.inspector) return
  const inspector = await import('node:inspector')
  if (inspector.url() !== undefined) inspector.close()
}

await closeDebugger()
