/** Runs commands of vimgfs in processes that are kept for the next command (command-keeper.ts). */
import { fileURLToPath } from 'node:url'
import { KeptProcess, Pool } from './kept-processes.js'
import { endIfHanging, type Finished } from './run.js'

// Where this module runs from: its own URL is that of the source.
const KEEPER = fileURLToPath(import.meta.resolve('./command-keeper.js'))

/** Those that leave nothing for the end of their process to put right. */
const KEPT = new Set(['mount', 'umount', 'info', 'check', 'snapshot', 'refresh', 'map', 'compare'])

/** Reports whether `runKept` can run the command with this name. */
export const isKept = (name: string | undefined): boolean => name !== undefined && KEPT.has(name)

const keepers = new Pool((prefix, env) => new Keeper(prefix, env, KEEPER))

/**
 * Runs a command to its end, however it ends.
 * @param prefix the words before the command, which say where it runs
 * @param words the path of the program, the command and its arguments
 */
export const runKept = (
  prefix: readonly string[],
  env: NodeJS.ProcessEnv,
  words: readonly string[],
  cwd?: string,
): Promise<Finished> => keepers.use(prefix, env, keeper => keeper.run(words, cwd))

class Keeper extends KeptProcess {
  async run(words: readonly string[], cwd?: string): Promise<Finished> {
    const { stdin, stdout, stderr } = this.child
    const stopWatching = endIfHanging(this.child)
    this.keepsProcess(true)
    const ends = new AbortController()
    const ended = this.ended.finally(() => ends.abort())
    const texts = [stdout, stderr].map(stream => textOf(stream, ends.signal))
    stdin.write(`${JSON.stringify({ words, cwd })}\n`)
    const [printed, said] = (await Promise.all(texts)) as [Part, Part]
    this.keepsProcess(false)
    const how = stopWatching()
    if (printed.end !== undefined) {
      return { code: Number(printed.end), stdout: printed.text, stderr: said.text }
    }
    // A mount that is refused ends its process at once.
    const [code, signal] = await ended
    const reason = signal === null ? '' : `${words.join(' ')}: signal ${signal}${how}\n`
    return { code: code ?? -1, stdout: printed.text, stderr: `${reason}${said.text}` }
  }
}

interface Part {
  readonly text: string
  /** The keeper's own words after it; undefined if the keeper has ended before. */
  readonly end: string | undefined
}

/** Resolves to what comes up to a NUL and a line, or up to the end. */
function textOf(stream: NodeJS.ReadableStream, ends: AbortSignal): Promise<Part> {
  let bytes = Buffer.alloc(0)
  return new Promise(resolve => {
    const add = (part: Buffer) => {
      bytes = Buffer.concat([bytes, part])
      if (bytes.at(-1) === LINE_FEED && bytes.includes(0)) finish()
    }
    const finish = () => {
      stream.off('data', add)
      ends.removeEventListener('abort', finish)
      const [text = '', end] = String(bytes).split('\0')
      resolve({ text, end: end?.trimEnd() })
    }
    stream.on('data', add)
    ends.addEventListener('abort', finish)
  })
}

const LINE_FEED = 0x0a
