/**
 * The changed table slices of a disk that is written, in memory that all threads share.
 *
 *  (1) A slice in the pool is the current state of the table. The file, and every thread's own cache, may still have an
 *      older state. So a thread that reads tables asks the pool first.
 *  (2) A thread changes slices only while it holds the exclusive side of the disk's lock. It may read them under either
 *      side.
 *  (3) When a slice leaves the pool, or a new table is written at its place, the version of the place changes. What
 *      threads have cached under another version is void.
 *  (4) A slice stays dirty until `flushed` says that its last state is in the file.
 */
/** The size of a slice, and its alignment in the file, in bytes; less if clusters are smaller. */
export const SLICE_BYTES = 4096

const SLOTS = 1024
/** Buckets of the index, a power of two. Most are empty, so that chains are short. */
const BUCKETS = 8192
/** The number of versions, a power of two. Places that share a version become void together. */
const VERSIONS = 16384

const AT = { used: 0, dirty: 1 }
const HEAD_WORDS = 2

/** Words of 32 bits for each slot: its length in bytes, its stage, and how often it changed (0 if it is clean). */
const SLOT_WORDS = 3

export interface PoolMemory {
  readonly words: SharedArrayBuffer
  readonly keys: SharedArrayBuffer
  /** Grows with the slots in use: most images never change so many tables at once. */
  readonly bytes: SharedArrayBuffer
}

/** How many slots have bytes at first. */
const FIRST_SLOTS = 32

export function createPoolMemory(): PoolMemory {
  return {
    words: new SharedArrayBuffer(4 * (HEAD_WORDS + SLOTS * SLOT_WORDS + BUCKETS + VERSIONS)),
    keys: new SharedArrayBuffer(8 * SLOTS),
    bytes: new SharedArrayBuffer(FIRST_SLOTS * SLICE_BYTES, { maxByteLength: SLOTS * SLICE_BYTES }),
  }
}

/** A dirty slice as it was when it was collected. */
export interface DirtySlice {
  readonly slot: number
  readonly at: number
  readonly stage: number
  readonly changes: number
  readonly bytes: Buffer
}

/** One thread's view of the pool. Places are multiples of 512 in the image's file. */
export class TablePool {
  private readonly head: Int32Array
  private readonly slots: Int32Array
  /** Bucket → slot + 1; 0 is empty. */
  private readonly index: Int32Array
  private readonly versions: Int32Array
  private readonly keys: Float64Array
  private readonly memory: SharedArrayBuffer
  private readonly views: (Buffer | undefined)[] = new Array(SLOTS)

  constructor(memory: PoolMemory) {
    let at = 0
    const words = (count: number) => {
      const part = new Int32Array(memory.words, at, count)
      at += count * 4
      return part
    }
    this.head = words(HEAD_WORDS)
    this.slots = words(SLOTS * SLOT_WORDS)
    this.index = words(BUCKETS)
    this.versions = words(VERSIONS)
    this.keys = new Float64Array(memory.keys)
    this.memory = memory.bytes
  }

  /** How many slices have changed since they were flushed. */
  get dirty(): number {
    return this.head[AT.dirty] as number
  }

  /** Returns the slice at `at`, if it is in the pool. */
  find(at: number): Buffer | undefined {
    if (this.head[AT.used] === 0) return undefined
    const slot = this.slotOf(at)
    return slot < 0 ? undefined : this.view(slot)
  }

  /** Returns the current version of `at`: a cached copy is valid only if it was read under this version. */
  version(at: number): number {
    return this.versions[hash(at, VERSIONS)] as number
  }

  /** Reports whether `count` more slices can become dirty. Makes room by dropping clean ones. */
  hasCapacity(count: number): boolean {
    if (SLOTS - this.used >= count) return true
    if (SLOTS - this.dirty < count) return false
    this.dropClean()
    return true
  }

  /**
   * Returns the slice at `at`, which the caller changes at once. `load` returns its bytes if it is not in the pool.
   * @param stage the stage of a flush that writes it, by the format's own count
   */
  edit(at: number, stage: number, load: () => Buffer): Buffer {
    let slot = this.slotOf(at)
    if (slot < 0) {
      const bytes = load()
      if (!this.hasCapacity(1)) throw new Error('no room for another dirty table')
      slot = this.add(at, bytes)
    }
    const word = slot * SLOT_WORDS
    if (this.slots[word + 2] === 0) this.head[AT.dirty]!++
    this.slots[word + 1] = stage
    this.slots[word + 2]!++
    return this.view(slot)
  }

  /** Returns copies of all dirty slices, in the order of their places. */
  collect(): DirtySlice[] {
    const found: DirtySlice[] = []
    if (this.dirty === 0) return found
    for (let slot = 0; slot < this.used; slot++) {
      const word = slot * SLOT_WORDS
      const changes = this.slots[word + 2] as number
      if (changes === 0) continue
      const stage = this.slots[word + 1] as number
      const at = this.keys[slot] as number
      found.push({ slot, at, stage, changes, bytes: Buffer.from(this.view(slot)) })
    }
    return found.sort((a, b) => a.at - b.at)
  }

  /** Rule (4): the collected slices are in the file. A slice that has changed since then stays dirty. */
  flushed(slices: readonly DirtySlice[]): void {
    for (const { at, changes } of slices) {
      // Dropping clean slices moves others to other slots.
      const slot = this.slotOf(at)
      if (slot < 0 || this.slots[slot * SLOT_WORDS + 2] !== changes) continue
      this.slots[slot * SLOT_WORDS + 2] = 0
      this.head[AT.dirty]!--
    }
  }

  /**
   * Voids the `length` bytes at `at` in the pool and in all threads' caches: a table is no longer there, or another one
   * is from now on.
   */
  forget(at: number, length: number): void {
    let isHere = false
    for (let place = at; place < at + length; place += 512) {
      this.versions[hash(place, VERSIONS)]!++
      isHere ||= this.used > 0 && this.slotOf(place) >= 0
    }
    if (isHere)
      this.rebuild(slot => {
        const place = this.keys[slot] as number
        return place < at || place >= at + length
      })
  }

  private get used(): number {
    return this.head[AT.used] as number
  }

  private dropClean(): void {
    this.rebuild(slot => this.slots[slot * SLOT_WORDS + 2] !== 0)
  }

  /** Keeps the slots for which `isKept` returns true, without gaps between them. */
  private rebuild(isKept: (slot: number) => boolean): void {
    const { slots, keys, versions, head } = this
    const bytes = Buffer.from(this.memory)
    const before = this.used
    let used = 0
    let dirty = 0
    for (let slot = 0; slot < before; slot++) {
      const at = keys[slot] as number
      if (!isKept(slot)) {
        versions[hash(at, VERSIONS)]!++
        continue
      }
      if (slots[slot * SLOT_WORDS + 2] !== 0) dirty++
      if (used !== slot) {
        keys[used] = at
        slots.copyWithin(used * SLOT_WORDS, slot * SLOT_WORDS, (slot + 1) * SLOT_WORDS)
        bytes.copyWithin(used * SLICE_BYTES, slot * SLICE_BYTES, (slot + 1) * SLICE_BYTES)
      }
      used++
    }
    head[AT.used] = used
    head[AT.dirty] = dirty
    this.index.fill(0)
    for (let slot = 0; slot < used; slot++) this.enter(slot)
  }

  private add(at: number, content: Buffer): number {
    const slot = this.used
    const { memory } = this
    if ((slot + 1) * SLICE_BYTES > memory.byteLength) {
      memory.grow(Math.min(2 * memory.byteLength, memory.maxByteLength))
    }
    this.keys[slot] = at
    this.slots[slot * SLOT_WORDS] = content.length
    this.slots[slot * SLOT_WORDS + 2] = 0
    this.view(slot).set(content)
    this.enter(slot)
    this.head[AT.used] = slot + 1
    return slot
  }

  private enter(slot: number): void {
    let bucket = hash(this.keys[slot] as number, BUCKETS)
    while (this.index[bucket] !== 0) bucket = (bucket + 1) % BUCKETS
    this.index[bucket] = slot + 1
  }

  private slotOf(at: number): number {
    const { index, keys } = this
    for (let bucket = hash(at, BUCKETS); ; bucket = (bucket + 1) % BUCKETS) {
      const slot = (index[bucket] as number) - 1
      if (slot < 0 || keys[slot] === at) return slot
    }
  }

  private view(slot: number): Buffer {
    const length = this.slots[slot * SLOT_WORDS] as number
    const known = this.views[slot]
    if (known !== undefined && known.length === length) return known
    const view = Buffer.from(this.memory, slot * SLICE_BYTES, length)
    this.views[slot] = view
    return view
  }
}

/** Maps places, which are multiples of 512 and mostly of 4096, evenly to `size` buckets. */
function hash(at: number, size: number): number {
  const sectors = at / 512
  const mixed = Math.imul((sectors % 2 ** 32) ^ Math.floor(sectors / 2 ** 32), 0x9e3779b1)
  return ((mixed >>> 16) ^ mixed) & (size - 1)
}
