/** The package's version, from package.json beside the built code. */
import fs from 'node:fs'

export const VERSION: string = JSON.parse(
  fs.readFileSync(new URL('../package.json', import.meta.url), 'utf8'),
).version
