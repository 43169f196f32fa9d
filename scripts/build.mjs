/**
 * npm run build: compiles src to dist. With `--code` it leaves out the types, which only other packages need. With
 * `--if-older` it does nothing where dist is as new as the sources: npm ci and npm pack both build.
 *
 * esbuild bundles what is started: the command, the library and each thread. Opening two hundred modules takes Node longer
 * than running them. npm packages stay outside.
 *
 *  (1) The bundles lie in dist itself, so names that are relative to a module hold in all of them: `./worker.js` for a
 *      module beside worker.ts, `../package.json` for a module of src. The command, which lies deeper, uses no such name.
 *  (2) What starts a thread says `new Worker(new URL('./NAME.js', import.meta.url)`, and lies beside NAME.ts. These words
 *      tell which bundles to make.
 *  (3) What the command loads from a bundle of its own (ALONE) shares no object with it.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, rmSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { build } from 'esbuild'
import { CLI, isBuilt, ROOT } from './bootstrap.mjs'

const DIST = join(ROOT, 'dist')
const COMMAND = 'cli/main'
const LIBRARY = 'index'
/** Commands that are short enough for the opening of files to count. */
const ALONE = ['cli/converting']
const STARTS_THREAD = /new Worker\(\s*new URL\('\.\/([^']+)\.js', import\.meta\.url\)/g

/** Returns the modules that are run as threads, relative to src and without a suffix. */
function threads() {
  const sources = readdirSync(join(ROOT, 'src'), { recursive: true }).filter(name =>
    name.endsWith('.ts'),
  )
  return sources.flatMap(name => {
    const text = readFileSync(join(ROOT, 'src', name), 'utf8')
    return [...text.matchAll(STARTS_THREAD)].map(([, thread]) => join(dirname(name), thread))
  })
}

const OPTIONS = {
  absWorkingDir: ROOT,
  outdir: DIST,
  bundle: true,
  splitting: true,
  format: 'esm',
  platform: 'node',
  target: 'node20.19',
  packages: 'external',
  charset: 'utf8',
  // Names stay, for the stacks of bugs.
  minifyWhitespace: true,
  lineLimit: 200,
  logLevel: 'warning',
}

/** Leaves what ALONE names to its own bundle. */
const leavingAlone = {
  name: 'leaving-alone',
  setup: ({ onResolve }) => {
    const names = ALONE.map(name => basename(name)).join('|')
    onResolve({ filter: new RegExp(`^\\./(${names})\\.js$`) }, ({ path }) => ({
      path: `.${path}`,
      external: true,
    }))
  },
}

const entryOf = (name, out = basename(name)) => ({ in: `src/${name}.ts`, out })

async function writeCode() {
  const entryPoints = [entryOf(COMMAND, COMMAND), entryOf(LIBRARY)]
  // These are one file each: opening the many parts that all have in common would take longer.
  const [{ metafile }] = await Promise.all([
    build({ ...OPTIONS, entryPoints, metafile: true, plugins: [leavingAlone] }),
    ...[...threads(), ...ALONE].map(name =>
      build({ ...OPTIONS, entryPoints: [entryOf(name)], splitting: false }),
    ),
  ])
  const inCommand = metafile.outputs[`dist/${COMMAND}.js`].inputs
  for (const name of Object.keys(inCommand)) {
    if (readFileSync(join(ROOT, name), 'utf8').includes('import.meta')) {
      throw new Error(`${name} uses import.meta, but its code is part of ${COMMAND}.js: rule (1)`)
    }
  }
}

/** Only writes the types: `npm run types` and `npm test` check them, which takes longer. */
async function writeTypes() {
  const tsc = join(ROOT, 'node_modules/typescript/bin/tsc')
  const args = [tsc, '-p', join(ROOT, 'tsconfig.build.json'), '--noCheck']
  const [code] = await once(spawn(process.execPath, args, { stdio: 'inherit' }), 'exit')
  if (code !== 0) throw new Error('tsc has found errors')
}

async function make(hasTypes) {
  rmSync(DIST, { recursive: true, force: true })
  const results = await Promise.allSettled([writeCode(), ...(hasTypes ? [writeTypes()] : [])])
  for (const { reason } of results.filter(({ status }) => status === 'rejected')) {
    // esbuild has printed its errors.
    if (!reason.errors) console.error(reason.message)
    process.exitCode = 1
  }
  // A failed build must not look built.
  if (process.exitCode) rmSync(DIST, { recursive: true, force: true })
}

const isEnough = [CLI, join(DIST, `${LIBRARY}.d.ts`)].every(isBuilt)
if (!process.argv.includes('--if-older') || !isEnough) await make(!process.argv.includes('--code'))
