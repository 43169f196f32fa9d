/** The reason why a disk is not written any more, in memory that its threads share. The first reason stays. */
import { constants } from 'node:os'
import { ImageError, SystemError } from '../../errors.js'

const { EDQUOT, EFBIG, EIO, ENOMEM, ENOSPC, EROFS } = constants.errno

/** Errors of a flush that may be tried again. */
const PASSING: readonly number[] = [ENOSPC, EDQUOT, EFBIG, ENOMEM]

/** Values of the shared word. `telling` means that the text is being written. */
const STATE = { sound: 0, readOnly: 1, telling: 2, cutOff: 3 } as const

export class DiskFailure {
  private readonly text: Buffer

  /**
   * @param word the index of the state in `counters`
   * @param text the memory of the reason: its length in 4 bytes, and its bytes
   */
  constructor(
    private readonly counters: Int32Array,
    private readonly word: number,
    text: SharedArrayBuffer,
    private readonly path: string,
  ) {
    this.text = Buffer.from(text)
  }

  /** The error of writes: EROFS, or EIO if a file of the image was cut off; 0 while all is well. */
  get errno(): number {
    const state = Atomics.load(this.counters, this.word)
    if (state === STATE.sound) return 0
    return state === STATE.cutOff ? EIO : EROFS
  }

  /** Empty while all is well. */
  get reason(): string {
    return this.errno === 0 ? '' : this.text.toString('utf8', 4, 4 + this.text.readUInt32LE(0))
  }

  set(why: string, isCutOff = false): void {
    const { counters, word } = this
    const { sound, telling, cutOff, readOnly } = STATE
    if (Atomics.compareExchange(counters, word, sound, telling) !== sound) return
    this.text.writeUInt32LE(this.text.write(why, 4), 0)
    Atomics.store(counters, word, isCutOff ? cutOff : readOnly)
  }

  /** Throws ImageError once there is a reason. */
  requireSound(): void {
    const { errno, reason, path } = this
    if (errno === 0) return
    if (errno === EIO) throw new ImageError('CORRUPT', reason, { isCutOff: true })
    throw new ImageError('READ_ONLY', `it has become read-only: ${reason}`, { path })
  }

  /** Decides whether an error ends writing: a failed sync, damage, or a bug of ours. Returns the error. */
  record(error: unknown, isFlush = false): unknown {
    if (error instanceof ImageError && error.code === 'CORRUPT' && error.context.endsWriting) {
      this.set(error.message, error.context.isCutOff)
    } else if (error instanceof SystemError) {
      const mayPass = !isFlush || PASSING.includes(error.errno)
      if (error.endsWriting || !mayPass) this.set(error.message)
    } else if (!(error instanceof ImageError)) {
      // A bug of ours: nobody knows what it has left half done.
      this.set(`an error inside vimgfs: ${error instanceof Error ? error.message : error}`)
    }
    return error
  }
}
