/**
 * Notices, on the main thread, that requests wait while all workers are busy: one worker more would answer them sooner.
 *
 *  (1) A worker tells of the first request after a pause. From then on a timer looks, until no request comes any more. So an
 *      idle mount costs nothing.
 *  (2) A look is crowded if every worker is answering a request and the kernel has another one. A client that waits for
 *      each answer never makes a look crowded, however fast it asks. A worker that waits for hung storage does, as soon as
 *      anybody asks for anything else.
 *  (3) Starting a worker takes about 0.1 s of a processor. So requests must have waited for about as long.
 */
import type { Activity } from './activity.js'

/** How often to look, in milliseconds, and how often if requests do not wait. */
const LOOK_MS = 20
const CALM_LOOK_MS = 100
/** After so many looks that were not crowded, looks become rare. */
const CALM_LOOKS = 10
/** How many crowded looks it takes; how much of one a look that is not crowded takes back, and how much a pause does. */
const CROWDED_LOOKS = 4
const CALMING = 0.25
const CALMING_BY_PAUSE = 1

export class Crowding {
  private score = 0
  private calmLooks = 0
  private isLooking = false
  private hasEnded = false

  /**
   * @param hasRequests whether the kernel has requests that no worker has taken
   * @param onCrowded called when requests have waited for long enough; no look follows until `goOn`
   * @param later calls `look` after so many milliseconds; tests replace it
   */
  constructor(
    private readonly activity: Activity,
    private readonly hasRequests: () => boolean,
    private readonly onCrowded: () => void,
    private readonly later: (look: () => void, ms: number) => void = (look, ms) => {
      setTimeout(look, ms).unref()
    },
  ) {}

  /** Begins to look: a worker has said that a request has come after a pause. */
  begin(): void {
    if (this.isLooking || this.hasEnded) return
    this.isLooking = true
    this.activity.isWatched = true
    this.activity.look()
    this.score = Math.max(0, this.score - CALMING_BY_PAUSE)
    this.calmLooks = 0
    this.lookLater()
  }

  /** Looks again, after `onCrowded`. */
  goOn(): void {
    this.isLooking = false
    this.score = 0
    this.begin()
  }

  /** Ends the looking, for good: no worker tells of requests any more. */
  end(): void {
    this.hasEnded = true
    this.activity.isWatched = true
  }

  private lookLater(): void {
    this.later(() => this.look(), this.calmLooks < CALM_LOOKS ? LOOK_MS : CALM_LOOK_MS)
  }

  private look(): void {
    if (this.hasEnded) return
    if (!this.goesOn()) {
      this.isLooking = false
      return
    }
    const isCrowded = this.activity.areAllBusy && this.hasRequests()
    this.score = isCrowded ? this.score + 1 : Math.max(0, this.score - CALMING)
    this.calmLooks = isCrowded ? 0 : this.calmLooks + 1
    if (this.score >= CROWDED_LOOKS) this.onCrowded()
    else this.lookLater()
  }

  /** Reports whether there were requests since the last look. If not, the next one will be told. */
  private goesOn(): boolean {
    const { activity } = this
    if (activity.look()) return true
    activity.isWatched = false
    // One may have begun before its worker could see that.
    if (!activity.look()) return false
    activity.isWatched = true
    return true
  }
}
