/**
 * Runs a command of vimgfs in the test's own process, as its entry does, but without starting Node: that takes
 * most of the time of a command which only looks at an image, or refuses one.
 */
import fs from 'node:fs'
import { exitCodeOf, isExpected, oneLine } from '../../src/errors.js'
import type { Finished } from './run.js'

/** A command's function, such as that of src/cli/info.ts. */
type Command = (args: string[]) => Promise<number>

/** Runs `command` in the folder `cwd`, and catches what it prints. One at a time: the folder is the process's. */
export async function runHere(
  command: Command,
  args: readonly string[],
  cwd: string,
): Promise<Finished> {
  const printed = { 1: '', 2: '' }
  const { writeSync } = fs
  const before = process.cwd()
  const write = (fd: number, ...rest: [any]) => {
    if (fd !== 1 && fd !== 2) return writeSync(fd, ...rest)
    printed[fd] += String(rest[0])
    return Buffer.byteLength(rest[0])
  }
  fs.writeSync = write as typeof fs.writeSync
  process.chdir(cwd)
  let code: number
  try {
    code = await command([...args])
  } catch (error) {
    code = exitCodeOf(error)
    printed[2] += `vimgfs: ${isExpected(error) ? oneLine(error) : (error as Error).stack}\n`
  } finally {
    process.chdir(before)
    fs.writeSync = writeSync
  }
  return { code, stdout: printed[1], stderr: printed[2] }
}
