/**
 * Decides how far to read ahead. A reader that goes on where it was gets a window that doubles; one that jumps gets what it asks
 * for. Several readers may go through one object at the same time, and the requests of one may overtake each other.
 */

/** Blocks around the expected place that still count as going on. */
const NEAR_BYTES = 2 * 2 ** 20
const FIRST_WINDOW_BYTES = 256 * 1024
const MOST_WINDOW_BYTES = 16 * 2 ** 20

interface Stream {
  /** The block after the last one that was asked for. */
  next: number
  /** The block up to which all has been requested. */
  ahead: number
  /** In blocks; 0 until it goes on. */
  window: number
}

/** Blocks to fetch ahead, and the mark whose passing asks for more. */
export interface Ahead {
  readonly first: number
  readonly count: number
  /** The number of the stream. */
  readonly stream: number
  /** The block that is marked. */
  readonly mark: number
}

export class ReadAhead {
  private readonly streams: Stream[] = []
  private victim = 0
  private readonly near: number
  private readonly firstWindow: number
  private readonly mostWindow: number

  constructor(
    blockBytes: number,
    private readonly blocks: number,
    private readonly most: number,
  ) {
    const inBlocks = (bytes: number) => Math.max(1, Math.floor(bytes / blockBytes))
    this.near = inBlocks(NEAR_BYTES)
    this.firstWindow = inBlocks(FIRST_WINDOW_BYTES)
    this.mostWindow = inBlocks(MOST_WINDOW_BYTES)
  }

  /** Notes that `count` blocks from `first` on are asked for. Returns what to fetch besides. */
  asked(first: number, count: number): Ahead | undefined {
    const end = first + count
    const index = this.streams.findIndex(
      ({ next, ahead }) => first >= next - this.near && first <= Math.max(next, ahead) + 1,
    )
    const stream = this.streams[index]
    if (!stream) {
      const fresh = { next: end, ahead: end, window: 0 }
      if (this.streams.length < this.most) this.streams.push(fresh)
      else this.streams[this.victim++ % this.most] = fresh
      return undefined
    }
    // A request for what came before, which another one has overtaken.
    if (end <= stream.next) return undefined
    stream.next = end
    stream.window = Math.min(Math.max(2 * stream.window, this.firstWindow), this.mostWindow)
    const from = Math.max(stream.ahead, end)
    const to = Math.min(end + stream.window, this.blocks)
    if (to - from < Math.min(stream.window / 2, this.blocks - from)) return undefined
    if (to <= from) return undefined
    stream.ahead = to
    // Half of the window before its end, but not before what is asked for now.
    const mark = Math.max(end, to - Math.ceil(stream.window / 2) - 1)
    return { first: from, count: to - from, stream: index, mark }
  }
}
