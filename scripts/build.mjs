/**
 * npm run build: compiles src to dist, and writes the manual. With `--code` it leaves out the types, which only other packages need. With
 * `--if-older` it does nothing where dist is as new as the sources: npm ci and npm pack both build.
 *
 * esbuild bundles what is started: the command, the library and each thread. Opening two hundred modules takes Node longer
 * than running them.
 *
 *  (1) The bundles lie in dist itself, so names that are relative to a module hold in all of them: `./worker.cjs` for a
 *      module beside worker.ts, `../package.json` for a module of src.
 *  (2) What starts a thread says `new Worker(new URL('./NAME.js', import.meta.url)`, and lies beside NAME.ts. These words
 *      tell which bundles to make.
 *  (3) What every mount starts, the command and `NAME.cjs` threads, is NAME.bundle.cjs, with V8's code of it in NAME.code
 *      (src/cached-code.ts). These are CommonJS: only for that does Node take such code. They contain the npm packages that are
 *      JavaScript alone. All other bundles leave packages outside.
 *  (4) In them all modules share one object for each module of Node. esbuild makes one for each module that imports it, with a
 *      getter for each export: of node:fs alone thousands, which every start would wait for and every thread keep. Modules of
 *      Node that few starts need are opened when they are first used.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { build } from 'esbuild'
import { CLI, isBuilt, ROOT } from './bootstrap.mjs'
import { writeManual } from './manual.mjs'

const DIST = join(ROOT, 'dist')
const MAIN = 'cli/main'
const COMMANDS = ['cli/command', 'cli/mounting', 'cli/unmounting', 'cli/reading']
const LOADER = 'cached-code'
const LIBRARY = 'index'
const STARTS_THREAD = /new Worker\(\s*new URL\('\.\/([^']+)\.(c?)js', import\.meta\.url\)/g

/**
 * Returns the modules that are run as threads, relative to src and without a suffix.
 * @param kind 'c' for those of rule (3), '' for the others
 */
function threads(kind) {
  const sources = readdirSync(join(ROOT, 'src'), { recursive: true }).filter(name =>
    name.endsWith('.ts'),
  )
  return sources.flatMap(name => {
    const text = readFileSync(join(ROOT, 'src', name), 'utf8')
    return [...text.matchAll(STARTS_THREAD)]
      .filter(([, , c]) => c === kind)
      .map(([, thread]) => join(dirname(name), thread))
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

const entryOf = (name, out = basename(name)) => ({ in: `src/${name}.ts`, out })

const COMMON_JS = {
  ...OPTIONS,
  splitting: false,
  format: 'cjs',
  outExtension: { '.js': '.cjs' },
  charset: 'ascii',
  define: { 'import.meta.url': '__bundleUrl' },
  banner: {
    js:
      "const __bundleUrl=require('node:url').pathToFileURL(__filename).href," +
      '__nodes={},__node=name=>__nodes[name]??=' +
      '{__proto__:require(name),default:require(name)},' +
      '__late=name=>new Proxy({},{get:(_,key)=>__node(name)[key]});',
  },
  // import() does not find its way out of code that is loaded in this way.
  supported: { 'dynamic-import': false },
}
/** Packages that are not JavaScript alone, or that few need. */
const OUTSIDE = ['koffi', 'fuse-native', 'pino-pretty']

async function writeCode() {
  const cached = [...COMMANDS, ...threads('c')]
  await Promise.all([
    build({ ...OPTIONS, entryPoints: [entryOf(LIBRARY)] }),
    build({ ...COMMON_JS, entryPoints: [entryOf(MAIN, MAIN)], outExtension: {} }),
    // These are one file each: opening the many parts that all have in common would take longer.
    ...threads('').map(name =>
      build({ ...OPTIONS, entryPoints: [entryOf(name)], splitting: false }),
    ),
    build({ ...COMMON_JS, entryPoints: [entryOf(LOADER)] }),
    ...cached.map(name =>
      build({
        ...COMMON_JS,
        entryPoints: [entryOf(name, `${basename(name)}.bundle`)],
        packages: undefined,
        external: OUTSIDE,
      }),
    ),
  ])
  for (const name of cached) shareNodeModules(join(DIST, `${basename(name)}.bundle.cjs`))
  writeFileSync(join(DIST, dirname(MAIN), 'package.json'), '{"type":"commonjs"}\n')
  for (const name of threads('c').map(each => basename(each))) {
    writeFileSync(join(DIST, `${name}.cjs`), `require('./${LOADER}.cjs').loadBundle('${name}')\n`)
  }
  await Promise.all(cached.map(name => writeV8Code(basename(name))))
}

/** The forms that esbuild writes for `import fs from 'node:fs'` and for `import { createHash } from 'node:crypto'`. */
const NODE_MODULE = /__toESM\(require\(("node:[^"]+")\)(?:,1)?\)/g
const LATE_MODULE =
  /(?<=\bimport_\w+=\n?)(?:require|__node)\(("node:(?:child_process|crypto|readline)")\)/g

/** Rule (4). */
function shareNodeModules(file) {
  const code = readFileSync(file, 'latin1')
  const shared = code.replaceAll(NODE_MODULE, '__node($1)').replaceAll(LATE_MODULE, '__late($1)')
  if (shared === code)
    throw new Error(`${file}: esbuild writes imports of Node's modules otherwise`)
  writeFileSync(file, shared, 'latin1')
}

async function writeV8Code(name) {
  const loader = JSON.stringify(join(DIST, `${LOADER}.cjs`))
  const script = `require(${loader}).makeCode('${name}').then(() => process.exit())`
  const [code] = await once(spawn(process.execPath, ['-e', script], { stdio: 'inherit' }), 'exit')
  if (code !== 0) throw new Error(`V8 could not make the code of ${name}`)
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
  const results = await Promise.allSettled([
    writeCode(),
    writeManual(join(DIST, 'man')),
    ...(hasTypes ? [writeTypes()] : []),
  ])
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
