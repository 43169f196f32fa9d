/** Reports how a command has ended. */
import { exitCodeOf, isExpected, oneLine } from '../errors.js'
import { complain } from './output.js'

/** Runs a command. Returns its exit code; errors become one line, and those of the program itself a stack. Never throws. */
export async function reported(command: () => Promise<number>): Promise<number> {
  try {
    return await command()
  } catch (error) {
    const text = isExpected(error) ? oneLine(error) : (error as Error).stack
    complain(`vimgfs: ${text}\n`)
    return exitCodeOf(error)
  }
}
