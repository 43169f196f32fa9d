/** Opens the image of a mount again, by its path as at mounting: what others have made of it is shown from then on. */
import { ImageError, isExpected } from '../../errors.js'
import { type Chain, closeChain } from '../../image/opening/chain.js'
import { unlockAgain } from '../../image/opening/encryption.js'
import type { Logger } from '../../log.js'
import type { Changer } from './changer.js'
import type { ServedImage } from '../served-image.js'

export class Refresher {
  /** @param open opens the image by its path, without its keys */
  constructor(
    private readonly image: ServedImage,
    private readonly changer: Changer,
    private readonly open: () => Chain,
    private readonly logger: Pick<Logger, 'info' | 'warn'>,
  ) {}

  /** Resolves when the mount shows the new content. Throws ImageError, SystemError; then the mount stays as it is. */
  refresh(): Promise<void> {
    return this.changer.inTurn(async () => {
      const { chain: before, isWritable } = this.image
      const { path } = before.layers[0]
      if (isWritable) {
        const what = this.image.scratch
          ? 'scratch copies stand on what it was'
          : 'it is mounted for writing, so nothing but the mount changes it'
        throw new ImageError('REFUSED', what, { path, hint: 'unmount it, and mount it again' })
      }
      const opened = this.open()
      let chain: Chain
      try {
        chain = await unlockAgain(opened, before)
        await this.changer.reopen(chain)
      } catch (error) {
        // A world that is shown already has these files.
        if (this.image.chain === before) closeChain(opened)
        else if (isExpected(error))
          this.logger.warn({ why: error.message }, 'cached pages may stay')
        throw error
      }
      closeChain(before)
      for (const warning of chain.warnings) this.logger.warn(warning)
      this.logger.info({ image: path, files: this.image.entries.length }, 'opened again')
    })
  }
}
