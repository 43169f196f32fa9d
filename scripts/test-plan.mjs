/** Lists the test files, says which of them share a process, and puts them in order. */
import { readdirSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { ROOT } from './bootstrap.mjs'

/** Mounts wait for much, so one more than there are processors. */
export const JOBS = availableParallelism() + 1
const FILES_A_PROCESS = { quick: 16, soundness: 4 }

/**
 * The longest files begin first, and the smallest ones come last: so all processors are busy to the end. These are the
 * longest files of the folders with large ones, by the processor time that they took; others follow in their folders' order.
 */
const LONGEST = [
  ...['fsx', 'filesystems', 'kill', 'fio', 'guest', 'recipes'].map(name => `test/real/${name}`),
  ...['threads', 'vmdk-threads', 'encrypted-threads', 'image-threads'].map(
    name => `test/soundness/${name}`,
  ),
  ...['writing', 'lifecycle', 'encrypted', 'remount', 'small-zeros'].map(
    name => `test/kernel/${name}`,
  ),
  'test/kernel/options',
  'test/package/pack',
  'test/peers/luks',
].map(name => `${name}.test.ts`)
/** Folders whose files mostly wait for other programs. */
const LARGE = ['real', 'kernel', 'peers', 'package'].map(name => `test/${name}/`)
/** A file with one of these starts processes or threads, or looks at what its process uses as a whole. */
const IS_ALONE =
  /child_process|worker_threads|support\/(?:hostile-disk|mount|watchdog)|memoryUsage|heapUsed|\{[^}]*\b(?:run|attempt)\b[^}]*\} from '[^']*support\/run/
/** Searches that take long, and not for a quick run. */
const IS_SEARCH = /^test\/soundness\//
/** Shorter ones. */
const IS_SHORT_SEARCH = /fuzz|hostile|properties|faults|power-cut|threads|claimed|test\/crypto/
/** Threads have code of their own, and are many already. */
const HAS_THREADS = /threads/

export function allFiles() {
  const names = readdirSync(join(ROOT, 'test'), { recursive: true })
  return names
    .filter(name => name.endsWith('.test.ts'))
    .map(name => join('test', name))
    .sort()
}

function sharesProcess(file) {
  if (IS_SEARCH.test(file)) return !HAS_THREADS.test(file)
  const isLarge = LARGE.some(folder => file.startsWith(folder))
  return !isLarge && !IS_ALONE.test(readFileSync(join(ROOT, file), 'utf8'))
}

/** Bytes, units and short properties. */
export function quickFiles() {
  const isLong = file => IS_SEARCH.test(file) || IS_SHORT_SEARCH.test(file)
  return allFiles().filter(file => sharesProcess(file) && !isLong(file))
}

/** Groups of files; each group runs in a process of its own. What takes longest begins first. */
export function planOf(files) {
  const shared = files.filter(sharesProcess)
  const searches = shared.filter(file => IS_SEARCH.test(file))
  const quick = shared.filter(file => !IS_SEARCH.test(file))
  const rank = file => {
    const at = LONGEST.indexOf(file)
    if (at >= 0) return at
    const folder = LARGE.findIndex(folder => file.startsWith(folder))
    return LONGEST.length + (folder < 0 ? LARGE.length : folder)
  }
  const alone = files.filter(file => !shared.includes(file)).sort((a, b) => rank(a) - rank(b))
  const isFirst = file => file.startsWith(LARGE[0])
  return [
    ...alone.filter(isFirst).map(file => [file]),
    ...grouped(searches, FILES_A_PROCESS.soundness),
    ...grouped(quick, FILES_A_PROCESS.quick),
    ...alone.filter(file => !isFirst(file)).map(file => [file]),
  ]
}

function grouped(files, size) {
  return Array.from({ length: Math.ceil(files.length / size) }, (_, index) =>
    files.slice(index * size, (index + 1) * size),
  )
}
