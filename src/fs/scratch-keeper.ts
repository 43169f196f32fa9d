/**
 * Flushes scratch copies now and then, which gives back the space of what programs have discarded. Nothing of them is kept at the
 * end.
 */
import type { Logger } from '../log.js'
import type { DiskFile } from './disk-file.js'
import { DiskKeeper, type Keeper } from './disk-keeper.js'
import type { WrittenFiles } from './written-files.js'

export class ScratchKeeper implements Keeper {
  private readonly keepers = new Map<DiskFile, DiskKeeper>()
  private timer: NodeJS.Timeout | undefined
  private isClosed = false

  constructor(
    private readonly files: WrittenFiles,
    private readonly onFlush: () => void,
    private readonly logger: Logger,
  ) {}

  start(seconds: number): void {
    if (seconds === 0) return
    this.timer = setInterval(() => this.flush(), seconds * 1000)
    this.timer.unref()
  }

  flush(): void {
    if (this.isClosed) return
    for (const file of this.files.found) this.keeperOf(file).flush()
  }

  close(): boolean {
    clearInterval(this.timer)
    this.isClosed = true
    return true
  }

  private keeperOf(file: DiskFile): DiskKeeper {
    let keeper = this.keepers.get(file)
    if (!keeper) {
      keeper = new DiskKeeper(file.disk, this.onFlush, () => [], this.logger)
      this.keepers.set(file, keeper)
    }
    return keeper
  }
}
