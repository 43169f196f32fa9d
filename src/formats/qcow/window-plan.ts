/** Plans which parts of a file the maps have to cover: files may be sparse, and entries may name any place. */
import { ImageError } from '../../errors.js'
import { SECTOR_BYTES } from '../../sector.js'

/** The most windows: 16 TiB in windows of 128 GiB, if something lies in every one. */
const MAX_WINDOWS = 128

export class WindowPlan {
  private readonly sectorWindows = new Set<number>()
  /** The bytes of the file in a window, if a bit of the map stands for a sector. */
  private readonly spanBytes: number

  /**
   * @param windowBytes the memory of a map
   * @param reach places past this do not count, in bytes of the file
   * @param path the path of the file, for messages
   */
  constructor(
    windowBytes: number,
    private readonly reach: number,
    private readonly path: string,
  ) {
    this.spanBytes = windowBytes * 8 * SECTOR_BYTES
  }

  /** Whether the whole file is in one window. */
  get isOne(): boolean {
    return this.reach <= this.spanBytes
  }

  /** Notes that the bytes of the file from `at` up to `end` are said to be in use. */
  add(at: number, end: number): void {
    const { spanBytes, sectorWindows } = this
    const last = Math.min(end, this.reach)
    for (let window = Math.floor(at / spanBytes); window * spanBytes < last; window++) {
      sectorWindows.add(window)
    }
  }

  /**
   * Returns the windows to cover, ascending, if a bit of the map stands for `granule` bytes. Throws ImageError if there are too
   * many.
   */
  windows(granule: number): number[] {
    const perWindow = granule / SECTOR_BYTES
    const found = new Set<number>()
    for (const window of this.sectorWindows) found.add(Math.floor(window / perWindow))
    if (found.size > MAX_WINDOWS) {
      const what = `its tables name more than ${MAX_WINDOWS} parts of a file of ${this.reach} bytes`
      throw new ImageError('UNSUPPORTED', `${what}, which is too much to go over`, {
        path: this.path,
        hint: 'it can be read: mount it with -o ro',
      })
    }
    return [...found].sort((a, b) => a - b)
  }
}
