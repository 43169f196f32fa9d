/** Makes system calls for tests in other processes, which are kept for later calls. */
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { KeptProcess, Pool } from './kept-processes.js'
import { endIfHanging } from './run.js'

const CALLS = fileURLToPath(new URL('calls.mjs', import.meta.url))

const callers = new Pool((prefix, env) => new Caller(prefix, env))

/**
 * Runs a function of calls.mjs; resolves to its result.
 * @param prefix the words before the command, which say where it runs
 */
export const callIn = (
  prefix: readonly string[],
  env: NodeJS.ProcessEnv | undefined,
  name: string,
  args: readonly (string | number)[],
): Promise<any> => callers.use(prefix, env, caller => caller.call(name, args))

class Caller extends KeptProcess {
  private readonly lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]()
  private errors = ''

  constructor(prefix: readonly string[], env: NodeJS.ProcessEnv | undefined) {
    super(prefix, env, CALLS, '/')
    this.child.stderr.on('data', text => {
      this.errors += text
    })
  }

  async call(name: string, args: readonly (string | number)[]): Promise<any> {
    const stopWatching = endIfHanging(this.child)
    this.keepsProcess(true)
    this.child.stdin.write(`${JSON.stringify([name, args])}\n`)
    const { value } = await this.lines.next()
    this.keepsProcess(false)
    const how = stopWatching()
    if (value === undefined) {
      await this.ended
      throw new Error(`${name}(${args.join(', ')}): ${how}${this.errors}`)
    }
    const { result, error } = JSON.parse(value)
    if (error !== undefined) throw new Error(`${name}(${args.join(', ')}): ${error}`)
    return result
  }
}
