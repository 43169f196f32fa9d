/** The command line: finds the command, reports errors in one line, and sets the exit code. */
import './signals.js'
import { basename } from 'node:path'
import { UsageError } from '../errors.js'
import { nearest } from '../nearest.js'
import { complain } from './output.js'
import { startWith } from './start.js'

/** Each command is loaded only when it is called, so that mounting starts fast. */
const COMMANDS: Record<string, () => Promise<{ run(args: string[]): Promise<number> }>> = {
  mount: () => import('./mount.js'),
  umount: () => import('./umount.js'),
  list: () => import('./list.js'),
  stats: () => import('./stats.js'),
  info: () => import('./info.js'),
  check: () => import('./check.js'),
  commit: () => import('./commit.js'),
  rebase: () => import('./rebase.js'),
  snapshot: () => import('./snapshot.js'),
  create: () => import('./create.js'),
  convert: () => import('./convert.js'),
  cache: () => import('./cache.js'),
  map: () => import('./map.js'),
  compare: () => import('./compare.js'),
  diff: () => import('./diff.js'),
  resize: () => import('./resize.js'),
  measure: () => import('./measure.js'),
  usage: () => import('./usage.js'),
  refresh: () => import('./refresh.js'),
  completion: () => import('./completion.js'),
  help: () => import('./help.js'),
  // The scripts of shells ask this.
  complete: () => import('./complete.js'),
  // For --version by ordinary users.
  'fuse-version': () => import('./versions.js'),
  // The guard that snapshot create --freeze starts.
  'hold-frozen': () => import('./hold-frozen.js'),
}

const isUmountName = (name: string): boolean => /^umount(\.fuse)?\.vimgfs$/.test(basename(name))

async function main(args: string[]): Promise<number> {
  const [first, ...rest] = args
  if (first === undefined) {
    const { overview } = await import('./help.js')
    complain(await overview())
    return 2
  }
  if (first === '--version' || first === '-V') {
    return (await import('./versions.js')).showVersions()
  }
  if (first === '--help' || first === '-h') return (await import('./help.js')).run([])
  const command = Object.hasOwn(COMMANDS, first) ? COMMANDS[first] : undefined
  if (!command) {
    const program = basename(process.argv[1] ?? '')
    const code = await runForUtilLinux(program, args)
    if (code !== undefined) return code
    const { COMMAND_NAMES } = await import('./help/commands.js')
    const near = nearest(first, COMMAND_NAMES)
    throw new UsageError(`there is no command "${first}"${near}; vimgfs --help lists them`)
  }
  if (first !== 'complete' && (rest.includes('--help') || rest.includes('-h'))) {
    return (await import('./help.js')).run([first])
  }
  return (await command()).run(rest)
}

/**
 * Does what mount(8) or umount(8) asks for, and returns their exit code; undefined if neither has called. A package whose
 * program has another name says the name as the first word: `vimgfs mount.vimgfs IMAGE DIR`.
 */
async function runForUtilLinux(program: string, args: string[]): Promise<number | undefined> {
  const { helperCall, isHelperName, runHelper } = await import('./mount-helper.js')
  const [first = '', ...rest] = args
  const isNamed = isHelperName(first) || isUmountName(first)
  const [name, words] = isNamed ? [first, rest] : [program, args]
  if (isUmountName(name)) return (await import('./umount-helper.js')).runHelper(words)
  const call = helperCall(name, words)
  return call && (await runHelper(call))
}

export const start = (): void => startWith(main)

/** Loads what most commands need. The build calls it, to keep V8's code of that. */
export const loadAll = () => Promise.all([import('./help.js'), import('./snapshot.js')])
