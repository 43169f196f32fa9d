/** An installation that lacks a module, or has one that does not fit the machine: one line, and exit code 1. */
import { spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { ROOT, SAMPLE, scratchFolder } from './processes.js'

interface Case {
  title: string
  /** Makes `modules`, a folder node_modules that is empty but for what this puts there. */
  make: (modules: string) => void
  message: RegExp
}

/** A module `name` that is only `text`. */
function put(modules: string, name: string, text: string): void {
  mkdirSync(join(modules, name), { recursive: true })
  writeFileSync(join(modules, name, 'index.cjs'), text)
  writeFileSync(join(modules, name, 'package.json'), JSON.stringify({ name, main: 'index.cjs' }))
}

const copyOf = (modules: string, ...names: string[]): void => {
  for (const name of names) {
    cpSync(join(ROOT, 'node_modules', name), join(modules, name), { recursive: true })
  }
}

const BINARIES = `@koromix/koffi-${process.platform}-${process.arch}`

const CASES: Case[] = [
  {
    title: 'no module at all',
    make: () => {},
    message:
      /the package (koffi|pino|fzstd|lru-cache), which vimgfs needs, is not installed; install what is missing with npm install --include=optional --prefix \/.*/,
  },
  {
    title: 'koffi without binaries, as npm install --omit=optional leaves it',
    make: modules => copyOf(modules, 'koffi'),
    message:
      /the package koffi, which vimgfs needs, cannot be loaded on this machine \(linux \w+, glibc\): it has no binary there; delete .*\/node_modules, and install/,
  },
  {
    title: 'koffi with a binary of another machine',
    make: modules => {
      copyOf(modules, 'koffi', BINARIES)
      for (const libc of ['linux', 'musl']) {
        const folder = join(modules, BINARIES, `${libc}_${process.arch}`)
        mkdirSync(folder, { recursive: true })
        writeFileSync(join(folder, 'koffi.node'), 'no library\n'.repeat(1000))
      }
    },
    message:
      /the package koffi, which vimgfs needs, cannot be loaded on this machine .*koffi\.node: .*; delete/,
  },
  {
    title: 'a C library that is not glibc',
    make: modules => {
      const why = 'Failed to load shared library: libc.so.6: cannot open shared object file'
      const load = `() => { throw new Error('${why}') }`
      put(modules, 'koffi', `module.exports = { default: { load: ${load} } }`)
    },
    message:
      /vimgfs needs glibc, .*libc\.so\.6.*; use a Node that is built for glibc, or run vimgfs in a system or a container that has it/,
  },
  {
    title: 'a C library without a function that is needed',
    make: modules => {
      const func = `() => { throw new Error("Cannot find function 'pread64' in shared library") }`
      const load = `() => ({ func: ${func} })`
      put(modules, 'koffi', `module.exports = { default: { load: ${load} } }`)
    },
    message: /vimgfs needs glibc, .*pread64/,
  },
]

const COMMANDS = (image: string, folder: string): string[][] => [
  ['mount', image, folder],
  ['mount', '-f', image, folder],
  ['info', image],
  ['check', image],
  ['convert', image, join(folder, 'copy.raw')],
  ['convert', '-c', '-O', 'qcow2', image, join(folder, 'copy.qcow2')],
  ['umount', folder],
]

const run = (main: string, args: string[]) =>
  spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' })

/** Copies the build to a temporary folder, with an empty node_modules. */
function installation(t: Test): { main: string; modules: string; folder: string } {
  const folder = scratchFolder(t)
  const modules = join(folder, 'node_modules')
  cpSync(join(ROOT, 'dist'), join(folder, 'dist'), { recursive: true })
  cpSync(join(ROOT, 'package.json'), join(folder, 'package.json'))
  mkdirSync(modules)
  return { main: join(folder, 'dist/cli/main.js'), modules, folder }
}

for (const { title, make, message } of CASES) {
  t.test(title, t => {
    const { main, modules, folder } = installation(t)
    make(modules)
    // Only koffi is looked at, unless nothing is there.
    if (readdirSync(modules).length > 0) {
      put(modules, 'pino', 'module.exports = {}')
      copyOf(modules, 'fzstd', 'lru-cache')
    }
    const image = join(folder, 'disk.qcow2')
    cpSync(SAMPLE, image)
    const commands = COMMANDS(image, folder)
    // The background and one command that does not mount do for the rest.
    const chosen = title === CASES[0]?.title ? commands : [commands[0]!, commands[2]!]
    for (const args of chosen) {
      const { status, stdout, stderr } = run(main, args)
      t.same({ status, stdout }, { status: 1, stdout: '' }, args.join(' '))
      t.match(stderr, message)
      t.match(stderr, /^vimgfs: [^\n]*\n$/, 'one line')
    }
    t.equal(run(main, ['help']).status, 0, 'help needs none')
    t.end()
  })
}

t.test('without fuse-native, which is optional, images are converted and read', t => {
  const { main, modules, folder } = installation(t)
  copyOf(modules, 'koffi', BINARIES, 'fzstd', 'lru-cache')
  const succeed = (...args: string[]) => {
    const { status, stderr } = run(main, args)
    t.same({ status, stderr }, { status: 0, stderr: '' }, args.join(' '))
  }
  for (const type of ['zlib', 'zstd']) {
    const packed = join(folder, type)
    const options = ['-c', '-O', 'qcow2', '-o', `compression_type=${type}`]
    succeed('convert', '--verify', ...options, SAMPLE, packed)
    succeed('convert', packed, `${packed}.raw`)
    succeed('compare', '-F', 'raw', SAMPLE, `${packed}.raw`)
    succeed('check', packed)
  }
  t.end()
})
