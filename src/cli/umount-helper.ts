/** Calls by umount(8), which runs umount.vimgfs for mounts that utab.ts has noted (umount(8), "External helpers"). */
import { UsageError } from '../errors.js'
import { reported } from './reporting.js'
import { run } from './umount.js'

/** Exit codes of umount(8). */
const WRONG_USAGE = 1
const FAILED = 32

/** Unmounts, with the options of umount(8). Returns its exit code. */
export async function runHelper(args: readonly string[]): Promise<number> {
  const code = await reported(async () => run(umountArguments(args), true))
  if (code === 2) return WRONG_USAGE
  return code === 0 ? 0 : FAILED
}

/** Returns the words for `vimgfs umount`. Throws UsageError. */
export function umountArguments(args: readonly string[]): string[] {
  const folders: string[] = []
  let isLazy = false
  for (let i = 0; i < args.length; i++) {
    const word = args[i] as string
    // umount(8) has entered the namespace that -N names, and the type is known.
    const [, flags, option, joined] = /^-([flnrv]*)(?:([Nt])(.*))?$/s.exec(word) ?? []
    if (!word.startsWith('-')) folders.push(word)
    else if (flags === undefined || word === '-') throw wrong(`it knows no option ${word}`)
    else {
      isLazy ||= flags.includes('l')
      if (option !== undefined && joined === '') i++
    }
  }
  if (folders.length !== 1) throw wrong('it takes one folder')
  return [...(isLazy ? ['--lazy'] : []), '--', ...folders]
}

const wrong = (problem: string): UsageError =>
  new UsageError(`umount.vimgfs DIR [-flnrv] [-N NAMESPACE] [-t TYPE]: ${problem}`)
