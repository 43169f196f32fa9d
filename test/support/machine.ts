/** A running QEMU with a disk image, but without a processor: it writes and takes snapshots when it is told to (QMP). */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Test } from 'tap'
import { until } from './until.js'

const DRIVE = 'disk'

export interface Machine {
  /** Runs a command for people (HMP), such as `savevm TAG`. Throws what it says. */
  tell(line: string): Promise<void>
  /** Runs a command of QMP. Throws its error. */
  ask(execute: string, args?: Record<string, unknown>): Promise<void>
  /** Writes bytes of one value to its disk. */
  write(value: number, offset: number, length: number): Promise<void>
  end(): Promise<void>
}

/** Starts a machine with the qcow2 image `image`. It ends with the test at the latest. */
export async function machine(t: Test, image: string): Promise<Machine> {
  const path = join(dirname(image), 'qmp')
  const child = spawn(
    'qemu-system-x86_64',
    [
      ...['-M', 'none', '-accel', 'tcg', '-nodefaults', '-display', 'none'],
      ...['-drive', `if=none,id=${DRIVE},file=${image},format=qcow2`],
      ...['-qmp', `unix:${path},server=on,wait=off`],
    ],
    { stdio: 'ignore' },
  )
  const ended = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    await ended
  })
  const socket = await connected(path)
  t.teardown(() => socket.destroy())
  const waiting: ((answer: { error?: { desc: string }; return?: unknown }) => void)[] = []
  const lines = createInterface({ input: socket })
  lines.on('error', () => {})
  lines.on('line', line => {
    const answer = JSON.parse(line)
    if ('return' in answer || 'error' in answer) waiting.shift()?.(answer)
  })
  const request = (execute: string, args?: Record<string, unknown>) =>
    new Promise<unknown>((resolve, reject) => {
      waiting.push(answer =>
        answer.error ? reject(new Error(answer.error.desc)) : resolve(answer.return),
      )
      socket.write(`${JSON.stringify({ execute, arguments: args })}\n`)
    })
  await request('qmp_capabilities')
  const tell = async (line: string) => {
    const said = String(await request('human-monitor-command', { 'command-line': line }))
    if (said.trim() !== '') throw new Error(`${line}: ${said}`)
  }
  return {
    tell,
    ask: async (execute, args) => void (await request(execute, args)),
    write: (value, offset, length) =>
      tell(`qemu-io ${DRIVE} "write -q -P ${value} ${offset} ${length}"`),
    end: async () => {
      socket.write('{"execute":"quit"}\n')
      await ended
    },
  }
}

/** Returns a connection to a socket that may not be there yet. Its later errors are ignored: a machine that ends resets it. */
async function connected(path: string): Promise<Socket> {
  let socket: Socket | undefined
  const isConnected = async () => {
    const tried = connect(path)
    const event = await Promise.race([
      once(tried, 'connect').then(() => true),
      new Promise<boolean>(resolve => tried.on('error', () => resolve(false))),
    ])
    if (event) socket = tried
    return event
  }
  if (!(await until(isConnected)) || !socket) throw new Error('QEMU has not started')
  return socket
}
