/** The internal snapshots of an image: listing, taking and deleting them, and going back to one. */
import fs from 'node:fs'
import type { InternalSnapshot } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import { isLongWork, runApart } from '../checking/apart.js'
import { type Chain, closeChain, type OpenOptions } from '../opening/chain.js'
import { unlessMounted } from '../opening/mounted.js'
import { openChain } from '../opening/open-chain.js'
import { recoverChain } from '../opening/recovery.js'
import { changeSnapshots, type SnapshotChange } from './snapshot-change.js'
import { fileSpec } from '../layer.js'
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
} from './snapshot-names.js'
import { OPENED_FILES } from '../opening/store-source.js'

export type { SnapshotName } from './snapshot-names.js'

export type SnapshotOptions = Pick<OpenOptions, 'format'>

/** An image whose snapshots may change. It is open for writing, and locked with QEMU's locks. */
export class SnapshotImage {
  readonly warnings: readonly string[]
  /** In the order of the image's table. */
  readonly snapshots: readonly InternalSnapshot[]

  private constructor(
    private readonly chain: Chain,
    private readonly progress: ((part: number) => void) | undefined,
  ) {
    this.warnings = chain.warnings
    const [layer] = chain.layers
    const store = OPENED_FILES.writable(layer, BigInt64Array.of(BigInt(layer.sizeBytes)))
    this.snapshots = formatOf(layer).internalSnapshots?.read(store, layer.spec) ?? []
  }

  /**
   * Opens the image. Recovers it first if it was not closed cleanly.
   * @param options `changesDisk` refuses an image that another one needs, unless `force` is set. Throws ImageError, and then
   *   leaves nothing open. `progress` is told what part of a change is done, 0 to 1
   */
  static async open(
    name: string,
    options: SnapshotOptions &
      Pick<OpenOptions, 'changesDisk' | 'force'> & {
        readonly progress?: (part: number) => void
      } = {},
  ): Promise<SnapshotImage> {
    // An image that has no internal snapshots is not opened for writing.
    requireInternalSnapshots(name, options)
    const opened = unlessMounted(() =>
      openChain(name, { ...options, describe: 'image', access: 'write', takesLocks: true }),
    )
    try {
      return new SnapshotImage(recoverChain(opened), options.progress)
    } catch (error) {
      closeChain(opened)
      throw error
    }
  }

  /** Returns the index of a snapshot. Throws ImageError if there is none, or more than one. */
  indexOf(name: SnapshotName): number {
    return indexOfSnapshot(this, name)
  }

  /**
   * Takes a snapshot. Throws ImageError if there is one of this tag, SystemError.
   * @param replaces whether the snapshots of this tag are deleted then, instead
   */
  async create(tag: string, now = new Date(), replaces = false): Promise<void> {
    const snapshot = newSnapshot(tag, now, this.path)
    const indexes = indexesOf(this, { tag })
    if (!replaces) requireFreeTag(this, tag)
    // The new one first, which comes last in the table: there is a snapshot of this tag at every moment.
    await this.change({ kind: 'create', snapshot })
    if (indexes.length > 0) await this.change({ kind: 'delete', indexes })
  }

  /** Deletes snapshots, all at once. Throws ImageError, SystemError. */
  async delete(indexes: readonly number[]): Promise<void> {
    await this.change({ kind: 'delete', indexes })
  }

  /** Gives a snapshot another tag. Throws ImageError if another one has that, SystemError. */
  async rename(name: SnapshotName, tag: string): Promise<void> {
    await this.change(renaming(this, name, tag))
  }

  /**
   * Makes the disk what a snapshot is. Unless `discard` is set, it takes a snapshot of the present state first, and returns its
   * tag; undefined if a snapshot shows the present state already. Throws ImageError, SystemError.
   */
  async revert(index: number, discard: boolean, now = new Date()): Promise<string | undefined> {
    if (discard) {
      await this.change({ kind: 'revert', index, keep: undefined })
      return undefined
    }
    const { tag, snapshot } = snapshotBeforeRevert(this, now)
    const hasKept = await offeringDiscard(() =>
      this.change({ kind: 'revert', index, keep: snapshot }),
    )
    return hasKept ? tag : undefined
  }

  close(): void {
    closeChain(this.chain)
  }

  /** Makes one change. Returns whether it has taken a snapshot. */
  private change(change: SnapshotChange): Promise<boolean> {
    const { progress } = this
    const [opened] = this.chain.layers
    // An earlier change may have changed the file's size.
    const stat = fs.fstatSync(opened.fd, { bigint: true })
    const { sizeBytes } = fileSpec({ path: opened.path, fd: opened.fd, stat })
    const layer = { ...opened, sizeBytes }
    const setup = { layer, change }
    return isLongWork(layer)
      ? runApart('snapshots', setup, progress)
      : changeSnapshots(setup, { ...(progress && { progress }) })
  }

  get path(): string {
    return this.chain.layers[0].path
  }
}

/** Throws ImageError if nothing changes snapshots within images of this format. */
function requireInternalSnapshots(name: string, options: SnapshotOptions): void {
  const chain = openChain(name, { ...options, describe: 'file' })
  closeChain(chain)
  requireSnapshotWriting(chain.layers[0])
}
