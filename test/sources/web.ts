/** Starts the web server with faults for a test. */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'

export interface Seen {
  readonly requests: number
  readonly bytes: number
  readonly log: readonly {
    readonly method: string
    readonly url: string
    readonly headers: Readonly<Record<string, string>>
  }[]
}

export interface Rules {
  etag?: 'strong' | 'weak' | 'none'
  hasTime?: boolean
  version?: number
  obeysIfMatch?: boolean
  next?: string[]
  always?: string
  random?: { seed: number; percent: number; kinds: string[] }
  login?: string
  redirects?: Record<string, string>
}

export class Web {
  private constructor(
    private readonly child: ChildProcess,
    readonly port: number,
    private readonly scheme: string,
  ) {}

  /** @param tls a key and its certificate */
  static async start(
    t: Test,
    folder: string,
    tls?: { readonly key: string; readonly cert: string },
  ): Promise<Web> {
    const script = fileURLToPath(new URL('./server.mjs', import.meta.url))
    const child = fork(script, [folder, ...(tls ? [tls.key, tls.cert] : [])], { execArgv: [] })
    t.teardown(() => child.kill())
    const [{ port }] = (await once(child, 'message')) as [{ port: number }]
    return new Web(child, port, tls ? 'https' : 'http')
  }

  address(name: string): string {
    return `${this.scheme}://127.0.0.1:${this.port}/${name}`
  }

  /** Changes what the server does. */
  async set(rules: Rules): Promise<void> {
    await this.tell({ rules })
  }

  /** Returns what the server has got since the last call. */
  async seen(): Promise<Seen> {
    return this.tell({ forgets: true })
  }

  private async tell(message: object): Promise<Seen> {
    this.child.send(message)
    const [answer] = (await once(this.child, 'message')) as [{ seen: Seen }]
    return answer.seen
  }
}
