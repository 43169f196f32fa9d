/**
 * A map of the taken sectors of a part of a file, one bit for each. The part, called the window, is as large as memory allows.
 * A larger file is checked window by window.
 *
 * The map knows in which pages of its memory a sector was taken. The others are zeros, which it neither reads nor writes: so a
 * large file of holes takes little time and memory.
 */

/** The memory for a window of 128 GiB. */
export const WINDOW_BYTES = 32 * 2 ** 20

/** The logarithm of the number of words in a page of 4 KiB. */
const PAGE_BITS = 10
const PAGE_WORDS = 2 ** PAGE_BITS

export class SectorMap {
  /** The window has the sectors from `first` up to `end`. */
  first = 0
  end = 0
  private readonly words: Uint32Array
  /** 1 for each page with a taken sector. */
  private readonly pages: Uint8Array
  private readonly windowSectors: number

  /**
   * @param sectors the sectors of the file
   * @param windowBytes the most memory, a multiple of 4
   */
  constructor(
    private readonly sectors: number,
    windowBytes = WINDOW_BYTES,
  ) {
    this.words = new Uint32Array(Math.min(windowBytes / 4, Math.ceil(sectors / 32)))
    this.pages = new Uint8Array(Math.ceil(this.words.length / PAGE_WORDS))
    this.windowSectors = windowBytes * 8
  }

  /** The number of windows. */
  get windows(): number {
    return Math.ceil(this.sectors / this.windowSectors)
  }

  /** Returns the window that contains this sector. */
  windowOf(sector: number): number {
    return Math.floor(sector / this.windowSectors)
  }

  /** Begins a window, with nothing taken. */
  begin(window: number): void {
    this.first = window * this.windowSectors
    this.end = Math.min(this.first + this.windowSectors, this.sectors)
    this.pages.forEach((isTaken, page) => {
      if (isTaken) this.words.fill(0, page * PAGE_WORDS, (page + 1) * PAGE_WORDS)
    })
    this.pages.fill(0)
  }

  /** Reports whether any sector from `from` up to `to` is taken, as far as the window has them. */
  isTaken(from: number, to: number): boolean {
    const [start, end] = [this.within(from), this.within(to)]
    if (start >= end) return false
    const { words } = this
    const [head, tail] = [start >>> 5, (end - 1) >>> 5]
    if (head === tail) return ((words[head] as number) & fromBit(start) & toBit(end)) !== 0
    if (((words[head] as number) & fromBit(start)) !== 0) return true
    for (let i = head + 1; i < tail; i++) if (words[i] !== 0) return true
    return ((words[tail] as number) & toBit(end)) !== 0
  }

  /** Takes the sectors from `from` up to `to`, as far as the window has them. */
  take(from: number, to: number): void {
    const [start, end] = [this.within(from), this.within(to)]
    if (start >= end) return
    const { words } = this
    const [head, tail] = [start >>> 5, (end - 1) >>> 5]
    this.pages.fill(1, head >>> PAGE_BITS, (tail >>> PAGE_BITS) + 1)
    if (head === tail) {
      words[head] = (words[head] as number) | (fromBit(start) & toBit(end))
      return
    }
    words[head] = (words[head] as number) | fromBit(start)
    for (let i = head + 1; i < tail; i++) words[i] = ALL
    words[tail] = (words[tail] as number) | toBit(end)
  }

  /** Calls `visit` for each run of sectors that are not taken, in order; `to` is the sector after the run. */
  eachFree(visit: (from: number, to: number) => void): void {
    const length = this.end - this.first
    let start = -1
    for (let i = 0; i * 32 < length; i++) {
      // A page without taken sectors begins a run, or continues it.
      if (start >= 0 && i % PAGE_WORDS === 0 && this.pages[i >>> PAGE_BITS] === 0) {
        i += PAGE_WORDS - 1
        continue
      }
      const word = this.words[i] as number
      for (let bit = 0; bit < 32; ) {
        const sought = (start < 0 ? ~word : word) >>> bit
        if (sought === 0) break
        bit += 31 - Math.clz32(sought & -sought)
        const at = i * 32 + bit
        if (at >= length) break
        if (start >= 0) visit(this.first + start, this.first + at)
        start = start < 0 ? at : -1
      }
    }
    if (start >= 0) visit(this.first + start, this.end)
  }

  private within(sector: number): number {
    return Math.min(Math.max(sector, this.first), this.end) - this.first
  }
}

const ALL = 0xffffffff

/** Returns the bits of a word from that of `sector` on. */
const fromBit = (sector: number): number => ALL << (sector & 31)

/** Returns the bits of a word before that of `sector`. */
const toBit = (sector: number): number => ALL >>> (31 - ((sector - 1) & 31))
