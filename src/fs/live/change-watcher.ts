/**
 * The main thread's part of noticing that others change an image that is only read (image/opening/change-watch.ts). It makes the threads
 * that serve look before they answer, and looks itself: the kernel answers from its page cache without asking them.
 */
import type { ChangeWatch } from '../../image/opening/change-watch.js'
import type { Logger } from '../../log.js'
import { watchOf, type World } from './world.js'

/** Less than a second, so that a change is noticed within one. */
const LOOK_MS = 900
/** The most files of one look; an image of more files takes turns. */
const FILES_A_LOOK = 16

export class ChangeWatcher {
  private timer: NodeJS.Timeout | undefined
  private next = 0
  private isLooking = false
  private world: World | undefined
  private watch: ChangeWatch | undefined
  private dropPages: () => void = () => {}

  /**
   * @param image tells what the mount shows now
   * @param isScratch whether programs write scratch copies of it
   */
  constructor(
    private readonly image: { readonly world: World },
    private readonly isScratch: boolean,
    private readonly logger: Pick<Logger, 'error'>,
  ) {}

  /** @param dropPages makes the kernel forget what it has read of all files */
  start(dropPages: () => void): void {
    if (!this.image.world.watched) return
    this.dropPages = dropPages
    this.timer = setInterval(() => this.look(), LOOK_MS)
    this.timer.unref()
  }

  stop(): void {
    clearInterval(this.timer)
  }

  /** Called once for each world, when any thread has noticed that the file at `path` has changed. */
  noticed(path: string): void {
    // A thread that showed an older world may tell it late.
    if (!this.current()?.isChanged) return
    this.logger.error(
      { file: path },
      this.isScratch
        ? 'another program has changed the image: only what has been written to scratch copies can be read'
        : 'another program has changed the image: reading its files fails until vimgfs refresh',
    )
    this.dropPages()
  }

  private current(): ChangeWatch | undefined {
    const { world } = this.image
    if (world !== this.world) {
      this.world = world
      this.watch = watchOf(world, path => this.noticed(path))
      this.next = 0
    }
    return this.watch
  }

  private look(): void {
    const watch = this.current()
    watch?.makeDue()
    // Storage that does not answer must not collect looks.
    if (!watch || watch.isChanged || this.isLooking) return
    const looking = watch.lookApart(this.next, FILES_A_LOOK)
    this.next += FILES_A_LOOK
    if (this.next >= watch.count) this.next = 0
    if (!looking) return
    this.isLooking = true
    void looking.then(() => {
      this.isLooking = false
    })
  }
}
