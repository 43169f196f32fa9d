/** The changes of a mounted image, by its server's main thread; see LiveDisk. */
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  type ErrorCode,
  type ErrorContext,
  ImageError,
  MountError,
  printable,
} from '../../errors.js'
import type { CheckResult } from '../../formats/check/report.js'
import type { InternalSnapshot, InternalSnapshots } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import { ImageCheck } from '../../image/checking/check.js'
import { makeChange, type SnapshotChange } from '../../image/snapshots/snapshot-change.js'
import {
  indexesOf,
  indexOfSnapshot,
  newSnapshot,
  offeringDiscard,
  renaming,
  requireFreeTag,
  requireSnapshotWriting,
  snapshotBeforeRevert,
  type SnapshotName,
} from '../../image/snapshots/snapshot-names.js'
import type { ImageUsage } from '../../image/usage.js'
import { usageAt, type UsageRequest } from '../../image/usage-run.js'
import { SECTOR_BYTES } from '../../sector.js'
import type { Changer } from './changer.js'
import type { CreateOptions, LiveDisk, WaitOptions } from './live-changes.js'
import { usersOfFile } from '../mounting/mount-users.js'
import type { OpenCounts } from '../nodes/open-counts.js'
import type { ServedImage } from '../served-image.js'
import { DISK_ID } from '../nodes/tree.js'
import type { WriteBack } from '../writing/write-back.js'
import { isOfDisk } from './tree-of-world.js'

/** How long the kernel may take to report that a file was closed: it does so after close(2) has returned. */
const RELEASE_MS = 1000
const LOOK_MS = 10
/** How often a file is looked at that somebody else may keep open for long. */
const WAIT_LOOK_MS = 100

/** Files that nobody may have open, and what they are for the user. */
interface Needed {
  readonly what: string
  readonly ids: readonly number[]
}

export interface MountedDiskParts {
  readonly image: ServedImage
  readonly changer: Changer
  readonly opens: OpenCounts
  readonly mountpoint: string
  /** Present where the kernel keeps what is written, and sends it later. */
  readonly writeBack: WriteBack | undefined
  /** Folders besides the image's own in which it may name files. */
  readonly allowPaths: readonly string[]
}

export class MountedDisk implements LiveDisk {
  /** Whether the mount has been made read-only since it was mounted. */
  private isHeld = false

  constructor(private readonly parts: MountedDiskParts) {}

  get path(): string {
    return this.top.path
  }

  get format(): string {
    return this.top.format
  }

  get isWritable(): boolean {
    return this.parts.image.views.disk !== undefined
  }

  snapshots(): readonly InternalSnapshot[] {
    return this.parts.image.chain.snapshots
  }

  createSnapshot(tag: string, { replace = false }: CreateOptions = {}): Promise<void> {
    return this.inTurn(async () => {
      const { list } = this
      const old = replace ? indexesOf(list, { tag }) : []
      const snapshot = newSnapshot(tag, new Date(), list.path)
      if (!replace) requireFreeTag(list, tag)
      const needed = old.map(index => this.filesOf(index))
      await this.untilClosed(needed)
      // All that programs have written belongs to the snapshot.
      await this.parts.writeBack?.sync()
      // The new one first: at every moment there is a snapshot of this tag. It is added after the others.
      await this.change({ kind: 'create', snapshot }, [])
      if (old.length > 0) await this.change({ kind: 'delete', indexes: old }, needed)
    })
  }

  async deleteSnapshots(
    names: readonly SnapshotName[],
    { wait }: WaitOptions = {},
  ): Promise<readonly InternalSnapshot[]> {
    return this.waiting(wait, async () => {
      const { list } = this
      const indexes = [...new Set(names.map(name => indexOfSnapshot(list, name)))]
      const deleted = indexes.map(index => list.snapshots[index] as InternalSnapshot)
      const needed = indexes.map(index => this.filesOf(index))
      await this.untilClosed(needed, wait)
      await this.change({ kind: 'delete', indexes }, needed)
      return deleted
    })
  }

  renameSnapshot(name: SnapshotName, tag: string): Promise<void> {
    return this.inTurn(async () => {
      await this.change(renaming(this.list, name, tag), [])
    })
  }

  async revert(
    name: SnapshotName,
    discard: boolean,
    { wait }: WaitOptions = {},
  ): Promise<string | undefined> {
    return this.waiting(wait, async () => {
      this.requireNoWriteback('gone back to a snapshot of')
      const { list } = this
      const index = indexOfSnapshot(list, name)
      const needed = [this.filesOfDisk()]
      await this.untilClosed(needed, wait)
      if (discard) {
        await this.change({ kind: 'revert', index, keep: undefined }, needed)
        return undefined
      }
      const { tag, snapshot: keep } = snapshotBeforeRevert(list, new Date())
      const hasKept = await offeringDiscard(() =>
        this.change({ kind: 'revert', index, keep }, needed),
      )
      return hasKept ? tag : undefined
    })
  }

  resize(
    sizeBytes: number,
  ): Promise<{ readonly beforeBytes: number; readonly afterBytes: number }> {
    return this.inTurn(async () => {
      this.requireWritten()
      this.requireNoWriteback('resized')
      const { image, changer, mountpoint } = this.parts
      const { disk } = image.views
      const beforeBytes = disk?.sizeBytes ?? 0
      const afterBytes = Math.ceil(sizeBytes / SECTOR_BYTES) * SECTOR_BYTES
      if (!Number.isSafeInteger(afterBytes) || afterBytes < 0) {
        const what = `the disk has ${beforeBytes} bytes, and cannot have ${sizeBytes}`
        throw new ImageError('REFUSED', what, { path: this.path, hint: 'give another size' })
      }
      if (afterBytes < beforeBytes) {
        const what = `the disk has ${beforeBytes} bytes, and while it is mounted it cannot become smaller`
        const hint = `unmount it first: vimgfs umount ${mountpoint}`
        throw new ImageError('REFUSED', what, { path: this.path, hint })
      }
      if (afterBytes === beforeBytes) return { beforeBytes, afterBytes }
      disk?.grow(afterBytes)
      // The kernel learns the size when somebody asks, as the command does. The server never follows the path of its own
      // mount: autofs makes whoever does wait while it unmounts.
      await changer.forgetAttributes(DISK_ID)
      return { beforeBytes, afterBytes }
    })
  }

  check(progress?: (part: number) => void, cancel?: AbortSignal): Promise<CheckResult> {
    const { changer, allowPaths } = this.parts
    return changer.inTurn(() =>
      changer.whileQuiet(async () => {
        const { path, format } = this
        if (cancel?.aborted) throw new MountError('nobody waits for this check any more')
        this.requireSameFile()
        const check = ImageCheck.open(path, { format, allowPaths, takesLocks: false })
        if (!check) {
          const what = `there is nothing to check in ${format} images`
          throw new ImageError('UNSUPPORTED', what, { path })
        }
        try {
          return (await check.run(progress ? { progress } : {}, cancel)).after
        } finally {
          check.close()
        }
      }),
    )
  }

  usage(
    request: UsageRequest,
    progress: (part: number) => void,
    cancel?: AbortSignal,
  ): Promise<ImageUsage> {
    const { changer, allowPaths } = this.parts
    return changer.inTurn(() =>
      changer.whileQuiet(async () => {
        const { path, format } = this
        if (cancel?.aborted) throw new MountError('nobody waits for these figures any more')
        this.requireSameFile()
        const options = { format, allowPaths, takesLocks: false }
        return usageAt(path, options, request, progress, cancel)
      }),
    )
  }

  remount(isWritten: boolean): Promise<void> {
    return this.inTurn(async () => {
      const { image, changer, mountpoint } = this.parts
      if (isWritten && !image.isWritable) throw readOnly(this.path, mountpoint)
      if (!isWritten) {
        await changer.whileQuiet(async () => {})
        const { disk } = image.views
        if (disk && disk.failure !== '') throw failed(this.path, disk.failure)
      }
      this.isHeld = !isWritten
    })
  }

  private get top() {
    return this.parts.image.chain.layers[0]
  }

  private get list() {
    return { path: this.path, snapshots: this.snapshots() }
  }

  /** Runs a change in turn, if this image can be changed. */
  private inTurn<T>(act: () => Promise<T>): Promise<T> {
    return this.parts.changer.inTurn(act)
  }

  /** Does the same; with `wait` it tries again as long as somebody has a file open that `act` needs. */
  private async waiting<T>(wait: AbortSignal | undefined, act: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await this.inTurn(act)
      } catch (error) {
        if (!(error instanceof FileInUse) || wait === undefined || wait.aborted) throw error
      }
      await sleep(WAIT_LOOK_MS)
    }
  }

  private async change(change: SnapshotChange, needed: readonly Needed[]): Promise<boolean> {
    this.requireWritten()
    const { changer } = this.parts
    const writer = await requireSnapshotWriting(this.top).load()
    const isRevert = change.kind === 'revert'
    const { opens } = this.parts
    if (isRevert) opens.hasStalePages = true
    try {
      return await changer.changeTables(
        isRevert ? 'content' : 'tables',
        () => this.requireClosed(needed),
        (layer, steps) => makeChange(writer, layer, change, steps),
      )
    } catch (error) {
      throw this.naming(error)
    } finally {
      if (isRevert) opens.hasStalePages = false
    }
  }

  private requireWritten(): void {
    const { path, parts } = this
    const { disk } = parts.image.views
    if (!disk) throw readOnly(path, parts.mountpoint)
    if (this.isHeld) {
      const what = `its mount on ${parts.mountpoint} has been made read-only`
      const hint = `mount -o remount,rw ${parts.mountpoint} ends that`
      throw new ImageError('READ_ONLY', what, { path, hint })
    }
    if (disk.failure !== '') throw failed(path, disk.failure)
  }

  /** Throws ImageError where the kernel keeps its own size of the disk. @param done what cannot be done */
  private requireNoWriteback(done: string): void {
    const { writeBack, mountpoint } = this.parts
    if (!writeBack) return
    const what = `it cannot be ${done} while it is mounted with -o writeback`
    const hint = `unmount it first: vimgfs umount ${mountpoint}`
    throw new ImageError('REFUSED', what, { path: this.path, hint })
  }

  /** Throws ImageError if the image's path no longer leads to the file that is mounted. */
  private requireSameFile(): void {
    const { path, fd } = this.top
    const named = fs.statSync(path, { bigint: true, throwIfNoEntry: false })
    const opened = fs.fstatSync(fd, { bigint: true })
    if (named?.dev === opened.dev && named.ino === opened.ino) return
    const what = 'it has been moved since it was mounted, and another file may have its name'
    throw new ImageError('MISSING', what, { path, hint: 'unmount it, and check it then' })
  }

  /** The files of a snapshot: its disk, its VM state and its partitions. */
  private filesOf(index: number): Needed {
    const snapshot = this.snapshots()[index] as InternalSnapshot
    const { internalSnapshots } = formatOf(this.top)
    const { offset } = (internalSnapshots as InternalSnapshots<unknown>).tableOf(snapshot)
    const { entries, ids } = this.parts.image.world
    const isOfSnapshot = ({ layer, table, attributes }: (typeof entries)[number]) =>
      layer === 0 && table?.offset === offset && attributes['snapshot-id'] === snapshot.id
    const found = entries.flatMap((entry, at) => (isOfSnapshot(entry) ? [ids[at] as number] : []))
    return { what: `snapshot "${printable(snapshot.name.toString())}"`, ids: found }
  }

  private filesOfDisk(): Needed {
    const { entries, ids } = this.parts.image.world
    const found = entries.flatMap((entry, at) => (isOfDisk(entry) ? [ids[at] as number] : []))
    return { what: 'the disk', ids: found }
  }

  /** Throws FileInUse if one of the files is open. Without `wait`, it waits for files that were closed just now. */
  private async untilClosed(needed: readonly Needed[], wait?: AbortSignal): Promise<void> {
    const isOpen = () => needed.some(({ ids }) => ids.some(id => this.parts.opens.isOpen(id)))
    const least = wait === undefined ? RELEASE_MS : 0
    for (let waited = 0; isOpen() && waited < least; waited += LOOK_MS) await sleep(LOOK_MS)
    try {
      this.requireClosed(needed)
    } catch (error) {
      throw this.naming(error)
    }
  }

  private requireClosed(needed: readonly Needed[]): void {
    for (const { what, ids } of needed) {
      const id = ids.find(one => this.parts.opens.isOpen(one))
      if (id !== undefined) throw new FileInUse('REFUSED', `${what} is in use`, id)
    }
  }

  /** Returns `error`, with the users of the file if it says that one is in use. */
  private naming(error: unknown): unknown {
    if (!(error instanceof FileInUse)) return error
    const { image, mountpoint } = this.parts
    const { entries, ids } = image.world
    const file = path.join(mountpoint, entries[ids.indexOf(error.id)]?.name ?? '')
    const who =
      usersOfFile(file) || 'a program that cannot be seen from here, such as an NFS server,'
    return new FileInUse('REFUSED', `${error.message}: ${who} has ${file} open`, error.id, {
      path: this.path,
      hint: 'try again once that has ended',
    })
  }
}

function readOnly(path: string, mountpoint: string): ImageError {
  const what = `it is mounted on ${mountpoint} for reading only`
  const hint = `unmount it, and mount it with -o rw: vimgfs umount ${mountpoint}`
  return new ImageError('READ_ONLY', what, { path, hint })
}

const failed = (path: string, failure: string): ImageError =>
  new ImageError('READ_ONLY', `it has become read-only: ${failure}`, { path })

/** Somebody has a file open that nobody may have open. */
class FileInUse extends ImageError {
  override name = 'FileInUse'
  constructor(
    code: ErrorCode,
    message: string,
    readonly id: number,
    context: ErrorContext = {},
  ) {
    super(code, message, context)
  }
}
