/**
 * The owner, the group and the mode of the disk's file, in memory that all threads share. chown and chmod hold until the
 * disk is unmounted. The image's own attributes do not change.
 */
const SET = 0
const MODE = 1
const UID = 2
const GID = 3
const WORDS = 4

export interface Owner {
  readonly mode: number
  readonly uid: number
  readonly gid: number
}

export class Ownership {
  private readonly words: Uint32Array

  constructor(readonly shared = new SharedArrayBuffer(4 * WORDS)) {
    this.words = new Uint32Array(shared)
  }

  /** Returns what was set, or `initial` if nothing was. */
  current(initial: Owner): Owner {
    const { words } = this
    if (Atomics.load(words, SET) === 0) return initial
    const [mode = 0, uid = 0, gid = 0] = [MODE, UID, GID].map(word => Atomics.load(words, word))
    return { mode, uid, gid }
  }

  set({ mode, uid, gid }: Owner): void {
    Atomics.store(this.words, MODE, mode)
    Atomics.store(this.words, UID, uid)
    Atomics.store(this.words, GID, gid)
    Atomics.store(this.words, SET, 1)
  }
}

/** Reports whether user `asker` may change `now` to `wanted`: the owner may change the mode, root everything. */
export const mayChange = (asker: number, now: Owner, wanted: Owner): boolean =>
  asker === 0 ||
  (now.uid === wanted.uid &&
    now.gid === wanted.gid &&
    (now.mode === wanted.mode || asker === now.uid))
