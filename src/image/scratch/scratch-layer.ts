/** The layer that takes what is written to one scratch copy: an image of its own, on top of the disk or snapshot. */
import { randomBytes } from 'node:crypto'
import type { View } from '../../formats/driver.js'
import type { FormatWriting, LayerEncryption, LayerSpec } from '../../formats/format.js'
import { SCRATCH_FORMAT } from '../../formats/registry.js'
import type { WritableDisk } from '../../formats/writable.js'
import { createDiskMemory, type DiskMemory } from '../writing/disk-memory.js'
import { OPENED_FILES, type StoreSource } from '../opening/store-source.js'
import { type CacheSizes, ViewSet } from '../reading/view-set.js'
import type { ChangeWatch } from '../opening/change-watch.js'
import type { WritableView } from '../writing/write-engine.js'
import { BaseGuard } from './base-guard.js'
import { SCRATCH_FILES } from './scratch-store.js'
import { BoundedDriver, ScratchSpace } from './space.js'

/** A layer with the memory that the threads share which write it. Plain data. */
export interface ScratchLayer {
  readonly layer: LayerSpec
  /** Whether it outlives the mount, so that what is flushed has to be on the disk. */
  readonly isKept: boolean
  readonly memory: DiskMemory
  /** Present where there is a bound on what is written. */
  readonly bound:
    | {
        readonly limitBytes: number
        /** Of ScratchSpace; all scratch copies of a mount share it. */
        readonly used: SharedArrayBuffer
        /** Of BoundedDriver. */
        readonly freed: SharedArrayBuffer
      }
    | undefined
}

const KEY_BYTES = 64
const UNKNOWN_TIME = { seconds: 0, nanoseconds: 0 }

/**
 * Makes an empty layer in a new file. Throws SystemError, ImageError.
 * @param file the file: empty, open for reading and writing, with a path for messages
 * @param isEncrypted whether its data are encrypted, with a key that is in memory only
 */
export function makeScratchLayer(
  file: { readonly path: string; readonly fd: number },
  diskBytes: number,
  isEncrypted: boolean,
): LayerSpec {
  const size = new BigInt64Array(new SharedArrayBuffer(8))
  const store = SCRATCH_FILES.writable(file, size)
  const writing = SCRATCH_FORMAT.writing as Required<FormatWriting<unknown>>
  return {
    ...file,
    spec: writing.scratch(store, diskBytes),
    sizeBytes: store.sizeBytes,
    format: SCRATCH_FORMAT.name,
    ...{ allocatedBytes: 0, modified: UNKNOWN_TIME, mode: 0o600, gid: 0 },
    ...(isEncrypted && { encryption: randomEncryption() }),
  }
}

/** @param threads how many threads take part, with the main thread */
export function shareScratchLayer(
  layer: LayerSpec,
  threads: number,
  space: ScratchSpace | undefined,
  isKept = false,
): ScratchLayer {
  const memory = createDiskMemory(layer, threads, filesOf({ isKept }).readable(layer))
  const bound = space && {
    ...{ limitBytes: space.limitBytes, used: space.shared },
    freed: new SharedArrayBuffer(8),
  }
  return { layer, isKept, memory, bound }
}

/** Returns what opens the file: of a layer that is kept, as that of an image that is mounted. */
export const filesOf = ({ isKept }: Pick<ScratchLayer, 'isKept'>): StoreSource =>
  isKept ? OPENED_FILES : SCRATCH_FILES

export interface ScratchDisk {
  readonly disk: WritableDisk
  readonly view: View
}

export interface ScratchThread {
  /** 0 to the number of threads - 1; the main thread takes the last. */
  readonly thread: number
  readonly onStall: (seconds: number) => void
}

/** The disk that a copy stands on. */
export interface ScratchBase {
  readonly view: View
  /** Tells whether others have changed the image. */
  readonly watch: ChangeWatch | undefined
  /** The path of the image. */
  readonly path: string
}

/** Opens one thread's part of a scratch copy of the disk `base`. */
export function openScratchDisk(
  { layer, isKept, memory, bound }: ScratchLayer,
  base: ScratchBase,
  caches: CacheSizes,
  { thread, onStall }: ScratchThread,
): ScratchDisk {
  const space = bound && new ScratchSpace(bound.limitBytes, bound.used)
  const changes = {
    view({ driver: written, parent }: WritableView): WritableView {
      let driver = written
      if (space) driver = new BoundedDriver(driver, space, bound.freed, layer.path)
      if (base.watch) driver = new BaseGuard(driver, base.watch, base.path)
      return { driver, parent }
    },
  }
  const writing = { memory, thread, onStall, changes }
  const set = new ViewSet([layer], caches, undefined, writing, filesOf({ isKept }), base.view)
  return { disk: set.disk as WritableDisk, view: set.layerView(0) }
}

/** Its initialization vectors count sectors of the file, as those of LUKS do. */
function randomEncryption(): LayerEncryption {
  const key = new SharedArrayBuffer(KEY_BYTES)
  const bytes = randomBytes(KEY_BYTES)
  new Uint8Array(key).set(bytes)
  bytes.fill(0)
  return { method: 'LUKS', spec: { mode: 'xts', ivGenerator: 'plain64', ivHash: undefined, key } }
}
