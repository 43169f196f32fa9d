/**
 * The main thread's part of the direct transport: it mounts and answers INIT. The worker threads speak the kernel's protocol
 * after that (workers.ts, worker.ts).
 */
import { MountError } from '../../errors.js'
import { closeBacking } from '../../io/backing.js'
import type { LayerSpec } from '../../formats/format.js'
import { filesOf } from '../../image/layer.js'
import { errno, hasHungUp, read, write } from '../../io/libc.js'
import type { Logger } from '../../log.js'
import { Forgetter } from '../live/forgetter.js'
import { answerInit, type InitAnswer } from '../protocol/init.js'
import { mountFuse, unmountFuse } from '../mounting/mount.js'
import { type MountInfo, mountAt } from '../../io/mountinfo.js'
import { COHERENT_DIRECT_IO_MINOR, MESSAGE_BYTES } from '../protocol/protocol.js'
import { endWaiting } from '../../sources/registry.js'
import type { Forgetting, Session, SessionParts } from '../session.js'
import { Workers } from './workers.js'
import type { World } from '../live/world.js'

/** How often to look whether the mount has gone, if its image is not on this machine. */
const LOOK_MS = 200

const isRemote = (layer: LayerSpec): boolean => filesOf(layer).some(({ source }) => source)

export class DirectSession implements Session {
  readonly finished: Promise<void>
  private readonly workers: Workers
  private readonly forgetter = new Forgetter()
  private isServing = false
  private device = -1
  private mounted: MountInfo | undefined

  /** @param onDeath called if a worker dies that may have been writing, with the mount if there is one */
  constructor(
    private readonly parts: SessionParts,
    onDeath: (mount: MountInfo | undefined) => void,
  ) {
    this.workers = new Workers(parts, () => {
      if (this.isServing) onDeath(this.mounted)
    })
    this.finished = this.workers.finished
  }

  /** Waits until the first worker has loaded all code: without it, programs that touch the mount would hang. */
  prepare(): Promise<void> {
    return this.workers.prepare()
  }

  async mount(): Promise<MountInfo | undefined> {
    const { mountpoint, mountRequest, logger } = this.parts
    const device = mountFuse(mountRequest)
    this.mounted = mountAt(mountpoint)
    try {
      const { minor, hasPassthrough, hasWriteback } = negotiate(device, this.parts, logger)
      if (this.parts.writesBack && (!hasWriteback || minor < COHERENT_DIRECT_IO_MINOR)) {
        throw new MountError('this kernel is older than 6.6: leave out -o writeback')
      }
      if (this.parts.sharesBytes && minor < COHERENT_DIRECT_IO_MINOR) {
        throw new MountError(
          'this kernel is older than 6.6, so partitions can only be read: -o ro,partitions',
        )
      }
      this.isServing = true
      this.device = device
      this.workers.serve({ device, minor, hasPassthrough })
      if (this.parts.world.layers.some(isRemote)) this.endWaitingAtEnd(device)
    } catch (error) {
      if (this.mounted) unmountFuse(this.mounted, true)
      throw error
    }
    return this.mounted
  }

  show(world: World): void {
    this.workers.show(world)
    // No request is served where such files go, so nobody is about to open one.
    const ids = new Set(world.ids)
    for (const backing of this.parts.backings.retire(id => ids.has(id))) {
      closeBacking(this.device, backing)
    }
  }

  renewHelper(): Promise<void> {
    return this.workers.renewHelper()
  }

  async forget(stale: Forgetting): Promise<void> {
    // The kernel keeps no names where programs change the tree, and forgetting one needs the lock of the folder.
    const names = this.parts.changeTree ? [] : stale.names
    await this.forgetter.forget({ ...stale, names, paths: [], device: this.device })
  }

  /** Workers that all wait for the network do not see that the mount has gone. */
  private endWaitingAtEnd(device: number): void {
    const timer = setInterval(() => {
      if (hasHungUp(device)) endWaiting()
    }, LOOK_MS)
    void this.finished.then(() => clearInterval(timer))
  }

  async unmount(mount: MountInfo, detach: boolean): Promise<void> {
    unmountFuse(mount, detach)
  }

  end(): Promise<void> {
    return this.workers.end()
  }
}

/** Reads INIT and answers it, before any worker reads. */
function negotiate(
  device: number,
  { passthrough, writesBack }: Pick<SessionParts, 'passthrough' | 'writesBack'>,
  logger: Logger,
): Pick<InitAnswer, 'minor' | 'hasPassthrough' | 'hasWriteback'> {
  const message = Buffer.alloc(MESSAGE_BYTES)
  for (;;) {
    const length = read(device, message, message.length)
    if (length < 0) {
      const reason = errno()
      if (reason === 4 || reason === 11) continue
      throw new MountError(`the kernel's first message could not be read (errno ${reason})`)
    }
    const answer = answerInit(message.subarray(0, length), {
      passthrough: passthrough.why === undefined,
      writeback: writesBack,
    })
    const { reply, isFinal, minor, flags, hasPassthrough } = answer
    if (write(device, reply, reply.length) < 0) {
      throw new MountError(`the kernel refused our answer to INIT (errno ${errno()})`)
    }
    if (isFinal) {
      logger.debug({ protocol: `7.${minor}`, flags, hasPassthrough }, 'negotiated with the kernel')
      return answer
    }
  }
}
