/**
 * npm test [-- FILES]: lint, types, build and all tests; with FILES, the build and these tests.
 * npm run test:quick: the build and the tests that only compute, in about a minute.
 * npm run test:long [-- FILES]: all tests with VIMGFS_TEST_LONG=1, for hours.
 * npm run test:costs [-- FILES]: each file alone, and what it costs in seconds of a processor. Needs root.
 *
 *  (1) Nothing hides a failure: what fails, crashes, hangs, leaves something behind or never ran counts as
 *      failed, and the exit code is 0 only if nothing failed and something passed.
 *  (2) CI runs as root and has all that a test may need, so a test that is skipped there has failed.
 *  (3) The last line is the count, in a form that a program can read.
 *
 * Files run in processes of their own, those that only compute several in one. tap's own runner is not used, because it
 * drops a file from its report when another one takes too long, against rule (1).
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { randomInt } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import {
  ensureBuilt,
  ensureCommands,
  ensureNpmPackages,
  howToInstall,
  ROOT,
  run,
} from './bootstrap.mjs'
import { ProcessorTime } from './processor-time.mjs'
import { allFiles, JOBS, mocksImports, optionsOf, planOf, quickFiles } from './test-plan.mjs'
import { removeFolders, sweepAll, temporaryFolder, TestProcess } from './test-process.mjs'
import { FileReport } from './test-report.mjs'

const PEERS = [
  'fusermount3',
  'qemu-img',
  'qemu-io',
  'qemu-nbd',
  'qemu-storage-daemon',
  'qemu-system-x86_64',
  'getfattr',
  'mke2fs',
  'mkfs.ext4',
  'mkfs.xfs',
  'mkfs.btrfs',
  'debugfs',
  'fio',
  'rsync',
  'nbdcopy',
  'ddrescue',
  'zstd',
  'losetup',
  'partx',
  'sfdisk',
  'vmdkmount',
  'qcowmount',
  'cryptsetup',
  'setpriv',
  'unshare',
  'automount',
  'bzip2',
  'cpio',
  'gcc',
  'fish',
  'genisoimage',
  'lz4',
  'mandoc',
  'mkfs.exfat',
  'mkfs.f2fs',
  'mkfs.fat',
  'mkfs.ntfs',
  'mksquashfs',
  'mkswap',
  'mount.fuse3',
  'nbdinfo',
  'nm',
  'xz',
  'zip',
  'zsh',
]
/** These call npm. The others do without certificates, which Node reads whenever it starts: longer than the rest takes. */
const usesNetwork = file => file.startsWith('test/package/')
const IS_QUICK = process.argv[2] === '--quick'
const SHOWS_COSTS = process.argv[2] === '--costs'
/** The entry of a process that runs several files. */
const SHARED = 'test/support/shared.ts'
/** Raw TAP. A process that hangs is ended by test-process.mjs. */
const TAP_ENV = { TAP: '1', TAP_TIMEOUT: '0' }

/** The process that looks at the code, if one has begun. */
let checking
/** Where costs are shown. */
let processorTime

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.once(signal, () => {
    checking?.kill()
    sweepAll()
    processorTime?.end()
    process.kill(process.pid, signal)
  })
}

const total = { passed: 0, failed: 0, skipped: [] }

run(async () => {
  try {
    await test()
  } catch (error) {
    fail(error.message)
  }
  removeFolders()
  return conclude()
})

async function test() {
  // npm has changed to this package's folder; the user's paths are relative to where npm was called.
  const cwd = process.env.INIT_CWD ?? process.cwd()
  const words = process.argv.slice(IS_QUICK || SHOWS_COSTS ? 3 : 2)
  const named = words.map(path => relative(ROOT, resolve(cwd, path)))
  const unknown = named.find(file => !existsSync(join(ROOT, file)))
  if (unknown !== undefined) throw new Error(`there is no test file ${unknown}`)

  ensureNpmPackages()
  const missing = ensureCommands(PEERS)
  if (missing.length > 0) {
    console.log(
      `Tests will be skipped for want of ${missing.join(', ')}. Install ${howToInstall(missing)}`,
    )
  }
  ensureBuilt()
  if (process.env.VIMGFS_TEST_LONG === '1') takeFreshSeeds()

  const files = named.length > 0 ? named : IS_QUICK ? quickFiles() : allFiles()
  const groups = named.length > 0 || SHOWS_COSTS ? files.map(file => [file]) : planOf(files)
  const runner = await runnerOf(named.length > 0 && !SHOWS_COSTS)
  /** Each resolves to the groups that have yet to run because of it. */
  const jobs = groups.map(group => () => runner(group))
  if (named.length === 0 && !IS_QUICK && !SHOWS_COSTS) jobs.unshift(checks)
  const worker = async () => {
    for (let job = jobs.shift(); job; job = jobs.shift()) {
      const rest = await job()
      jobs.unshift(...rest.map(group => () => runner(group)))
    }
  }
  if (SHOWS_COSTS) processorTime = new ProcessorTime()
  await Promise.all(Array.from({ length: SHOWS_COSTS ? 1 : JOBS }, worker))
  processorTime?.end()
}

/** Looks at the text of the code, while tests run. */
async function checks() {
  await check('lint', 'biome', 'check', '--error-on-warnings', `--colors=${colors()}`)
  await check('types', 'tsc')
  await check('structure', process.execPath, 'scripts/structure.mjs')
  return []
}

/** A long run looks where none has looked before; its seeds repeat it. */
function takeFreshSeeds() {
  for (const name of ['VIMGFS_TEST_SEED', 'FC_SEED', 'FSX_SEED', 'KILL_SEED']) {
    process.env[name] ??= `${randomInt(1_000_000)}`
  }
  const seeds = Object.entries(process.env).filter(([name]) => /^(?!npm).*_SEED$/.test(name))
  console.log(`Seeds: ${seeds.map(([name, seed]) => `${name}=${seed}`).join(' ')}`)
}

/** Runs a group of files in one process; resolves to the groups that have yet to run because of a crash. */
async function runnerOf(isVerbose) {
  const { Parser } = await import('tap-parser')
  const { CompiledSources } = await import('./compiled-sources.mjs')
  const code = new CompiledSources(temporaryFolder('code'))
  await code.compile()
  const activity = await import(code.moduleOf('test/support/activity.ts'))
  // Of tap's loaders only that for t.mockImport is needed, and it is asked about each import.
  const loadersOf = group => {
    const mocks = group.some(file => mocksImports(readFileSync(join(ROOT, file), 'utf8')))
    return mocks ? [`--import=${import.meta.resolve('@tapjs/mock/import')}`] : []
  }

  return async group => {
    const isShared = group.length > 1
    const parser = new Parser()
    const errors = []
    const begun = new Set()
    let current
    const begin = (file, ofFile) => {
      begun.add(file)
      const started = { time: Date.now(), cost: processorTime?.seconds }
      current = { file, report: new FileReport(file, ofFile), started }
    }
    const end = how => {
      const { file, report, started } = current
      current = undefined
      report.end(how)
      tell(file, report, started, errors.splice(0), isVerbose, code)
    }
    if (isShared) {
      parser.on('child', child => begin(child.name, child))
      parser.on('assert', ({ ok, name, diag }) => {
        // A file that fails before its first test has no child, and runs again on its own.
        if (current) end({ exitCode: 0, signal: null })
        else if (!ok && !group.includes(name)) fail(`${name}: ${JSON.stringify(diag)}`)
      })
    } else begin(group[0], parser)

    const test = new TestProcess(
      activity,
      [...optionsOf(group), ...loadersOf(group), code.moduleOf(isShared ? SHARED : group[0])],
      {
        ...TAP_ENV,
        // tap makes names of files out of the words of a process.
        ...(isShared && { VIMGFS_TEST_FILES: group.join(',') }),
        ...(!group.some(usesNetwork) && { NODE_EXTRA_CA_CERTS: undefined }),
      },
    )
    const how = await test.run({
      stdout: data => parser.write(data),
      stderr: data => errors.push(data),
    })
    // A file that the process was in has not come to its end.
    if (isShared && current) end({ ...how, hangs: test.hangs })
    parser.end()
    const { hangs, left } = test
    if (current) end({ ...how, hangs, left })
    else if (left.length > 0) fail(`${group.join(', ')}: left behind: ${left.join(', ')}`)
    return group.filter(file => !begun.has(file)).map(file => [file])
  }
}

function fail(line) {
  total.failed++
  console.log(line)
}

function tell(file, report, started, errors, isVerbose, code) {
  const { passed, failed, skipped } = report
  total.passed += passed
  total.failed += failed
  total.skipped.push(...skipped)
  const print = text => process.stdout.write(code.inSources(text))
  if (failed > 0 || isVerbose) print(`${report.output}${Buffer.concat(errors)}`)
  if (failed > 0) print(report.text)
  const seconds = ((Date.now() - started.time) / 1000).toFixed(1)
  const cost = processorTime
    ? `, ${(processorTime.seconds - started.cost).toFixed(1)} s of a processor`
    : ''
  const how = failed > 0 ? 'FAIL' : 'ok  '
  console.log(`${how} ${file}: ${passed + failed} tests, ${seconds} s${cost}`)
}

async function check(name, command, ...args) {
  // A name without a folder is a command of an npm package.
  const path = command.includes('/') ? command : tool(command)
  checking = spawn(path, args, { cwd: ROOT, stdio: ['ignore', 'pipe', 'pipe'] })
  const printed = []
  for (const stream of [checking.stdout, checking.stderr]) {
    stream.on('data', data => printed.push(data))
  }
  const [status] = await once(checking, 'close').catch(error => [error.message])
  if (status !== 0) {
    total.failed++
    process.stdout.write(Buffer.concat(printed))
  }
  console.log(`${status === 0 ? 'ok  ' : 'FAIL'} ${name}`)
}

function tool(name) {
  return join(ROOT, 'node_modules/.bin', name)
}

function colors() {
  return process.stdout.isTTY ? 'force' : 'off'
}

/** Prints the last line and returns the exit code. */
function conclude() {
  const { passed, skipped } = total
  for (const test of skipped) console.log(`skipped: ${test}`)
  const mayNotSkip = process.env.CI === 'true' && process.getuid() === 0 // rule (2)
  const failed = total.failed + (mayNotSkip ? skipped.length : 0)
  const rest = mayNotSkip || skipped.length === 0 ? '' : `, ${skipped.length} skipped`
  console.log(`${passed} passed, ${failed} failed${rest}`)
  return failed === 0 && passed > 0 ? 0 : 1
}
