/** Lists the test files, says which of them share a process, and puts them in order. */
import { readdirSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { ROOT } from './bootstrap.mjs'

/** Mounts wait for storage and for servers that end: with two more than there are processors, a fifth of these was idle. */
export const JOBS = availableParallelism() + 4
/** `others` start processes. A process that runs a file takes 0.3 s of a processor before the first test. */
const FILES_A_PROCESS = { quick: 16, soundness: 4, others: 4 }

/**
 * The longest files begin first, and the smallest ones come last: so all processors are busy to the end. These are the
 * longest files of the folders with large ones, by the processor time that they took; others follow in their folders' order.
 */
const LONGEST = [
  ...['fsx', 'filesystems', 'kill', 'fio', 'guest', 'recipes'].map(name => `test/real/${name}`),
  ...['threads', 'vmdk-threads', 'encrypted-threads', 'image-threads'].map(
    name => `test/soundness/${name}`,
  ),
  ...['lifecycle', 'writing', 'encrypted', 'remount', 'small-zeros'].map(
    name => `test/kernel/${name}`,
  ),
  'test/kernel/options',
  'test/package/pack',
  'test/peers/luks',
].map(name => `${name}.test.ts`)
/** Folders whose files mostly wait for other programs. */
const LARGE = ['real', 'kernel', 'peers', 'package'].map(name => `test/${name}/`)
/** A file with one of these starts threads, or looks at what its process uses as a whole. */
const IS_ALONE = /worker_threads|support\/(?:hostile-disk|watchdog)|memoryUsage|heapUsed/
/** A file with one of these starts processes. */
const STARTS_PROCESSES =
  /child_process|support\/mount|\{[^}]*\b(?:run|attempt)\b[^}]*\} from '[^']*support\/run/
/** Searches that take long, and not for a quick run. */
const IS_SEARCH = /^test\/soundness\//
/** Objects of what computes die young: with more room for them it takes some percent less, and up to 90 MB more. */
const COMPUTING_OPTIONS = ['--min-semi-space-size=32', '--max-semi-space-size=32']
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

/** Reports whether a test with this text mocks what modules import. */
export const mocksImports = text => text.includes('mockImport')

/** Names the files that may share a process with `file`: those of the same kind, but none with 'alone' and 'mocks'. */
function kindOf(file) {
  if (IS_SEARCH.test(file)) return HAS_THREADS.test(file) ? 'alone' : 'search'
  const text = readFileSync(join(ROOT, file), 'utf8')
  if (mocksImports(text)) return 'mocks'
  if (LONGEST.includes(file) || IS_ALONE.test(text)) return 'alone'
  const isLarge = LARGE.some(folder => file.startsWith(folder))
  const [, folder] = file.split('/')
  return isLarge || STARTS_PROCESSES.test(text) ? folder : 'quick'
}

/** Returns options of Node for a process that runs this group. They do not reach what it starts. */
export const optionsOf = group =>
  group.every(file => IS_SEARCH.test(file) || kindOf(file) === 'quick') ? COMPUTING_OPTIONS : []

/** Bytes, units and short properties. */
export function quickFiles() {
  const kinds = ['quick', 'mocks']
  return allFiles().filter(file => kinds.includes(kindOf(file)) && !IS_SHORT_SEARCH.test(file))
}

/** Groups of files; each group runs in a process of its own. What takes longest begins first. */
export function planOf(files) {
  const kinds = new Map()
  for (const file of files) {
    const kind = kindOf(file)
    kinds.set(kind, [...(kinds.get(kind) ?? []), file])
  }
  const take = kind => {
    const found = kinds.get(kind) ?? []
    kinds.delete(kind)
    return found
  }
  const searches = grouped(take('search'), FILES_A_PROCESS.soundness)
  const quick = grouped(take('quick'), FILES_A_PROCESS.quick)
  const others = [
    ...[...take('mocks'), ...take('alone')].map(file => [file]),
    ...[...kinds.values()].flatMap(files => grouped(files, FILES_A_PROCESS.others)),
  ].sort(([a], [b]) => rankOf(a) - rankOf(b))
  const isFirst = ([file]) => file.startsWith(LARGE[0])
  return [
    ...others.filter(isFirst),
    ...searches,
    ...quick,
    ...others.filter(group => !isFirst(group)),
  ]
}

function rankOf(file) {
  const at = LONGEST.indexOf(file)
  if (at >= 0) return at
  const folder = LARGE.findIndex(folder => file.startsWith(folder))
  return LONGEST.length + (folder < 0 ? LARGE.length : folder)
}

function grouped(files, size) {
  return Array.from({ length: Math.ceil(files.length / size) }, (_, index) =>
    files.slice(index * size, (index + 1) * size),
  )
}
