/**
 * Runs commands of vimgfs for tests, one after the other: for each line of its input, the JSON of a command's words and folder,
 * it prints what the command prints. Then come a NUL and a line, on standard output with the exit code.
 */
import fs from 'node:fs'
import { createInterface } from 'node:readline'
import { reported } from '../../src/cli/reporting.js'
import { ENDING_SIGNALS } from '../../src/cli/signals.js'

interface Command {
  run(args: string[]): Promise<number>
}

const folder = process.cwd()
for await (const line of createInterface({ input: process.stdin })) {
  const { words, cwd = folder } = JSON.parse(line) as { words: string[]; cwd?: string }
  const [program = '', name = '', ...args] = words
  process.chdir(cwd)
  // The server is started by the same words as this process.
  process.argv[1] = program
  const code = await reported(async () => {
    const module: Command = await import(`../../src/cli/${name}.js`)
    return module.run(args)
  })
  for (const signal of [...ENDING_SIGNALS, 'SIGHUP']) process.removeAllListeners(signal)
  process.chdir(folder)
  fs.writeSync(2, '\0\n')
  fs.writeSync(1, `\0${code}\n`)
}
process.exit()
