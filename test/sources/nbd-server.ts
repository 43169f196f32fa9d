/** NBD servers for tests: qemu-nbd and nbdkit on Unix sockets. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { until } from '../support/mount.js'

export interface NbdServer {
  readonly address: string
  readonly socket: string
  /** Ends it by a signal, and waits for its end. */
  end(signal?: NodeJS.Signals): Promise<void>
  start(): Promise<void>
}

/** Starts a server that listens at a socket in `folder`. `argsFor` returns its command for the socket's path. */
export async function nbdServer(
  t: Test,
  folder: string,
  argsFor: (socket: string) => readonly [string, ...string[]],
  exportName = 'disk1',
): Promise<NbdServer> {
  const socket = join(folder, `nbd-${++count}`)
  let child: ChildProcess | undefined
  const end = async (signal: NodeJS.Signals = 'SIGTERM') => {
    const running = child
    child = undefined
    if (!running || running.exitCode !== null || running.signalCode !== null) return
    running.kill(signal)
    await once(running, 'exit')
  }
  const start = async () => {
    rmSync(socket, { force: true })
    const [command, ...args] = argsFor(socket)
    child = spawn(command, args, { stdio: ['ignore', 'ignore', 'ignore'] })
    await until(() => existsSync(socket))
  }
  t.teardown(() => end('SIGKILL'))
  await start()
  return { address: `nbd+unix:///${exportName}?socket=${socket}`, socket, end, start }
}

let count = 0

/** Serves `file` as it is, to several clients. */
export const qemuNbd =
  (file: string, ...more: string[]) =>
  (socket: string): [string, ...string[]] => [
    'qemu-nbd',
    ...['-f', 'raw', '-x', 'disk1', '-k', socket, '-t', '-e', '8', ...more, file],
  ]

export const nbdkit =
  (...plugin: string[]) =>
  (socket: string): [string, ...string[]] => ['nbdkit', '-f', '-U', socket, ...plugin]
