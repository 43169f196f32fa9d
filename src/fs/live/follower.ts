/**
 * Follows an image that others write while it is mounted: snapshots that they take and delete appear and disappear. On the main
 * thread.
 */
import { isExpected } from '../../errors.js'
import type { Chain } from '../../image/opening/chain.js'
import { rereadShared, sameSnapshots } from '../../image/opening/reread-shared.js'
import type { Logger } from '../../log.js'
import type { Changer } from './changer.js'
import type { LookRequests } from './look-requests.js'

export class Follower {
  private lastProblem = ''
  private isLooking = false

  constructor(
    private readonly image: { readonly chain: Chain },
    private readonly changer: Changer,
    private readonly requests: LookRequests,
    private readonly logger: Pick<Logger, 'warn'>,
  ) {}

  /**
   * Looks, and shows the files that there are now. Logs a failure, and then the old files stay. Resolves when the new ones can be
   * served; at once while an earlier look is not over: the kernel may wait for the request that asks, in order to forget.
   */
  look(): Promise<void> {
    if (this.isLooking) {
      this.requests.answered()
      return Promise.resolve()
    }
    this.isLooking = true
    return new Promise(resolve => {
      const shown = () => {
        this.requests.answered()
        resolve()
      }
      const following = this.changer.inTurn(async () => {
        const chain = rereadShared(this.image.chain)
        if (sameSnapshots(chain, this.image.chain)) return
        await this.changer.refresh(chain, 'tables', shown)
      })
      const ended = () => {
        this.isLooking = false
        shown()
      }
      following.catch(error => this.failed(error)).then(ended)
    })
  }

  private failed(error: unknown): void {
    const problem = isExpected(error) ? error.message : String((error as Error).stack)
    if (problem === this.lastProblem) return
    this.lastProblem = problem
    this.logger.warn({ why: problem }, 'the snapshots are shown as they were')
  }
}
