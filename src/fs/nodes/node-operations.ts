/**
 * The operations on the inodes of a mount, which all transports share. Methods return a negative errno for failures that a
 * program expects; they throw for damage.
 */
import fs from 'node:fs'
import { constants } from 'node:os'
import type { LayerSpec } from '../../formats/format.js'
import { allocatedNow, filesOf, modifiedNow } from '../../image/layer.js'
import type { Timestamp } from '../../io/file-spec.js'
import { SEEK_DATA, SEEK_HOLE } from '../../io/libc.js'
import { AllocatedBytes } from './allocated-bytes.js'
import type { TextSlots } from '../status/control.js'
import type { AttributeChange, Writer } from '../writing/disk-file.js'
import { DiskFiles } from '../writing/disk-files.js'
import { mayHoldForWriting } from '../mounting/file-holders.js'
import { FileReader, READING, type ReaderParts } from './file-reader.js'
import type { GapActions } from '../writing/gap-actions.js'
import { KeptWrites } from './kept-writes.js'
import type { OpenCounts } from './open-counts.js'
import { type Owner, Ownership } from './ownership.js'
import type { Passthrough } from './passthrough.js'
import type { ControlNode, DirNode, ImageNode, Node, Tree } from './tree.js'
import { Truncations } from '../writing/truncations.js'
import type { WriteBackMount } from '../writing/write-back.js'
import type { WrittenFiles } from '../writing/written-files.js'

const { EACCES, EINVAL, EISDIR, ENFILE, ENOSYS, ENXIO, EOPNOTSUPP, EPERM, EROFS } = constants.errno
const { O_APPEND, O_TRUNC } = fs.constants

export interface FileSystemParts extends ReaderParts {
  readonly tree: Tree
  readonly layers: readonly LayerSpec[]
  /** Allocated bytes by place in the catalog; -1 if not counted yet; shared by the workers. */
  readonly allocated: Float64Array
  readonly slots: TextSlots
  readonly controlText: {
    status(): string
    stats(): string
    readonly partitions?: string | undefined
  }
  /** With allow_root the kernel admits all users, and all but these are refused here. */
  readonly onlyUids?: readonly number[]
  /** Whether several files show the same bytes, and can be written. */
  readonly sharesBytes?: boolean
  /** Whether writing past the disk's end makes it larger. */
  readonly isGrowable?: boolean
  /** Called whenever a request flushes the disk. */
  readonly onFlush?: () => void
  /** Whether programs change snapshots by changing the folder. */
  readonly manages?: boolean
  /** Shared by the workers. */
  readonly truncations?: Truncations
  readonly ownership?: Ownership
  readonly opens?: OpenCounts
  /** Present where the kernel may read files itself. */
  readonly passthrough?: Passthrough
  /** Present where the kernel keeps what is written, and sends it later. */
  readonly writeBack?: WriteBackMount
  /** Makes the kernel drop pages of the disk's file, see `GapActions`. */
  readonly dropPages?: GapActions['dropPages']
  /** The files that programs can write; by default that of `views.disk`, with the parts above. */
  readonly files?: WrittenFiles
}

/** For files that never change: the kernel may keep names and attributes for a year. */
export const VALID_SECONDS = 365 * 86400
/**
 * For a disk that is written. The kernel drops its attributes at each write, but its blocks may be counted again later.
 */
const WRITTEN_VALID_SECONDS = 1
export const BLOCK_BYTES = 4096
const ACCESS_MODE = 3
const X_OK = 1
const W_OK = 2
const S_IFDIR = 0o040000
const S_IFREG = 0o100000

/** Times never change, so this changes nothing. */
const isTouch = ({ mode, uid, gid, sizeBytes }: AttributeChange): boolean =>
  [mode, uid, gid, sizeBytes].every(value => value === undefined)

export class NodeOperations {
  readonly tree: Tree
  readonly kept: KeptWrites
  private readonly reader: FileReader
  private readonly allocated: AllocatedBytes
  private readonly files: WrittenFiles

  constructor(private readonly parts: FileSystemParts) {
    const { views, layers, allocated, tree, isGrowable = false, onFlush = () => {} } = parts
    this.tree = tree
    const truncations = parts.truncations ?? new Truncations()
    const ownership = parts.ownership ?? new Ownership()
    this.files =
      parts.files ??
      new DiskFiles(parts, (node, place) => ({
        isGrowable: isGrowable && node.entry.kind === 'disk',
        onFlush,
        writesBack: parts.writeBack !== undefined,
        truncations: truncations.at(place),
        ownership: ownership.of(node.id),
        dropPages: (offset, length, isLocked) =>
          parts.dropPages?.(place.start + offset, length, isLocked),
      }))
    this.reader = new FileReader(parts, this.files)
    this.kept = new KeptWrites(parts.writeBack, parts.opens, this.files, this.reader)
    this.allocated = new AllocatedBytes(views, layers, allocated, this.files, (node, file) =>
      this.reader.view(node, file),
    )
  }

  /** Reports whether programs may write the file of `node`. */
  isWritable(node: Node | undefined): boolean {
    return this.files.isWritable(node)
  }

  sizeOf(node: ImageNode): number {
    return this.files.find(node)?.disk.sizeBytes ?? node.entry.sizeBytes
  }

  /** Sets attributes. Returns 0 or an errno. */
  setattr(node: Node | undefined, change: AttributeChange): number {
    const file = this.files.open(node)
    if (!file) return this.parts.manages && isTouch(change) ? 0 : -EROFS
    return file.setattr(change, this.ownerOf(node as ImageNode))
  }

  /** @returns the handle for `read` and `close` */
  open(node: Node, flags: number): number {
    if (node.kind === 'dir') return -EISDIR
    const isWriting = (flags & ACCESS_MODE) !== 0 || (flags & O_TRUNC) !== 0
    if (!isWriting) {
      return node.kind === 'control' ? this.openControl(node) : this.reader.open(node)
    }
    const file = this.files.open(node)
    if (!file) return -EROFS
    const { writeErrno } = file.disk
    if (writeErrno !== 0) return -writeErrno
    const { truncations } = file
    const handle = truncations.newHandle()
    const isTruncating = (flags & O_TRUNC) !== 0
    const isAppending = (flags & O_APPEND) !== 0
    if (isTruncating && !truncations.truncate(handle, true, isAppending)) return -ENFILE
    if (isTruncating) this.kept.onTruncated()
    return handle
  }

  /** @returns how many of `size` bytes at `offset` it has put at the beginning of `target` */
  read(node: Node, fh: number, target: Buffer, size: number, offset: number): number {
    if (node.kind === 'dir') return -EISDIR
    if (node.kind === 'control') {
      // Past the end of the text `copy` would throw.
      return this.controlText(node, fh)
        .subarray(offset, offset + size)
        .copy(target)
    }
    const length = Math.max(0, Math.min(size, this.sizeOf(node) - offset))
    return length === 0 ? 0 : this.reader.read(node, target, length, offset)
  }

  /** @returns how many of the `size` bytes from `start` of `source` have been written at `offset` */
  write(
    node: Node | undefined,
    source: Buffer,
    start: number,
    size: number,
    offset: number,
    writer: Writer,
  ): number {
    const file = this.files.find(node)
    return file ? file.write(source, start, size, offset, writer) : -EROFS
  }

  fallocate(
    node: Node | undefined,
    mode: number,
    offset: number,
    length: number,
    handle: number,
  ): number {
    const file = this.files.find(node)
    return file ? file.fallocate(mode, offset, length, handle) : -EROFS
  }

  flush(node: Node | undefined): number {
    return this.files.find(node)?.flush() ?? 0
  }

  /** Serves close(2) of a descriptor of the handle `fh`: makes durable what was written through it. */
  close(node: Node | undefined, fh: number): number {
    const file = fh === READING ? undefined : this.files.find(node)
    if (!file) return 0
    this.kept.showWhole(node as ImageNode, file, fh)
    const result = file.flush()
    // The program has truncated the file and written nothing, so it believes that the file is empty.
    return file.truncations.close(fh) ? -EPERM : result
  }

  /** Serves the close of the handle's last descriptor. */
  release(node: Node | undefined, fh: number): number {
    const file = fh === READING ? undefined : this.files.find(node)
    if (!file) return 0
    this.kept.showWhole(node as ImageNode, file, fh)
    // Do this first: other threads may wait to learn whether the handle is gone.
    file.truncations.release(fh)
    return file.flush()
  }

  /** @param whence SEEK_DATA or SEEK_HOLE; the kernel passes on no others */
  lseek(node: Node, offset: number, whence: number): number {
    if (node.kind !== 'image') return -EINVAL
    if (whence !== SEEK_DATA && whence !== SEEK_HOLE) return -EINVAL
    if (offset >= this.sizeOf(node)) return -ENXIO
    if (this.kept.isAhead(node)) return whence === SEEK_DATA ? offset : this.sizeOf(node)
    return this.reader.seek(node, offset, whence)
  }

  access(node: Node, mask: number): number {
    if (mask & W_OK && !this.isWritable(node)) return -EROFS
    // Only folders have execute bits: no file here is a program.
    return mask & X_OK && node.kind !== 'dir' ? -EACCES : 0
  }

  /**
   * Returns the numbers of statfs: the size of the disk, and that size minus the space that the image's files take. It costs
   * one fstat for each file.
   */
  diskSpace(): { bytes: number; freeBytes: number } {
    const bytes = this.tree.disk ? this.sizeOf(this.tree.disk) : 0
    const [top] = this.parts.layers
    const used = top ? filesOf(top).reduce((sum, file) => sum + allocatedNow(file), 0) : 0
    return { bytes, freeBytes: Math.max(0, bytes - used) }
  }

  /** Refuses requests that would change something. */
  refuseChange(): number {
    return -EROFS
  }

  /** Refuses attributes that a writable file could have, but does not: programs go on without them. */
  refuseAttribute(node: Node | undefined): number {
    return this.isWritable(node) ? -EOPNOTSUPP : -EROFS
  }

  /** Refuses with ENOSYS, so that the kernel reads and writes instead, and does not ask again. */
  copyFileRange(): number {
    return this.files.isWritable(this.tree.disk) ? -ENOSYS : -EROFS
  }

  /** Returns entry `index` of a listing. The first two are the folder itself and its parent. */
  listed(dir: DirNode, index: number): { node: Node; name: string } {
    if (index === 0) return { node: dir, name: '.' }
    if (index === 1) return { node: this.tree.node(dir.parent) as Node, name: '..' }
    const node = this.tree.node(dir.children[index - 2] as number) as Node
    return { node, name: node.name }
  }

  /** Reports whether the node's blocks are counted. A listing does not count the blocks of a thousand files. */
  isCounted(node: Node): boolean {
    return node.kind !== 'image' || this.allocated.isKnown(node)
  }

  /** Returns how many seconds the attributes stay valid. Control files change at each opening. */
  validity(node: Node): number {
    if (node.kind === 'control') return 0
    const file = this.files.find(node)
    // Writes through other files change it, too.
    if (this.parts.sharesBytes && this.isWritable(node)) return 0
    if (!file) return this.isSteady(node) ? VALID_SECONDS : 0
    if (file.truncations.isActive) return 0
    return this.allocated.isCurrent(node as ImageNode, file.disk) ? WRITTEN_VALID_SECONDS : 0
  }

  /** How long names stay valid, in seconds. */
  get nameValidity(): number {
    // For `manages`: see tree-changes.ts.
    return this.parts.onGone || this.parts.manages ? 0 : VALID_SECONDS
  }

  /** Reports whether what a file or a folder shows never changes without the kernel being told. */
  isSteady(node: Node): boolean {
    if (!this.parts.onGone) return true
    if (node.kind !== 'image') return false
    const { table, kind, layer } = node.entry
    // Bytes that a snapshot does not have itself come from the layer below, which may be written.
    return (
      table !== undefined && (kind === 'vmstate' || this.parts.layers[layer]?.below === undefined)
    )
  }

  modeOf(node: Node): number {
    const { fileMode, layerModes, diskMode, dirMode } = this.tree.appearance
    if (node.kind === 'dir') return S_IFDIR | dirMode
    if (node.kind !== 'image') return S_IFREG | fileMode
    if (this.files.isWritable(node)) return S_IFREG | this.ownerOf(node).mode
    if (node.entry.kind === 'disk') return S_IFREG | diskMode
    return S_IFREG | (layerModes?.[node.entry.layer] ?? fileMode)
  }

  /**
   * Returns the size that the attributes show. While a handle that truncated the disk is open, it is the end of what that
   * handle has written, so that a program that skips to its end extends the file. Another handle, and a process that cannot
   * have such a handle, see the whole disk.
   *
   * @param fh the handle that asks; undefined if none does
   * @param pid the process that asks; 0 if it is not known
   */
  private shownSize(node: ImageNode, fh: number | undefined, pid: number): number {
    const size = this.sizeOf(node)
    const truncations = this.files.find(node)?.truncations
    if (!truncations?.isActive) return size
    if (fh !== undefined) return Math.min(size, truncations.markOf(fh) ?? size)
    // While a handle appends, show its size to all: the kernel appends at the size that it was told last.
    if (!truncations.isAppending && !mayHoldForWriting(pid, node.id)) return size
    return Math.min(size, truncations.lastMark() ?? size)
  }

  /** Whether the shown size may change at any moment because a handle is being closed. */
  get isClosing(): boolean {
    for (const { truncations } of this.files.found) if (truncations.isClosing) return true
    return false
  }

  /**
   * @param fh the handle that asks; undefined if none does
   * @param pid the process that asks; 0 if it is not known
   */
  attributes(node: Node, fh?: number, pid = 0) {
    const { modified } = this.tree.appearance
    const isWritable = node.kind === 'image' && this.files.isWritable(node)
    const { uid, gid } = isWritable ? this.ownerOf(node) : this.tree.appearance
    const time = node.kind === 'image' ? this.modified(node) : modified
    return {
      ino: node.id,
      size: node.kind === 'image' ? this.shownSize(node, fh, pid) : 0,
      blocks:
        node.kind === 'image'
          ? this.kept.blocks(node, Math.ceil(this.allocated.of(node) / 512))
          : 0,
      atime: time.seconds,
      mtime: time.seconds,
      ctime: time.seconds,
      atimensec: time.nanoseconds,
      mtimensec: time.nanoseconds,
      ctimensec: time.nanoseconds,
      mode: this.modeOf(node),
      nlink: node.kind === 'dir' ? 2 : 1,
      uid,
      gid,
      rdev: 0,
      blksize: BLOCK_BYTES,
      flags: 0,
    }
  }

  /** Returns the owner of a file that programs can write. */
  private ownerOf(node: ImageNode): Owner {
    const { diskMode, writtenModes, uid, gid } = this.tree.appearance
    const initial = { mode: writtenModes?.[node.entry.layer] ?? diskMode, uid, gid }
    return this.files.find(node)?.ownership.current(initial) ?? initial
  }

  extendedAttributes(node: Node): Map<string, string> {
    if (node.kind !== 'image') return new Map()
    const { kind, attributes } = node.entry
    const size = String(this.sizeOf(node))
    return new Map(Object.entries({ kind, 'virtual-size': size, ...attributes }))
  }

  private openControl(node: ControlNode): number {
    if (node.file !== 'stats.json') return 0
    return this.parts.slots.put(this.parts.controlText.stats())
  }

  private controlText(node: ControlNode, slot: number): Buffer {
    if (node.file === 'status.json') return Buffer.from(this.parts.controlText.status())
    if (node.file === 'partitions.json') return Buffer.from(this.parts.controlText.partitions ?? '')
    return this.parts.slots.get(slot)
  }

  private modified(node: ImageNode): Timestamp {
    const layer = this.parts.layers[node.entry.layer]
    // Others write it, and nothing tells of their writes.
    if (layer && !node.entry.table && !this.isSteady(node)) return modifiedNow(layer)
    const disk = this.files.find(node)?.disk
    if (layer && disk?.isMapped) return modifiedNow(layer)
    const milliseconds = disk?.modified ?? 0
    if (milliseconds === 0) return node.entry.modified
    const seconds = Math.floor(milliseconds / 1000)
    return { seconds, nanoseconds: (milliseconds - seconds * 1000) * 1_000_000 }
  }
}
