/**
 * Flushes a disk that is mounted for writing, on the main thread: every few seconds and at the end, also if no program asks
 * for it. Logs each failure once.
 */
import { isExpected } from '../../errors.js'
import type { WritableDisk } from '../../formats/writable.js'
import type { Logger } from '../../log.js'

const lost = (path: string) => `${path} has been removed, or replaced, while it was mounted`

/** Flushes what is written, on the main thread. */
export interface Keeper {
  /** Flushes every `seconds` seconds, after `prepare`; never if that is 0. */
  start(seconds: number, prepare?: () => Promise<void>): void
  /** Flushes once. Does nothing after `close`. */
  flush(): void
  /** Ends writing. No other thread may write any more. Returns whether all that has to be kept is kept. */
  close(): boolean
}

export class DiskKeeper implements Keeper {
  private timer: NodeJS.Timeout | undefined
  private readonly logged = new Set<string>()
  private isClosed = false

  /**
   * @param onFlush called whenever there is something to flush
   * @param removed the files of the image that have been removed since they were opened
   */
  constructor(
    private disk: WritableDisk,
    private readonly onFlush: () => void,
    private readonly removed: () => readonly string[],
    private readonly logger: Logger,
  ) {}

  /** Keeps another disk from now on: the same one in a new world. */
  follow(disk: WritableDisk): void {
    this.disk = disk
  }

  start(seconds: number, prepare?: () => Promise<void>): void {
    if (seconds === 0) return
    const flush = prepare ? () => void prepare().then(() => this.flush()) : () => this.flush()
    this.timer = setInterval(flush, seconds * 1000)
    this.timer.unref()
  }

  flush(): void {
    if (this.isClosed) return
    for (const path of this.removed()) this.log('what is written will be gone', lost(path))
    this.disk.checkFiles()
    if (this.disk.failure === '' && this.disk.isDirty) {
      this.attempt('what was written could not be made durable', () => {
        this.onFlush()
        this.disk.flush()
      })
    }
    const { failure } = this.disk
    if (failure !== '') this.log('the disk has become read-only', failure)
  }

  /** Closes the image. No other thread may write any more. Returns whether all that was written is kept. */
  close(): boolean {
    clearInterval(this.timer)
    this.isClosed = true
    this.disk.checkFiles()
    const isClosed = this.attempt('the image could not be closed cleanly', () => {
      this.onFlush()
      for (const warning of this.disk.close()) this.logger.warn(warning)
    })
    const { failure } = this.disk
    // Closing succeeds if nothing was written, also on a disk that has failed.
    if (isClosed && failure !== '') this.log('the disk has become read-only', failure)
    return isClosed && failure === ''
  }

  private attempt(problem: string, act: () => void): boolean {
    try {
      act()
      return true
    } catch (error) {
      const stack = error instanceof Error ? error.stack : String(error)
      this.log(problem, isExpected(error) ? error.message : `${stack}`)
      return false
    }
  }

  private log(problem: string, why: string): void {
    const line = `${problem}: ${why}`
    if (this.logged.has(line)) return
    this.logged.add(line)
    this.logger.error({ why }, problem)
  }
}
