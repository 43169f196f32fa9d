/** Which test files there are, which of them share a process, and in which order they run. */
import { readdirSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { ROOT } from './bootstrap.mjs'

/** Mounts wait for much, so one more than there are processors. */
export const JOBS = availableParallelism() + 1
const FILES_A_PROCESS = 16

/** Folders whose files mount, or take long: a process of their own costs little there. */
const IS_LARGE = /^test\/(?:kernel|package|peers|real|soundness)\//
/** A file with one of these starts processes or threads, or looks at what its process uses as a whole. */
const IS_ALONE =
  /child_process|worker_threads|support\/(?:hostile-disk|mount|watchdog)|memoryUsage|heapUsed|\{[^}]*\b(?:run|attempt)\b[^}]*\} from '[^']*support\/run/
/** Long searches, not for a quick run. */
const IS_SEARCH = /fuzz|hostile|properties|faults|power-cut|threads/

export function allFiles() {
  const names = readdirSync(join(ROOT, 'test'), { recursive: true })
  return names
    .filter(name => name.endsWith('.test.ts'))
    .map(name => join('test', name))
    .sort()
}

const sharesProcess = file =>
  !IS_LARGE.test(file) && !IS_ALONE.test(readFileSync(join(ROOT, file), 'utf8'))

/** Bytes, units and short properties. */
export function quickFiles() {
  return allFiles().filter(file => sharesProcess(file) && !IS_SEARCH.test(file))
}

/** Groups of files; each group runs in a process of its own. */
export function planOf(files) {
  const shared = files.filter(sharesProcess)
  const alone = files.filter(file => !shared.includes(file)).map(file => [file])
  const groups = []
  while (shared.length > 0) groups.push(shared.splice(0, FILES_A_PROCESS))
  return [...alone, ...groups]
}
