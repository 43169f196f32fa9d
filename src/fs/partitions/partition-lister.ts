/**
 * Makes the listing of a mount follow the partition tables of disks that are written, on the main thread. A program that has
 * written the table waits for it when it syncs or closes the disk's file, so that it sees the new files.
 */
import { inWords } from '../../errors.js'
import type { CatalogEntry } from '../../image/catalog.js'
import type { Logger } from '../../log.js'
import type { Changer } from '../live/changer.js'
import { tableTextNow } from './partition-files.js'
import type { ServedImage } from '../served-image.js'
import type { TableWrites } from './table-writes.js'

export class PartitionLister {
  constructor(
    private readonly image: Pick<ServedImage, 'chain' | 'entries' | 'readableAt' | 'world'>,
    private readonly changer: Changer,
    private readonly tables: TableWrites,
    private readonly logger: Pick<Logger, 'warn'>,
  ) {}

  /** Resolves when the listing shows the table as it is now. Never rejects: after an error the old files stay. */
  async list(): Promise<void> {
    try {
      await this.changer.inTurn(() => this.listNow())
    } catch (error) {
      this.logger.warn({ why: inWords(error) }, 'the partitions are shown as they were')
    }
  }

  private async listNow(): Promise<void> {
    const { image, tables } = this
    if (tables.areShown) return
    // Before the table is read: what is written meanwhile is for the next call.
    const { count } = tables
    const hasChanged = image.world.tables.some(({ place, text }) => {
      const disk = image.readableAt(place)
      return disk.isWritten && tableTextNow(image.entries[place] as CatalogEntry, disk) !== text
    })
    if (hasChanged) await this.changer.refresh(image.chain)
    tables.show(count)
  }
}
