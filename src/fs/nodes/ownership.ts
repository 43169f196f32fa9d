/**
 * The owner, the group and the mode of a file that can be written, in memory that all threads share. chown and chmod hold
 * until the disk is unmounted. The image's own attributes do not change.
 */
import { withLock } from '../writing/word-lock.js'

const LOCK = 0
const COUNT = 1
const HEAD_WORDS = 2
/** Words of a record. */
const FILE = 0
const MODE = 1
const UID = 2
const GID = 3
const RECORD_WORDS = 4
/** The most files whose owner or mode can be changed. */
const RECORDS = 1024

export interface Owner {
  readonly mode: number
  readonly uid: number
  readonly gid: number
}

export class Ownership {
  private readonly words: Uint32Array
  private readonly head: Int32Array

  /** @param file the file's own number */
  constructor(
    readonly shared = new SharedArrayBuffer(4 * (HEAD_WORDS + RECORDS * RECORD_WORDS)),
    private readonly file = 0,
  ) {
    this.words = new Uint32Array(shared)
    this.head = new Int32Array(shared, 0, HEAD_WORDS)
  }

  /** Returns that of another file. */
  of(file: number): Ownership {
    return new Ownership(this.shared, file)
  }

  /** Returns what was set, or `initial` if nothing was. */
  current(initial: Owner): Owner {
    const at = this.record()
    if (at < 0) return initial
    const word = (index: number) => Atomics.load(this.words, at + index)
    return { mode: word(MODE), uid: word(UID), gid: word(GID) }
  }

  /** Returns false if those of too many files were set. */
  set({ mode, uid, gid }: Owner): boolean {
    return withLock(this.head, LOCK, () => {
      const known = this.record()
      const count = Atomics.load(this.words, COUNT)
      if (known < 0 && count === RECORDS) return false
      const at = known < 0 ? HEAD_WORDS + count * RECORD_WORDS : known
      Atomics.store(this.words, at + FILE, this.file)
      Atomics.store(this.words, at + MODE, mode)
      Atomics.store(this.words, at + UID, uid)
      Atomics.store(this.words, at + GID, gid)
      // Other threads look at a record only once it is whole.
      if (known < 0) Atomics.store(this.words, COUNT, count + 1)
      return true
    })
  }

  private record(): number {
    const count = Atomics.load(this.words, COUNT)
    for (let record = 0; record < count; record++) {
      const at = HEAD_WORDS + record * RECORD_WORDS
      if (Atomics.load(this.words, at + FILE) === this.file) return at
    }
    return -1
  }
}

/** Reports whether user `asker` may change `now` to `wanted`: the owner may change the mode, root everything. */
export const mayChange = (asker: number, now: Owner, wanted: Owner): boolean =>
  asker === 0 ||
  (now.uid === wanted.uid &&
    now.gid === wanted.gid &&
    (now.mode === wanted.mode || asker === now.uid))
