/**
 * Compiles src and test, each module on its own: once for a whole run of tests, because a loader that compiles what is
 * imported would do that anew in each of a hundred processes.
 *
 *  (1) The modules lie as their sources do, beside a link to the npm packages, so imports hold as they stand.
 *  (2) `import.meta.url` is still that of the source, so tests find the files beside them. What is started with
 *      `new Worker(new URL('./NAME.ts', import.meta.url)` is the compiled module, also where its code is watched (OwnCode).
 *  (3) tap is one bundle: its 330 modules take 170 ms of a processor in each process, and the bundle takes 60. Tests that
 *      mock imports get tap's modules, whose loader needs them as they are.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { SourceMap } from 'node:module'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { build, transform } from 'esbuild'
import { ROOT } from './bootstrap.mjs'
import { mocksImports } from './test-plan.mjs'

const COMPILED = ['src', 'test']
const STARTS_THREAD =
  /(new (?:Worker|OwnCode)\(\s*)new URL\('(\.[^']+?)(?:\.bundle)?\.(?:js|ts|cjs)', import\.meta\.url\)/g
const IMPORTS_TAP = /(\bfrom )'tap'/g
/** A place that tap leaves out of the stacks that it shows. */
const TAP = 'bundles/node_modules/@tapjs/tap/index.mjs'
const OPTIONS = {
  loader: 'ts',
  format: 'esm',
  target: 'node20.19',
  charset: 'utf8',
  sourcemap: 'external',
  tsconfigRaw: { compilerOptions: { target: 'ES2023', verbatimModuleSyntax: true } },
}

export class CompiledSources {
  #folder
  /** The source maps as JSON, by the names of the sources. */
  #maps = new Map()

  /** @param folder an empty folder, which outlives the code's use */
  constructor(folder) {
    this.#folder = folder
  }

  /** Throws the errors of esbuild. */
  async compile() {
    symlinkSync(join(ROOT, 'node_modules'), join(this.#folder, 'node_modules'))
    writeFileSync(join(this.#folder, 'package.json'), '{ "type": "module" }\n')
    const names = COMPILED.flatMap(folder =>
      readdirSync(join(ROOT, folder), { recursive: true }).map(name => join(folder, name)),
    )
    const sources = names.filter(name => name.endsWith('.ts'))
    await Promise.all([this.#bundleTap(), ...sources.map(name => this.#write(name))])
  }

  /** Returns the module of the source `name`, a path relative to ROOT. */
  moduleOf(name) {
    return join(this.#folder, name.replace(/\.ts$/, '.js'))
  }

  /** Returns `text` with sources and their lines in place of modules and theirs, as stacks name them. */
  inSources(text) {
    const [first, ...rest] = text.split(`${this.#folder}/`)
    const named = rest.map(part =>
      part.replace(/^([\w./-]+)\.js(?::(\d+):(\d+))?/, (_, name, line, column) => {
        const at =
          line === undefined ? '' : this.#placeOf(`${name}.ts`, Number(line), Number(column))
        return join(ROOT, `${name}.ts${at}`)
      }),
    )
    return [first, ...named].join('')
  }

  remove() {
    rmSync(this.#folder, { recursive: true, force: true })
  }

  /** Returns the line and the column in a source of those in its module, from 1 on. */
  #placeOf(name, line, column) {
    const map = this.#maps.get(name)
    const found = map && new SourceMap(JSON.parse(map)).findEntry(line - 1, column - 1)
    if (found?.originalLine === undefined) return ''
    return `:${found.originalLine + 1}:${found.originalColumn + 1}`
  }

  async #bundleTap() {
    const require = `import { createRequire as requireOf } from 'node:module'; const require = requireOf(import.meta.url);`
    await build({
      stdin: { contents: `export * from 'tap'; export { default } from 'tap'`, resolveDir: ROOT },
      bundle: true,
      platform: 'node',
      format: 'esm',
      target: OPTIONS.target,
      banner: { js: require },
      outfile: join(this.#folder, TAP),
      logLevel: 'warning',
    })
  }

  async #write(name) {
    const source = join(ROOT, name)
    const module = this.moduleOf(name)
    const toModule = (_, start, path) =>
      `${start}new URL('${pathToFileURL(join(dirname(module), path))}.js')`
    const tap = pathToFileURL(join(this.#folder, TAP))
    const text = readFileSync(source, 'utf8').replace(STARTS_THREAD, toModule)
    const bundled = mocksImports(text) ? text : text.replace(IMPORTS_TAP, `$1'${tap}'`)
    const { code, map } = await transform(bundled, {
      ...OPTIONS,
      sourcefile: source,
      define: { 'import.meta.url': JSON.stringify(String(pathToFileURL(source))) },
    })
    mkdirSync(dirname(module), { recursive: true })
    writeFileSync(module, code)
    this.#maps.set(name, map)
  }
}
