/**
 * Frees the memory of worlds that are gone. Threads share it, so it is there until each of them has collected its garbage. V8 does
 * that late where little else is allocated: without this, hundreds of changes left hundreds of MiB.
 */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

/** A world has half a MiB or more, and collecting takes some milliseconds. */
const WORLDS = 16

export class OldWorlds {
  private count = 0
  private collect: (() => void) | undefined

  /** One more world is gone. */
  add(): void {
    if (++this.count % WORLDS !== 0) return
    if (!this.collect) {
      setFlagsFromString('--expose-gc')
      this.collect = runInNewContext('gc') as () => void
    }
    this.collect()
  }
}
