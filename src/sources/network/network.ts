/**
 * The network thread as the thread sees it that opens images: it is started with the first address, once for the process, and
 * each open waits for its answer.
 */
import { closeSync, type BigIntStats } from 'node:fs'
import { MessageChannel, type MessagePort, receiveMessageOnPort, Worker } from 'node:worker_threads'
import { ImageError } from '../../errors.js'
import { type Placeholder, placeholder, reopened } from '../../io/placeholder.js'
import { shownAddress } from '../address.js'
import { type CachedSource, ObjectState } from '../cached-store.js'
import { Mail, mailMemory } from '../mail.js'
import { currentSettings } from '../settings.js'
import { Counters } from './counters.js'
import type {
  NetworkAnswer,
  NetworkLine,
  NetworkRequest,
  NetworkSetup,
  ThreadSetup,
} from './protocol.js'

/** How much longer than its own timeout the thread may take. */
const GRACE_MS = 15_000

interface OpenObject {
  readonly address: string
  readonly source: CachedSource
  readonly modifiedSeconds: number | undefined
  /** All descriptors of the object are made from this one, so they have one inode. */
  readonly first: Placeholder
  users: number
}

/** An object that is open: a descriptor that stands for it, and how to read it. */
export interface OpenedObject {
  readonly fd: number
  readonly stat: BigIntStats
  readonly source: CachedSource
}

class Network {
  private readonly objects = new Map<number, OpenObject>()
  private readonly port: MessagePort
  private readonly lines: MessagePort
  private ids = 0

  constructor(private readonly setup: NetworkSetup) {
    const { port1, port2 } = new MessageChannel()
    const lines = new MessageChannel()
    this.port = port1
    this.lines = lines.port1
    const thread = new Worker(new URL('./network-thread.js', import.meta.url), {
      workerData: { ...setup, port: port2, lines: lines.port2 } satisfies ThreadSetup,
      transferList: [port2, lines.port2],
    })
    // The program ends without it.
    thread.unref()
    port1.unref()
  }

  /** Opens what is at `address`, or takes it again if it is open. Throws ImageError. */
  open(address: string): OpenedObject {
    const known = [...this.objects.values()].find(
      each => each.address === address && !new ObjectState(each.source.state).isChanged,
    )
    const object = known ?? this.openNew(address)
    object.users++
    const { fd, stat } = reopened(object.first.fd)
    return { fd, stat: withTime(stat, object.modifiedSeconds), source: object.source }
  }

  close(source: CachedSource): void {
    const object = this.objects.get(source.object)
    if (!object || --object.users > 0) return
    this.objects.delete(source.object)
    closeSync(object.first.fd)
    this.send({ do: 'close', id: source.object })
  }

  /** Calls `tell` for each line that a log should have. */
  onLine(tell: (line: NetworkLine) => void): void {
    this.lines.on('message', tell)
    this.lines.unref()
  }

  end(): void {
    new Mail(this.setup.mail).end()
  }

  private openNew(address: string): OpenObject {
    const done = new SharedArrayBuffer(4)
    const id = ++this.ids
    const settings = currentSettings()
    this.send({ do: 'open', id, address, settings, done })
    const limit = settings.timeoutMs + GRACE_MS
    Atomics.wait(new Int32Array(done), 0, 0, limit)
    const answer = this.answerTo(id)
    const path = shownAddress(address)
    if (!answer) throw new ImageError('MISSING', 'the server does not answer', { path })
    if ('problem' in answer) {
      const { problem, hint, isMissing } = answer
      const context = { path, ...(hint !== undefined && { hint }) }
      const cause = isMissing ? { cause: { code: 'ENOENT' } } : {}
      throw new ImageError(isMissing ? 'MISSING' : 'REFUSED', problem, context, cause)
    }
    const { source, modifiedSeconds } = answer
    const first = placeholder(source.sizeBytes)
    const object = { address, source, modifiedSeconds, first, users: 0 }
    this.objects.set(id, object)
    return object
  }

  /** Answers that came too late for others are thrown away. */
  private answerTo(id: number): NetworkAnswer | undefined {
    for (;;) {
      const received = receiveMessageOnPort(this.port)
      if (!received) return undefined
      const answer = received.message as NetworkAnswer
      if (answer.id === id) return answer
      if ('source' in answer) this.send({ do: 'close', id: answer.id })
    }
  }

  private send(request: NetworkRequest): void {
    this.port.postMessage(request)
  }
}

/** Without a time of the server, the object counts as written when it was opened. */
function withTime(stat: BigIntStats, seconds: number | undefined): BigIntStats {
  if (seconds !== undefined) stat.mtimeNs = BigInt(seconds) * 1_000_000_000n
  stat.mode = (stat.mode & ~0o777n) | 0o444n
  return stat
}

let network: Network | undefined

/** Returns the network of this process. */
export function theNetwork(): Network {
  network ??= new Network({
    mail: mailMemory(),
    counters: Counters.memory(),
  })
  return network
}

/** Makes all reads that wait for the network fail at once, and those that come. */
export function endNetwork(): void {
  network?.end()
}

/** Calls `tell` for each line that a log should have of objects that are open. */
export function onNetworkLine(tell: (line: NetworkLine) => void): void {
  network?.onLine(tell)
}
