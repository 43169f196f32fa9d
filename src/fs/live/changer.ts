/**
 * Changes what a mount shows while it is served, on the main thread.
 *
 *  (1) One change at a time, in the order in which they were asked for.
 *  (2) While the image's tables change, no request changes the disk, and all that was written before is in the file, as after
 *      unmounting. Reads go on in the old world until the new tables are valid.
 *  (3) After that, also after an error, all threads get a world that is made from the file as it is then. Where that is
 *      impossible, nothing is written any more.
 *  (4) The gate is open again whatever happens, before the kernel is told to forget: it may wait for requests.
 */
import { inWords, MountError } from '../../errors.js'
import type { LayerSpec } from '../../formats/format.js'
import type { WritableDisk } from '../../formats/writable.js'
import type { Chain } from '../../image/opening/chain.js'
import { changeQuietly, type ChangeSteps } from '../../image/writing/quiet-change.js'
import { reread } from '../../image/opening/reread.js'
import type { Logger } from '../../log.js'
import { GATE, type Gate } from '../workers/gate.js'
import { ROOT_ID } from '../protocol/protocol.js'
import type { ServedImage, WhatChanged } from '../served-image.js'
import type { Forgetting, Session } from '../session.js'
import { isOfDisk, staleNames } from './tree-of-world.js'
import type { World } from './world.js'

export class Changer {
  private last: Promise<unknown> = Promise.resolve()
  private hasEnded = false
  private waiting = 0

  constructor(
    private readonly image: ServedImage,
    private readonly session: Session,
    private readonly gate: Gate,
    private readonly logger: Logger,
  ) {}

  /** Runs `act` after all that was asked for before it. */
  inTurn<T>(act: () => Promise<T>): Promise<T> {
    const run = this.last.then(async () => {
      if (this.hasEnded) throw new MountError('the mount has ended')
      return await act()
    })
    this.waiting++
    this.last = run.catch(() => {}).finally(() => this.waiting--)
    return run
  }

  /** Whether a change is in progress, or waits for its turn. */
  get isBusy(): boolean {
    return this.waiting > 0
  }

  /** Resolves when no change is in progress. None begins afterwards. */
  async end(): Promise<void> {
    this.hasEnded = true
    await this.last
  }

  /**
   * Changes the tables of an image whose disk is written. Call it in turn. Throws what `act` throws, and SystemError.
   * @param changed whether the disk shows other bytes afterwards, too
   * @param act makes the change with the image's file as if it were not mounted, and calls the steps
   * @param require called when no request is served, before the change becomes valid; if it throws, nothing changes
   */
  async changeTables<T>(
    changed: Exclude<WhatChanged, 'files'>,
    require: () => void,
    act: (layer: LayerSpec, steps: ChangeSteps) => T,
  ): Promise<T> {
    const { gate, image, logger } = this
    const before = image.world
    const disk = image.views.disk as WritableDisk
    let result: T
    // Most of what has to reach the disk does so while requests go on.
    disk.flush()
    gate.set(GATE.changesWait)
    try {
      await gate.drained()
      // Nothing from here on to the opening of the gate may wait for an event: with libfuse, requests are events.
      result = changeQuietly(disk, {
        act: steps => act(reread(image.chain).layers[0], steps),
        alone: () => {
          gate.set(GATE.allWait)
          gate.drainNow()
          require()
        },
        show: hasChanged => {
          this.show(reread(image.chain), hasChanged ? changed : 'tables')
          gate.set(GATE.changesWait)
        },
        warn: warning => logger.warn(warning),
      })
    } finally {
      gate.set(GATE.open)
    }
    await this.forget(before, changed === 'content')
    return result
  }

  /**
   * Runs `act` while no request changes the disk, and the image's file is as after unmounting. Call it in turn. Throws what
   * `act` throws, and SystemError.
   */
  async whileQuiet<T>(act: () => Promise<T>): Promise<T> {
    const { gate, image, logger } = this
    const before = image.world
    gate.set(GATE.changesWait)
    try {
      await gate.drained()
      const { disk } = image.views
      if (disk?.failure !== '') return await act()
      disk.flush()
      try {
        for (const warning of disk.close()) logger.warn(warning)
        return await act()
      } finally {
        if (disk.failure === '') this.showOrEnd(disk)
      }
    } finally {
      gate.set(GATE.open)
      await this.forget(before, false)
    }
  }

  /** Begins anew with the image as its file is. If that is impossible, nothing is written any more. */
  private showOrEnd(disk: WritableDisk): void {
    try {
      this.show(reread(this.image.chain), 'tables')
    } catch (error) {
      disk.end(`it could not be read again: ${inWords(error)}`)
      throw error
    }
  }

  /**
   * Makes a new world without any change of the image's tables. Call it in turn. `chain` is the image as it is now.
   * @param onShown called when threads serve the new world; then the kernel still has to forget
   */
  async refresh(
    chain: Chain,
    changed: WhatChanged = 'files',
    onShown: () => void = () => {},
  ): Promise<void> {
    const before = this.image.world
    this.show(chain, changed)
    onShown()
    // Afterwards nobody serves the old world.
    await this.gate.drained()
    await this.forget(before, changed === 'content')
  }

  /** Shows an image whose files were opened again, at once everywhere: then nobody uses the old ones any more. Call it in turn. */
  async reopen(chain: Chain): Promise<void> {
    const { gate, session } = this
    const before = this.image.world
    gate.set(GATE.allWait)
    try {
      await gate.drained()
      this.show(chain, 'content')
      await session.renewHelper()
    } finally {
      gate.set(GATE.open)
    }
    const { world } = this.image
    const files = [...new Set([...before.ids, ...world.ids, ROOT_ID])]
    const stale = files.map(id => ({ id, pages: true }))
    await session.forget({ names: staleNames(before, world), files: stale })
  }

  /** Makes the kernel ask anew for the attributes of a file. The gate is open. */
  forgetAttributes(id: number): Promise<void> {
    return this.session.forget({ names: [], files: [{ id, pages: false }] })
  }

  /** Makes the kernel forget what it has read of all files, in turn. Logs a failure. */
  forgetPages(): void {
    const forgetting = this.inTurn(() => {
      const files = this.image.world.ids.map(id => ({ id, pages: true }))
      return this.session.forget({ names: [], files })
    })
    forgetting.catch(error => this.logger.error({ why: inWords(error) }, 'cached pages stay'))
  }

  private show(chain: Chain, changed: WhatChanged): void {
    const { image, session, gate } = this
    image.replace(chain, changed)
    session.show(image.world, image.views)
    gate.raise(image.world.number)
  }

  /** @param isOther whether the disk's bytes may differ from those that the kernel has kept */
  private forget(before: World, isOther: boolean): Promise<void> {
    const { world } = this.image
    const changed = world.entries.flatMap((entry, index) =>
      isOther && isOfDisk(entry) ? [{ id: world.ids[index] as number, pages: true }] : [],
    )
    const names = staleNames(before, world)
    const ids = new Set(world.ids)
    const gone = before.ids.filter(id => !ids.has(id)).map(id => ({ id, pages: true }))
    const folder = { id: ROOT_ID, pages: true }
    const stale: Forgetting = { names, files: [...changed, ...gone, folder] }
    return this.session.forget(stale)
  }
}
