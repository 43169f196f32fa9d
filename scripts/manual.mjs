/**
 * Writes the pages of the manual, from the descriptions that parsing and help use (src/manual/pages.ts). SOURCE_DATE_EPOCH
 * says which date they name; without it, it is that of today.
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { build } from 'esbuild'
import { ROOT } from './bootstrap.mjs'

/** Writes all pages into `folder`. */
export async function writeManual(folder) {
  mkdirSync(folder, { recursive: true })
  // Here it finds npm packages.
  const code = join(folder, 'pages.mjs')
  await build({
    absWorkingDir: ROOT,
    entryPoints: ['src/manual/pages.ts'],
    outfile: code,
    bundle: true,
    format: 'esm',
    platform: 'node',
    packages: 'external',
    logLevel: 'warning',
  })
  const { manualPages } = await import(code)
  rmSync(code)
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'))
  const seconds = process.env.SOURCE_DATE_EPOCH ?? Date.now() / 1000
  const date = new Date(seconds * 1000).toISOString().slice(0, 10)
  for (const [name, text] of await manualPages(date, version)) {
    writeFileSync(join(folder, name), text)
  }
}
