/**
 * Checks the shape of src: no modules that import each other in a circle, types included, and no file of more
 * than 400 lines. Prints what breaks these rules; exit code 1 if anything does.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const MAX_LINES = 400
/** Matches the names of modules in imports, exports and dynamic imports. */
const IMPORTED = /\b(?:from|import)\s*\(?\s*'(\.[^']+)'/g

/** The circles among modules: each a list in which every module imports the next one, the last the first. */
export function cyclesOf(imports) {
  const cycles = []
  const path = []
  const done = new Set()
  const visit = module => {
    const at = path.indexOf(module)
    if (at >= 0) cycles.push(path.slice(at))
    if (at >= 0 || done.has(module)) return
    path.push(module)
    for (const other of imports.get(module) ?? []) visit(other)
    path.pop()
    done.add(module)
  }
  for (const module of imports.keys()) visit(module)
  return cycles
}

/** Returns the imports of each source file in `folder`, by paths relative to it. */
export function importsOf(folder) {
  const names = readdirSync(folder, { recursive: true }).filter(name => name.endsWith('.ts'))
  return new Map(
    names.sort().map(name => {
      const text = readFileSync(join(folder, name), 'utf8')
      const imported = [...text.matchAll(IMPORTED)].map(([, path]) =>
        relative(folder, resolve(folder, dirname(name), path)).replace(/\.js$/, '.ts'),
      )
      return [name, imported]
    }),
  )
}

/** Files with more than MAX_LINES lines. */
export function lengthsOf(folder) {
  const problems = []
  for (const name of importsOf(folder).keys()) {
    const lines = readFileSync(join(folder, name), 'utf8').split('\n').length - 1
    if (lines <= MAX_LINES) continue
    problems.push(`${name} has ${lines} lines; at most ${MAX_LINES} are allowed`)
  }
  return problems
}

function main() {
  const folder = fileURLToPath(new URL('../src', import.meta.url))
  const cycles = cyclesOf(importsOf(folder))
  const lines = cycles.map(cycle => `import cycle: ${[...cycle, cycle[0]].join(' → ')}`)
  lines.push(...lengthsOf(folder))
  for (const line of lines) console.log(`src: ${line}`)
  return lines.length === 0 ? 0 : 1
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.exitCode = main()
