/**
 * Flushes scratch copies now and then, which gives back the space of what programs have discarded. At the end it closes the one that
 * is kept.
 */
import type { LayerSpec } from '../../formats/format.js'
import { removedFiles } from '../../image/layer.js'
import type { Logger } from '../../log.js'
import type { DiskFile } from '../writing/disk-file.js'
import { DiskKeeper, type Keeper } from '../writing/disk-keeper.js'
import type { WrittenFiles } from '../writing/written-files.js'

export class ScratchKeeper implements Keeper {
  private readonly keepers = new Map<DiskFile, DiskKeeper>()
  private timer: NodeJS.Timeout | undefined
  private isClosed = false

  constructor(
    private readonly files: WrittenFiles,
    private readonly onFlush: () => void,
    private readonly logger: Logger,
    /** The overlay that keeps what is written to the disk. */
    private readonly kept: LayerSpec | undefined,
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
    const files = [...this.files.found].filter(({ isThrownAway }) => !isThrownAway)
    return files.map(file => this.keeperOf(file).close()).every(isKept => isKept)
  }

  private keeperOf(file: DiskFile): DiskKeeper {
    let keeper = this.keepers.get(file)
    if (!keeper) {
      const { kept } = this
      const removed = () => (kept && !file.isThrownAway ? removedFiles(kept) : [])
      keeper = new DiskKeeper(file.disk, this.onFlush, removed, this.logger)
      this.keepers.set(file, keeper)
    }
    return keeper
  }
}
