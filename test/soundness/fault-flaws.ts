/** Hides from a writer that calls to its files failed, to show that the searches notice it. */
import { WrappedStore } from '../support/stores.js'
import type { Subject } from './scenario.js'

export type FaultFlaw =
  | 'hides failed writes'
  | 'hides failed syncs'
  /** After a failed sync, the writes before it are lost, whatever the next sync reports. */
  | 'trusts a second sync'
  /** A write that failed has left a part. */
  | 'tries failed writes later'

/** The subject, opened over files with the flaw. */
export function withFaultFlaw(subject: Subject, flaw: FaultFlaw): Subject {
  return {
    ...subject,
    open: stores => subject.open(stores.map(store => new FlawedStore(store, flaw))),
    reopened: files => withFaultFlaw(subject.reopened(files), flaw),
  }
}

class FlawedStore extends WrappedStore {
  private left: (() => void)[] = []

  constructor(
    inner: WrappedStore['inner'],
    private readonly flaw: FaultFlaw,
  ) {
    super(inner)
  }

  override write(source: Buffer, start: number, length: number, at: number): void {
    try {
      super.write(source, start, length, at)
    } catch (error) {
      if (this.flaw === 'tries failed writes later') {
        const bytes = Buffer.from(source.subarray(start, start + length))
        this.left.push(() => super.write(bytes, 0, length, at))
      } else if (this.flaw !== 'hides failed writes') throw error
    }
  }

  override sync(): void {
    const left = this.left
    this.left = []
    for (const write of left) write()
    try {
      super.sync()
    } catch (error) {
      if (this.flaw === 'trusts a second sync') super.sync()
      else if (this.flaw !== 'hides failed syncs') throw error
    }
  }
}
