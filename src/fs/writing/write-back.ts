/**
 * A mount whose kernel keeps what is written in its page cache, and sends it later (-o writeback). The kernel then believes its
 * own size of a file that is written, so the server has to correct it: (1) when a handle that truncated it is closed, (2) when
 * programs have written past its end, which the server learns too late. While a truncating handle is open, all that is
 * written goes past the page cache: opening it made the kernel forget what it had kept.
 */
import fs from 'node:fs'
import { syncFileSystem } from '../../io/sync-file-system.js'
import type { Logger } from '../../log.js'
import type { OpenCounts } from '../nodes/open-counts.js'
import { DISK_ID } from '../nodes/tree.js'

const { O_DIRECTORY, O_NOFOLLOW, O_RDONLY, O_RDWR } = fs.constants

/** The part of such a mount that the operations of a file need. */
export interface WriteBackMount {
  /** Whether pages that were to be dropped are gone. Until then nothing may be written to the page cache. */
  readonly areDropsDone: boolean
  /** A handle has truncated the file: get ready for `showWhole`. */
  onTruncated(): void
  /** Makes the kernel believe that the file ends at `sizeBytes` again. `lastByte` is its last one. */
  showWhole(sizeBytes: number, lastByte: number): void
  /** Nobody has a file open for writing any more that was written past its end. */
  onOverrun(): void
}

export interface WriteBackParts {
  readonly opens: OpenCounts
  readonly mountpoint: string
  /** "major:minor" of the mount. */
  readonly device: string
  /** Returns the path of the disk's file, and its size in bytes. */
  readonly disk: () => { readonly path: string; readonly sizeBytes: number }
  /** Makes the kernel send all that it has kept of the disk's file, and forget it. */
  readonly forgetPages: () => Promise<void>
  readonly logger: Logger
}

/** The main thread's part. */
export class WriteBack {
  private running: Promise<void> | undefined

  constructor(private readonly parts: WriteBackParts) {}

  /**
   * Makes the kernel send what it has kept, off this thread, and resolves when it has. Never rejects: programs learn of errors
   * by fsync and close.
   */
  async sync(): Promise<void> {
    // Bytes that were written before this call may have come too late for a sync that is running.
    await this.running
    this.running ??= this.syncNow().finally(() => {
      this.running = undefined
    })
    await this.running
  }

  private async syncNow(): Promise<void> {
    // close(2) has sent all that a handle wrote. Without one that writes, the mount must not even seem to be in use.
    if (!this.parts.opens.hasWriterToCache(DISK_ID)) return
    const { mountpoint, forgetPages, logger } = this.parts
    try {
      const isMounted = await this.inMount(mountpoint, O_RDONLY | O_DIRECTORY, handle =>
        syncFileSystem(handle.fd),
      )
      if (!isMounted) await forgetPages()
    } catch (error) {
      logger.warn({ why: (error as Error).message }, 'what the kernel keeps could not be synced')
    }
  }

  /** Corrects the size that the kernel believes in, after writes past the end. Never rejects. */
  async correctSize(): Promise<void> {
    const { opens, disk, logger } = this.parts
    if (!opens.isOverrun) return
    opens.isOverrun = false
    const { path, sizeBytes } = disk()
    try {
      await this.inMount(path, O_RDWR | O_NOFOLLOW, handle => handle.truncate(sizeBytes))
    } catch (error) {
      logger.warn({ why: (error as Error).message }, 'the size of the disk could not be corrected')
    }
  }

  /** Opens `path` for `act`. Returns false if it is not in the mount, which may have been detached. */
  private async inMount(
    path: string,
    flags: number,
    act: (handle: fs.promises.FileHandle) => Promise<void>,
  ): Promise<boolean> {
    const handle = await fs.promises.open(path, flags)
    try {
      const { dev } = await handle.stat({ bigint: true })
      if (deviceName(dev) !== this.parts.device) return false
      await act(handle)
      return true
    } finally {
      await handle.close()
    }
  }
}

/** Returns "major:minor" of a device number as stat(2) gives it. */
function deviceName(dev: bigint): string {
  const major = ((dev >> 32n) & 0xfffff000n) | ((dev >> 8n) & 0xfffn)
  const minor = ((dev >> 12n) & 0xffffff00n) | (dev & 0xffn)
  return `${major}:${minor}`
}
