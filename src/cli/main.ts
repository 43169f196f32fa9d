#!/usr/bin/env node
/** The command line: finds the command, says what goes wrong in one line, and sets the exit code. */
import { isExpected, MountError, oneLine, UsageError } from '../errors.js'

/** Each command is loaded when it is called: starting fast is part of mounting fast. */
const COMMANDS: Record<string, () => Promise<{ run(args: string[]): Promise<number> }>> = {
  mount: () => import('./mount.js'),
  umount: () => import('./umount.js'),
  info: () => import('./info.js'),
  check: () => import('./check.js'),
  help: () => import('./help.js'),
}

async function main(args: string[]): Promise<number> {
  const [first, ...rest] = args
  if (first === undefined) {
    const { overview } = await import('./help.js')
    process.stderr.write(overview())
    return 2
  }
  if (first === '--version' || first === '-V') {
    const { VERSION } = await import('../version.js')
    process.stdout.write(`vimgfs ${VERSION}\n`)
    return 0
  }
  if (first === '--help' || first === '-h') return (await import('./help.js')).run([])
  const command = Object.hasOwn(COMMANDS, first) ? COMMANDS[first] : undefined
  if (!command) throw new UsageError(`there is no command "${first}"; vimgfs --help lists them`)
  if (rest.includes('--help') || rest.includes('-h')) {
    return (await import('./help.js')).run([first])
  }
  requireFolder()
  return (await command()).run(rest)
}

/** Names are relative to it. */
function requireFolder(): void {
  try {
    process.cwd()
  } catch {
    throw new MountError('the current folder has been deleted; change to one that is there')
  }
}

// Who reads our output may stop early (`| head -1`): that ends the output, not in an error.
process.stdout.on('error', error => {
  if ((error as NodeJS.ErrnoException).code !== 'EPIPE') throw error
})

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  process.exitCode = error instanceof UsageError ? 2 : 1
  const text = isExpected(error) ? oneLine(error) : (error as Error).stack
  process.stderr.write(`vimgfs: ${text}\n`)
}
