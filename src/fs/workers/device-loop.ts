/** Reads requests from a worker's devices, has them answered, and sends the replies. */
import fs from 'node:fs'
import { availableParallelism, constants } from 'node:os'
import { u64le } from '../../binary.js'
import { errnoName } from '../../errors.js'
import { cloneDevice, errno, isReadyToRead, read, write } from '../../io/libc.js'
import type { WorkerActivity } from './activity.js'
import { type Coherence, HANDED_OVER } from '../partitions/coherence.js'
import type { LogEntry } from '../status/diagnostics.js'
import type { GatePass } from './gate.js'
import type { LookRequests } from '../live/look-requests.js'
import type { OpenCounts } from '../nodes/open-counts.js'
import { countReleased } from '../nodes/opening.js'
import type { Responder } from '../protocol/opcodes.js'
import type { Poller } from './poller.js'
import {
  IN_HEADER,
  MESSAGE_BYTES,
  OPCODE,
  OPEN_OUT,
  OUT_HEADER,
  WRITE_OUT,
} from '../protocol/protocol.js'
import { changesDisk, type LongRequests, PutAside } from './put-aside.js'
import type { WorkerStats } from '../status/stats.js'

const { EAGAIN, ECONNABORTED, EINTR, ENODEV, ENOENT } = constants.errno

/** How long to wait for a request while others are put aside, in milliseconds. */
const ASIDE_MS = 1

interface LoopParts {
  readonly responder: Responder
  readonly stats: WorkerStats
  readonly pass: GatePass
  readonly activity: WorkerActivity
  readonly opens: OpenCounts
  /** Present where several files show the same bytes and can be written. */
  readonly coherence: Coherence | undefined
  /** Present where some requests take the main thread long: changes of snapshots, or openings. */
  readonly errands: LongRequests | undefined
  log(entry: LogEntry): void
  /** Present if others may write the image meanwhile. */
  readonly looks: LookRequests | undefined
  /** Tells the main thread that a request has come after a pause, or that it is to look at the image. */
  tell(message: 'awake' | 'look'): void
}

/**
 * Opens the devices of a worker: one to sleep on and one to ask without waiting. A reply must go to the device that its request
 * came from. If the kernel does not allow cloning, all workers share `session`, and there is none to ask.
 */
function openDevices(session: number): { sleeping: number; asking: number } {
  const { O_RDWR, O_NONBLOCK } = fs.constants
  const clone = (flags: number) => {
    let fd: number
    try {
      fd = fs.openSync('/dev/fuse', O_RDWR | flags)
    } catch {
      return -1
    }
    if (cloneDevice(fd, session)) return fd
    fs.closeSync(fd)
    return -1
  }
  const sleeping = clone(0)
  return { sleeping: sleeping < 0 ? session : sleeping, asking: clone(O_NONBLOCK) }
}

/** Reads requests and answers them until the mount is gone. */
export class DeviceLoop {
  private readonly message = Buffer.allocUnsafeSlow(MESSAGE_BYTES)
  private readonly sleeping: number
  private readonly asking: number
  private readonly aside = new PutAside()

  constructor(
    session: number,
    private readonly parts: LoopParts,
  ) {
    const { sleeping, asking } = openDevices(session)
    this.sleeping = sleeping
    this.asking = asking
  }

  run(poller: Poller): void {
    const { message, sleeping, asking, aside } = this
    const polling = availableParallelism() > 1 ? asking : -1
    for (;;) {
      if (!aside.isEmpty || this.parts.errands?.isEmpty === false) {
        if (!this.runAside()) return
        continue
      }
      let device = polling
      let length = -1
      if (device >= 0) length = poller.poll(device, message)
      if (length < 0) {
        device = sleeping
        length = read(device, message, message.length)
        if (length < 0) {
          if (this.mayReadAgain()) continue
          return
        }
      }
      this.handle(message, length, device)
    }
  }

  /**
   * Handles one request while some wait: one that the main thread has done; one that was put aside, if the gate is open again; or
   * else a new one. Returns false at the end of the mount.
   */
  private runAside(): boolean {
    const { message, asking, aside } = this
    const { errands, pass } = this.parts
    const done = errands?.take()
    const waiting = done ?? (pass.holdsChanges ? undefined : aside.take())
    if (waiting) {
      this.handle(waiting.message, waiting.message.length, waiting.device, done?.errno)
      return true
    }
    // Without a device to ask this only sleeps.
    if (!isReadyToRead(asking, ASIDE_MS)) return true
    const length = read(asking, message, message.length)
    if (length < 0) return this.mayReadAgain()
    this.handle(message, length, asking)
    return true
  }

  /** @param outcome what has become of a change of the tree that the main thread has made */
  private handle(message: Buffer, length: number, device: number, outcome?: number): void {
    const { responder, stats, pass, activity, coherence, errands, looks, log } = this.parts
    // Before it enters: it may then enter another world.
    if (looks?.isDueFor(message)) looks.await(() => this.parts.tell('look'))
    const started = stats.start()
    const isOpen = pass.enter()
    if (activity.mustTell()) this.parts.tell('awake')
    if (!isOpen && !this.admit(message, length, device)) return
    if (outcome === undefined && errands?.begin(message, length, device)) {
      pass.leave()
      return
    }
    const bytes =
      coherence && outcome === undefined
        ? coherence.answer(message, length, device)
        : responder.answer(message, length, outcome)
    if (bytes > 0 && !send(device, responder.reply, bytes, log)) this.forget(message)
    pass.leave()
    if (bytes !== HANDED_OVER) countRequest(stats, message, responder.reply, bytes, started)
  }

  /** Nobody closes what was opened for a process that has gone. */
  private forget(message: Buffer): void {
    const { opens, responder } = this.parts
    const opcode = message.readUInt32LE(IN_HEADER.at.opcode)
    if (responder.reply.readInt32LE(OUT_HEADER.at.error) !== 0) return
    if (opcode === OPCODE.OPEN) {
      const at = OUT_HEADER.size + OPEN_OUT.at.fh
      countReleased(opens, u64le.get(message, IN_HEADER.at.nodeid), responder.reply, at)
    }
    if (opcode === OPCODE.CREATE) opens.released(u64le.get(responder.reply, OUT_HEADER.size))
  }

  /** Puts a request aside if it has to wait, and returns false. Where no more can be put aside, this thread waits. */
  private admit(message: Buffer, length: number, device: number): boolean {
    const { asking, aside } = this
    const isAdmitted = this.parts.pass.admit(
      changesDisk(message, length),
      asking < 0 || aside.isFull,
    )
    if (!isAdmitted) aside.add(message, length, device)
    return isAdmitted
  }

  /** Reports whether reading the device may be tried again, after an error. If not, the mount has gone. */
  private mayReadAgain(): boolean {
    const reason = errno()
    if (reason === ENOENT || reason === EINTR || reason === EAGAIN) return true
    if (reason !== ENODEV && reason !== ECONNABORTED) {
      this.parts.log({ level: 'error', message: `reading /dev/fuse failed: ${errnoName(reason)}` })
    }
    return false
  }
}

/** Counts a request in the statistics. */
export function countRequest(
  stats: WorkerStats,
  message: Buffer,
  reply: Buffer,
  bytes: number,
  started: number,
): void {
  const opcode = message.readUInt32LE(IN_HEADER.at.opcode)
  const error = bytes > 0 ? reply.readInt32LE(OUT_HEADER.at.error) : 0
  const written = error === 0 && opcode === OPCODE.WRITE
  const dataBytes = written
    ? reply.readUInt32LE(OUT_HEADER.size + WRITE_OUT.at.size)
    : bytes - OUT_HEADER.size
  stats.count(opcode, error, dataBytes, started)
}

/** Returns whether the kernel has taken the reply. */
export function send(
  device: number,
  reply: Buffer,
  bytes: number,
  log: (entry: LogEntry) => void,
): boolean {
  if (write(device, reply, bytes) >= 0) return true
  const reason = errno()
  // The asking process (ENOENT) or the whole mount has gone.
  if (reason !== ENOENT && reason !== ENODEV && reason !== ECONNABORTED) {
    log({ level: 'error', message: `a reply of ${bytes} bytes was refused: ${errnoName(reason)}` })
  }
  return false
}
