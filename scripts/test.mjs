/**
 * npm test [-- FILES]: lint, types, build and all tests; with FILES, the build and these tests.
 * npm run test:long [-- FILES]: the same with VIMGFS_TEST_LONG=1, for hours.
 *
 *  (1) Nothing hides a failure: a test that fails, crashes, takes too long or never runs has failed. The exit code is 0
 *      only if nothing failed and something passed.
 *  (2) CI runs as root and has all that a test may need, so a test that is skipped there has failed.
 *  (3) The last line is the count, in a form that a program can read.
 *
 * Every file runs in a process of its own with tap's loaders. tap's own runner is not used, because
 * it drops a file from its report when another one takes too long, against rule (1).
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import {
  ensureBuilt,
  ensureCommands,
  ensureNpmPackages,
  howToInstall,
  ROOT,
  run,
} from './bootstrap.mjs'
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
  'genisoimage',
  'lz4',
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
]
const JOBS = 2
/** npm run test:long runs the same files; some of them do more. */
const IS_LONG = process.env.VIMGFS_TEST_LONG === '1'
/** At its limit tap ends a file and says in which test it was. Some time after it, this runner kills the file. */
const LIMIT_SECONDS = IS_LONG ? 6 * 3600 : 300
const KILL_SECONDS = LIMIT_SECONDS + 15

/** Asks for raw TAP, and sets that limit. */
const TAP_ENV = { TAP: '1', TAP_TIMEOUT: `${LIMIT_SECONDS}` }

const children = new Set()
// A terminal's Ctrl-C reaches the children, too. A signal to this process alone does not.
for (const signal of ['SIGTERM', 'SIGHUP']) {
  process.once(signal, () => {
    for (const child of children) child.kill(signal)
    process.kill(process.pid, signal)
  })
}

const total = { passed: 0, failed: 0, skipped: [] }

run(async () => {
  try {
    await test()
  } catch (error) {
    total.failed++
    console.log(error.message)
  }
  return conclude()
})

async function test() {
  // npm has changed to this package's folder; the user's paths are relative to where npm was called.
  const cwd = process.env.INIT_CWD ?? process.cwd()
  const named = process.argv.slice(2).map(path => relative(ROOT, resolve(cwd, path)))

  ensureNpmPackages()
  const missing = ensureCommands(PEERS)
  if (missing.length > 0) {
    console.log(
      `Tests will be skipped for want of ${missing.join(', ')}. Install ${howToInstall(missing)}`,
    )
  }
  if (named.length === 0) {
    check('lint', 'biome', 'check', '--error-on-warnings', `--colors=${colors()}`)
    check('types', 'tsc')
  }
  ensureBuilt()

  const files = named.length > 0 ? named : testFiles()
  const { Parser } = await import('tap-parser')
  const loaders = execFileSync(tool('tap'), ['node-options'], { cwd: ROOT, encoding: 'utf8' })
  // tap's loader for processinfo only serves coverage. Its compiler for TypeScript takes two seconds for a test that
  // imports half of the sources; tsx, which caches its results, takes a quarter of that.
  const options = loaders.trim().split(' ').map(JSON.parse)
  const needed = options.filter(option => !/\/(processinfo|typescript)\//.test(option))
  needed.unshift(`--import=${new URL('typescript.mjs', import.meta.url)}`)
  const worker = async () => {
    for (let file = files.shift(); file; file = files.shift()) {
      const report = await runFile(file, needed, new Parser(), named.length > 0)
      total.passed += report.passed
      total.failed += report.failed
      total.skipped.push(...report.skipped)
    }
  }
  await Promise.all(Array.from({ length: JOBS }, worker))
}

async function runFile(file, options, parser, isVerbose) {
  const report = new FileReport(file, parser)
  const started = Date.now()
  const child = spawn(process.execPath, [...options, file], {
    cwd: ROOT,
    env: { ...process.env, ...TAP_ENV },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  children.add(child)
  const output = []
  child.stdout.on('data', data => parser.write(data))
  child.stderr.on('data', data => output.push(data))
  let isLate = false
  const timer = setTimeout(() => {
    isLate = true
    child.kill('SIGKILL')
    // A process that the file started may live on and hold these open.
    child.stdout.destroy()
    child.stderr.destroy()
  }, KILL_SECONDS * 1000)
  const [exitCode, signal] = await once(child, 'close')
  clearTimeout(timer)
  children.delete(child)
  parser.end()
  report.end({ exitCode, signal, isLate })

  const { passed, failed } = report
  const seconds = ((Date.now() - started) / 1000).toFixed(1)
  if (failed > 0 || isVerbose) process.stdout.write(`${report.output}${Buffer.concat(output)}`)
  if (failed > 0) process.stdout.write(report.text)
  console.log(`${failed > 0 ? 'FAIL' : 'ok  '} ${file}: ${passed + failed} tests, ${seconds} s`)
  return report
}

function check(name, command, ...args) {
  const { status } = spawnSync(tool(command), args, { cwd: ROOT, stdio: 'inherit' })
  if (status !== 0) total.failed++
  console.log(`${status === 0 ? 'ok  ' : 'FAIL'} ${name}`)
}

function testFiles() {
  const names = readdirSync(join(ROOT, 'test'), { recursive: true })
  return names
    .filter(name => name.endsWith('.test.ts'))
    .map(name => join('test', name))
    .sort()
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
