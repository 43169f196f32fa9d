/** A file system over a disk that is written, in memory: requests in, calls of the disk out. */
import { constants } from 'node:os'
import { ImageError } from '../../src/errors.js'
import type { CatalogEntry } from '../../src/image/catalog.js'
import type { FormatDriver, View } from '../../src/formats/driver.js'
import type { ViewSet } from '../../src/image/reading/view-set.js'
import type { WritableDisk } from '../../src/formats/writable.js'
import { TextSlots } from '../../src/fs/status/control.js'
import { ImageFs } from '../../src/fs/protocol/image-fs.js'
import type { FileSystemParts } from '../../src/fs/nodes/node-operations.js'
import { Tree } from '../../src/fs/nodes/tree.js'
import type { Store } from '../../src/io/store.js'

export const DISK_BYTES = 8192
export const DISK = 16
export const SNAPSHOT = 17

/** Notes what it is asked to do, and does it to `bytes`. */
export class FakeDisk implements WritableDisk {
  readonly calls: string[] = []
  bytes = Buffer.alloc(DISK_BYTES, 'd')
  modified = 0
  failure = ''
  isDirty = false
  isMapped = false
  /** Thrown by whatever is asked next. */
  error: Error | undefined
  private readers = 0

  get sizeBytes(): number {
    return this.bytes.length
  }

  get writeErrno(): number {
    return this.failure === '' ? 0 : constants.errno.EROFS
  }

  noteMaps(): void {
    this.isMapped = true
  }

  end(why: string): void {
    this.failure = why
  }

  checkFiles(): void {}

  beginRead(offset: number, length: number): void {
    this.calls.push(`begin ${offset} ${length}`)
    if (this.readers++ > 0) throw new Error('a thread holds one side at a time')
  }

  endRead(): void {
    this.calls.push('end')
    this.readers--
  }

  write(source: Buffer, start: number, length: number, offset: number): void {
    this.note(`write ${offset} ${source.toString('latin1', start, start + length)}`)
    source.copy(this.bytes, offset, start, start + length)
  }

  zero(offset: number, length: number): void {
    this.note(`zero ${offset} ${length}`)
    this.bytes.fill(0, offset, offset + length)
  }

  reserve(offset: number, length: number): void {
    this.note(`reserve ${offset} ${length}`)
  }

  own(offset: number, length: number): void {
    this.note(`own ${offset} ${length}`)
  }

  flush(): void {
    this.note('flush')
    this.isDirty = false
  }

  grow(sizeBytes: number): void {
    this.note(`grow ${sizeBytes}`)
    this.bytes = Buffer.concat([this.bytes, Buffer.alloc(sizeBytes - this.bytes.length)])
  }

  close(): readonly string[] {
    this.note('close')
    return []
  }

  private note(call: string): void {
    this.calls.push(call)
    if (this.error) throw this.error
    if (this.failure !== '') throw new ImageError('READ_ONLY', this.failure)
    this.isDirty = true
  }
}

export interface WrittenParts {
  readonly parts: FileSystemParts
  readonly disk: FakeDisk
  /** By place in the catalog. */
  readonly allocated: Float64Array
  /** How often a request had the disk flushed. */
  flushes(): number
}

export interface WrittenFs extends WrittenParts {
  readonly fs: ImageFs
}

/** Two files: the disk, full of d, and a snapshot, full of s. */
export function writtenFs(isGrowable = false): WrittenFs {
  const written = writtenParts(isGrowable)
  return { ...written, fs: new ImageFs(written.parts) }
}

/** The same without a protocol. */
export function writtenParts(isGrowable = false, disk = new FakeDisk()): WrittenParts {
  const store: Store = {
    path: 'disk',
    get sizeBytes() {
      return disk.bytes.length
    },
    read: (target, start, length, at) => disk.bytes.copy(target, start, at, at + length),
    nextData: at => at,
    nextHole: () => disk.bytes.length,
  }
  const driver: FormatDriver = {
    unitBytes: 1,
    get sizeBytes() {
      return disk.bytes.length
    },
    lookup: (offset, length) => ({ kind: 'data', length, store, at: offset }),
  }
  const view: View = { driver, parent: undefined }
  const diskOf = ({ kind }: CatalogEntry) => (kind === 'disk' ? disk : undefined)
  const views = { disk, diskOf, viewOf: () => view } as unknown as ViewSet
  const modified = { seconds: 1000, nanoseconds: 5 }
  const rest = { layer: 0, startOffset: 0, sizeBytes: DISK_BYTES, modified, attributes: {} }
  const entries: CatalogEntry[] = [
    { name: 'disk.raw', kind: 'disk', ...rest },
    { name: 'disk@one.raw', kind: 'snapshot', ...rest },
  ]
  const appearance = { uid: 7, gid: 8, fileMode: 0o440, diskMode: 0o640, dirMode: 0o550, modified }
  const allocated = new Float64Array(entries.length).fill(DISK_BYTES)
  let flushes = 0
  const parts: FileSystemParts = {
    tree: new Tree(entries, appearance),
    views,
    layers: [],
    allocated,
    slots: new TextSlots(),
    controlText: { status: () => '', stats: () => '' },
    isGrowable,
    onFlush: () => flushes++,
  }
  return { parts, disk, allocated, flushes: () => flushes }
}
