/**
 * The file system's operations on the inode tree, each for one opcode. They read what they need from
 * a request, write the payload of its reply, and return the payload's length, or an errno, negative.
 */
import fs from 'node:fs'
import { constants } from 'node:os'
import type { View } from '../formats/driver.js'
import { readView } from '../formats/engine.js'
import { nextData, nextHole } from '../formats/holes.js'
import type { LayerSpec, Timestamp } from '../formats/layer.js'
import type { ImageSet } from '../formats/image-set.js'
import type { UnpackCrew } from '../formats/unpack-crew.js'
import { SEEK_DATA, SEEK_HOLE } from '../io/libc.js'
import { AllocatedBytes, writtenDisk } from './allocated-bytes.js'
import type { TextSlots } from './control.js'
import { DiskFile } from './disk-file.js'
import {
  ACCESS_IN,
  ATTR,
  ATTR_OUT,
  DIRENT,
  COHERENT_DIRECT_IO_MINOR,
  ENTRY_OUT,
  FLUSH_IN,
  FOPEN,
  GETXATTR_IN,
  GETXATTR_OUT,
  LSEEK_IN,
  LSEEK_OUT,
  MAX_REQUEST_BYTES,
  OPEN_IN,
  OPEN_OUT,
  READ_IN,
  STATFS_OUT,
  STATX_OUT,
} from './protocol.js'
import type { ControlNode, DirNode, ImageNode, Node, Tree } from './tree.js'

const { EACCES, EINVAL, EISDIR, ENODATA, ENOENT, ENOSYS, ENOTDIR, ENXIO } = constants.errno
const { EOPNOTSUPP, ERANGE, EROFS } = constants.errno
const { O_DIRECT, O_TRUNC } = fs.constants

/** One request; the worker has one such object and fills it anew each time. */
export interface Request {
  nodeid: number
  uid: number
  message: Buffer
  /** Where the arguments begin in `message`, and where they end. */
  args: number
  end: number
  /** Where the reply's payload goes. */
  payload: Buffer
}

export interface ImageFsParts {
  readonly tree: Tree
  readonly images: ImageSet
  readonly layers: readonly LayerSpec[]
  /** Allocated bytes by place in the catalog, -1 where nobody counted yet; shared by the workers. */
  readonly allocated: Float64Array
  readonly slots: TextSlots
  readonly controlText: { status(): string; stats(): string }
  /** With allow_root the kernel lets all in, and everybody but these is turned away here. */
  readonly onlyUids?: readonly number[]
  /** Decompresses on two processors; its target is the payload of all requests. */
  readonly crew?: UnpackCrew
  /** Whether what is written behind the disk's end makes it larger. */
  readonly isGrowable?: boolean
  /** Called whenever a request has the disk flushed. */
  readonly onFlush?: () => void
}

/** What nobody writes does not change: the kernel may remember names and attributes for a year. */
const VALID_SECONDS = 365 * 86400
/**
 * Of a disk that is written. The kernel forgets its attributes whenever it writes; but its blocks may be
 * counted anew later.
 */
const WRITTEN_VALID_SECONDS = 1
const BLOCK_BYTES = 4096
const ACCESS_MODE = 3
/** The handle of whoever has opened the disk for writing; others have 0. */
const WRITING = 1
const X_OK = 1
const W_OK = 2
const S_IFDIR = 0o040000
const S_IFREG = 0o100000
const DT_DIR = 4
const DT_REG = 8
const STATX_BASIC_STATS = 0x7ff
const STATX_BTIME = 0x800
const XATTR_PREFIX = 'user.vimgfs.'

export class ImageFs {
  private readonly views = new Map<number, View>()
  private readonly allocated: AllocatedBytes
  private readonly diskFile: DiskFile | undefined
  private isDirectCoherent = false

  constructor(private readonly parts: ImageFsParts) {
    const { images, layers, allocated, tree, isGrowable = false, onFlush = () => {} } = parts
    this.allocated = new AllocatedBytes(images, layers, allocated, node => this.view(node))
    if (!images.disk) return
    const node = tree.disk
    this.diskFile = new DiskFile(images.disk, {
      isGrowable,
      onFlush,
      onZero: length => {
        if (node) this.allocated.lower(node, length)
      },
    })
  }

  /** What the kernel and we have agreed on: the protocol's minor version. */
  speak(minor: number): void {
    this.isDirectCoherent = minor >= COHERENT_DIRECT_IO_MINOR
  }

  /** Whether `uid` may ask for anything at all. */
  admits(uid: number): boolean {
    const { onlyUids } = this.parts
    return onlyUids === undefined || onlyUids.includes(uid)
  }

  lookup(request: Request): number {
    const dir = this.parts.tree.node(request.nodeid)
    if (dir?.kind !== 'dir') return dir ? -ENOTDIR : -ENOENT
    const node = this.parts.tree.child(dir.id, stringAt(request, request.args))
    if (!node) return -ENOENT
    this.putEntry(request.payload, 0, node)
    return ENTRY_OUT.size + ATTR.size
  }

  getattr(request: Request): number {
    const node = this.parts.tree.node(request.nodeid)
    if (!node) return -ENOENT
    return this.putAttrOut(request.payload, node)
  }

  setattr(request: Request): number {
    const node = this.parts.tree.node(request.nodeid)
    const file = this.writable(node)
    if (!node || !file) return -EROFS
    const { diskMode: mode, uid, gid } = this.parts.tree.appearance
    const error = file.setattr(request, { mode, uid, gid })
    return error < 0 ? error : this.putAttrOut(request.payload, node)
  }

  statx(request: Request): number {
    const node = this.parts.tree.node(request.nodeid)
    if (!node) return -ENOENT
    const a = this.attributes(node)
    const attrValid = this.validity(node)
    const isSnapshot = node.kind === 'image' && node.entry.table !== undefined
    const time = { seconds: a.mtime, nanoseconds: a.mtimensec, reserved: 0 }
    STATX_OUT.put(request.payload, 0, {
      attrValid,
      attrValidNsec: 0,
      flags: 0,
      spare: Buffer.alloc(16),
      mask: STATX_BASIC_STATS | (isSnapshot ? STATX_BTIME : 0),
      blksize: a.blksize,
      attributes: 0,
      nlink: a.nlink,
      uid: a.uid,
      gid: a.gid,
      mode: a.mode,
      spare0: 0,
      ino: a.ino,
      size: a.size,
      blocks: a.blocks,
      attributesMask: 0,
      ...prefixed('a', time),
      ...prefixed('b', time),
      ...prefixed('c', time),
      ...prefixed('m', time),
      rdevMajor: 0,
      rdevMinor: 0,
      devMajor: 0,
      devMinor: 0,
      spare2: Buffer.alloc(112),
    })
    return STATX_OUT.size
  }

  open(request: Request): number {
    const node = this.parts.tree.node(request.nodeid)
    if (!node) return -ENOENT
    if (node.kind === 'dir') return -EISDIR
    const { flags } = OPEN_IN.decode(request.message, request.args)
    const isWriting = (flags & ACCESS_MODE) !== 0 || (flags & O_TRUNC) !== 0
    const file = this.writable(node)
    if (isWriting && file?.disk.failure !== '') return -EROFS
    const fh = node.kind === 'control' ? this.openControl(node) : isWriting ? WRITING : 0
    // Only the kernel's own writes change the files: their pages stay good for every opening.
    let openFlags = node.kind === 'control' ? FOPEN.DIRECT_IO : FOPEN.KEEP_CACHE
    // Who writes past the page cache need not write one after the other.
    if (file && flags & O_DIRECT && this.isDirectCoherent) {
      openFlags |= FOPEN.DIRECT_IO | FOPEN.PARALLEL_DIRECT_WRITES
    }
    OPEN_OUT.put(request.payload, 0, { fh, openFlags, padding: 0 })
    return OPEN_OUT.size
  }

  write(request: Request): number {
    const file = this.writable(this.parts.tree.node(request.nodeid))
    return file ? file.write(request) : -EROFS
  }

  fallocate(request: Request): number {
    const file = this.writable(this.parts.tree.node(request.nodeid))
    return file ? file.fallocate(request) : -EROFS
  }

  fsync(request: Request): number {
    return this.writable(this.parts.tree.node(request.nodeid))?.flush() ?? 0
  }

  /** For FLUSH and RELEASE: whoever closes what he has written wants it kept. */
  close(request: Request): number {
    const fh = request.message.readUInt32LE(request.args + FLUSH_IN.at.fh)
    return fh === WRITING ? this.fsync(request) : 0
  }

  opendir(request: Request): number {
    const node = this.parts.tree.node(request.nodeid)
    if (node?.kind !== 'dir') return node ? -ENOTDIR : -ENOENT
    const openFlags = FOPEN.KEEP_CACHE | FOPEN.CACHE_DIR
    OPEN_OUT.put(request.payload, 0, { fh: 0, openFlags, padding: 0 })
    return OPEN_OUT.size
  }

  read(request: Request): number {
    const node = this.parts.tree.node(request.nodeid)
    if (!node) return -ENOENT
    if (node.kind === 'dir') return -EISDIR
    const { message, args, payload } = request
    const { at } = READ_IN
    const size = message.readUInt32LE(args + at.size)
    const offset =
      message.readUInt32LE(args + at.offset) + message.readUInt32LE(args + at.offset + 4) * 2 ** 32
    if (size > MAX_REQUEST_BYTES) return -EINVAL
    if (node.kind === 'control') {
      const text = this.controlText(node, message.readUInt32LE(args + at.fh))
      // Behind the text's end there is nothing, where copying from there would throw.
      return text.subarray(offset, offset + size).copy(payload)
    }
    const length = Math.max(0, Math.min(size, this.sizeOf(node) - offset))
    if (length > 0) this.readImage(node, payload, length, offset)
    return length
  }

  /** The only whences that the kernel passes on. */
  lseek(request: Request): number {
    const node = this.parts.tree.node(request.nodeid)
    if (!node) return -ENOENT
    if (node.kind !== 'image') return -EINVAL
    const { offset, whence } = LSEEK_IN.decode(request.message, request.args)
    if (whence !== SEEK_DATA && whence !== SEEK_HOLE) return -EINVAL
    if (offset >= this.sizeOf(node)) return -ENXIO
    const { disk } = this.parts.images
    let found: number
    disk?.beginRead(0, 0)
    try {
      const view = this.view(node)
      found = whence === SEEK_DATA ? nextData(view, offset) : nextHole(view, offset)
    } finally {
      disk?.endRead()
    }
    if (found < 0) return -ENXIO
    LSEEK_OUT.put(request.payload, 0, { offset: found })
    return LSEEK_OUT.size
  }

  readdir(request: Request): number {
    return this.list(request, false)
  }

  readdirplus(request: Request): number {
    return this.list(request, true)
  }

  statfs(request: Request): number {
    const { tree } = this.parts
    const bytes = tree.disk ? this.sizeOf(tree.disk) : 0
    STATFS_OUT.put(request.payload, 0, {
      blocks: Math.ceil(bytes / BLOCK_BYTES),
      bfree: 0,
      bavail: 0,
      files: tree.fileCount,
      ffree: 0,
      bsize: BLOCK_BYTES,
      namelen: 255,
      frsize: BLOCK_BYTES,
      padding: 0,
      spare: Buffer.alloc(24),
    })
    return STATFS_OUT.size
  }

  access(request: Request): number {
    const node = this.parts.tree.node(request.nodeid)
    if (!node) return -ENOENT
    const { mask } = ACCESS_IN.decode(request.message, request.args)
    if (mask & W_OK && !this.writable(node)) return -EROFS
    // Folders are entered; no file here is a program.
    return mask & X_OK && node.kind !== 'dir' ? -EACCES : 0
  }

  getxattr(request: Request): number {
    const node = this.parts.tree.node(request.nodeid)
    if (!node) return -ENOENT
    const { size } = GETXATTR_IN.decode(request.message, request.args)
    const name = stringAt(request, request.args + GETXATTR_IN.size)
    const key = name.startsWith(XATTR_PREFIX) ? name.slice(XATTR_PREFIX.length) : undefined
    const value = key === undefined ? undefined : this.extendedAttributes(node).get(key)
    return value === undefined ? -ENODATA : putSized(request.payload, size, Buffer.from(value))
  }

  listxattr(request: Request): number {
    const node = this.parts.tree.node(request.nodeid)
    if (!node) return -ENOENT
    const { size } = GETXATTR_IN.decode(request.message, request.args)
    const names = [...this.extendedAttributes(node).keys()].map(key => `${XATTR_PREFIX}${key}\0`)
    return putSized(request.payload, size, Buffer.from(names.join('')))
  }

  /** For requests that would change something. */
  refuseChange(): number {
    return -EROFS
  }

  /** For changes that a file which is written could have, but has not: programs go on without. */
  refuseAttribute(request: Request): number {
    return this.writable(this.parts.tree.node(request.nodeid)) ? -EOPNOTSUPP : -EROFS
  }

  /** The kernel then reads and writes, and does not ask again. */
  copyFileRange(): number {
    return this.diskFile ? -ENOSYS : -EROFS
  }

  /** What changes the file of `node`, if anything can. */
  private writable(node: Node | undefined): DiskFile | undefined {
    return node?.kind === 'image' && node.entry.kind === 'disk' ? this.diskFile : undefined
  }

  private sizeOf(node: ImageNode): number {
    return writtenDisk(this.parts.images, node)?.sizeBytes ?? node.entry.sizeBytes
  }

  private readImage(node: ImageNode, payload: Buffer, length: number, offset: number): void {
    const { images, crew } = this.parts
    const { disk } = images
    // What snapshots and layers below have is never overwritten: only where it lies must stay.
    if (node.entry.kind === 'disk') disk?.beginRead(offset, length)
    else disk?.beginRead(0, 0)
    try {
      readView(this.view(node), payload, 0, length, offset, crew)
    } finally {
      // Also when the read failed: nobody may write to the payload any more.
      crew?.finish()
      disk?.endRead()
    }
  }

  private view(node: ImageNode): View {
    let view = this.views.get(node.id)
    if (view === undefined) {
      view = this.parts.images.viewOf(node.entry)
      this.views.set(node.id, view)
    }
    return view
  }

  private openControl(node: ControlNode): number {
    if (node.file === 'status.json') return 0
    return this.parts.slots.put(this.parts.controlText.stats())
  }

  private controlText(node: ControlNode, slot: number): Buffer {
    if (node.file === 'status.json') return Buffer.from(this.parts.controlText.status())
    return this.parts.slots.get(slot)
  }

  private list(request: Request, plus: boolean): number {
    const dir = this.parts.tree.node(request.nodeid)
    if (dir?.kind !== 'dir') return dir ? -ENOTDIR : -ENOENT
    const { offset, size } = READ_IN.decode(request.message, request.args)
    const room = Math.min(size, request.payload.length)
    const total = 2 + dir.children.length
    let used = 0
    for (let index = offset; index < total; index++) {
      const { node, name } = this.listed(dir, index)
      const nameBytes = Buffer.byteLength(name)
      const at = used + (plus ? ENTRY_OUT.size + ATTR.size : 0)
      const end = at + Math.ceil((DIRENT.size + nameBytes) / 8) * 8
      if (end > room) break
      if (plus) this.putListedEntry(request.payload, used, node, index < 2)
      const type = node.kind === 'dir' ? DT_DIR : DT_REG
      DIRENT.put(request.payload, at, { ino: node.id, off: index + 1, namelen: nameBytes, type })
      request.payload.fill(0, at + DIRENT.size, end)
      request.payload.write(name, at + DIRENT.size)
      used = end
    }
    return used
  }

  private listed(dir: DirNode, index: number): { node: Node; name: string } {
    const { tree } = this.parts
    if (index === 0) return { node: dir, name: '.' }
    if (index === 1) return { node: tree.node(dir.parent) as Node, name: '..' }
    const node = tree.node(dir.children[index - 2] as number) as Node
    return { node, name: node.name }
  }

  /** An entry without an id says nothing of its node: counting a thousand files is for who asks. */
  private putListedEntry(payload: Buffer, at: number, node: Node, isDots: boolean): void {
    const isKnown = node.kind !== 'image' || this.allocated.isKnown(node)
    if (!isDots && isKnown) this.putEntry(payload, at, node)
    else payload.fill(0, at, at + ENTRY_OUT.size + ATTR.size)
  }

  /** The attributes come first: what they are decides for how long they hold. */
  private putEntry(payload: Buffer, at: number, node: Node): void {
    ATTR.put(payload, at + ENTRY_OUT.size, this.attributes(node))
    ENTRY_OUT.put(payload, at, {
      nodeid: node.id,
      generation: 0,
      entryValid: VALID_SECONDS,
      attrValid: this.validity(node),
      entryValidNsec: 0,
      attrValidNsec: 0,
    })
  }

  private putAttrOut(payload: Buffer, node: Node): number {
    ATTR.put(payload, ATTR_OUT.size, this.attributes(node))
    const attrValid = this.validity(node)
    ATTR_OUT.put(payload, 0, { attrValid, attrValidNsec: 0, padding: 0 })
    return ATTR_OUT.size + ATTR.size
  }

  /** How many seconds the attributes hold that were just made. Control files are made at each opening. */
  private validity(node: Node): number {
    if (node.kind === 'control') return 0
    const file = this.writable(node)
    if (!file) return VALID_SECONDS
    return this.allocated.isCurrent(file.disk) ? WRITTEN_VALID_SECONDS : 0
  }

  private attributes(node: Node) {
    const { uid, gid, fileMode, diskMode, dirMode, modified } = this.parts.tree.appearance
    const isDir = node.kind === 'dir'
    const isDisk = node.kind === 'image' && node.entry.kind === 'disk'
    const time = node.kind === 'image' ? this.modified(node) : modified
    return {
      ino: node.id,
      size: node.kind === 'image' ? this.sizeOf(node) : 0,
      blocks: node.kind === 'image' ? Math.ceil(this.allocated.of(node) / 512) : 0,
      atime: time.seconds,
      mtime: time.seconds,
      ctime: time.seconds,
      atimensec: time.nanoseconds,
      mtimensec: time.nanoseconds,
      ctimensec: time.nanoseconds,
      mode: isDir ? S_IFDIR | dirMode : S_IFREG | (isDisk ? diskMode : fileMode),
      nlink: isDir ? 2 : 1,
      uid,
      gid,
      rdev: 0,
      blksize: BLOCK_BYTES,
      flags: 0,
    }
  }

  private modified(node: ImageNode): Timestamp {
    const milliseconds = writtenDisk(this.parts.images, node)?.modified ?? 0
    if (milliseconds === 0) return node.entry.modified
    const seconds = Math.floor(milliseconds / 1000)
    return { seconds, nanoseconds: (milliseconds - seconds * 1000) * 1_000_000 }
  }

  private extendedAttributes(node: Node): Map<string, string> {
    if (node.kind !== 'image') return new Map()
    const { kind, attributes } = node.entry
    const size = String(this.sizeOf(node))
    return new Map(Object.entries({ kind, 'virtual-size': size, ...attributes }))
  }
}

/** The answer of GETXATTR and LISTXATTR: a size when none was offered, else the bytes. */
function putSized(payload: Buffer, offered: number, value: Buffer): number {
  if (offered === 0) {
    GETXATTR_OUT.put(payload, 0, { size: value.length, padding: 0 })
    return GETXATTR_OUT.size
  }
  if (value.length > offered) return -ERANGE
  return value.copy(payload)
}

/** The string at `at`, up to its NUL or the message's end. */
function stringAt({ message, end }: Request, at: number): string {
  const nul = message.indexOf(0, at)
  return message.toString('utf8', at, nul < 0 || nul > end ? end : nul)
}

function prefixed<P extends string, T extends Record<string, number>>(prefix: P, values: T) {
  return Object.fromEntries(
    Object.entries(values).map(([name, value]) => [prefix + name, value]),
  ) as { [K in keyof T & string as `${P}${K}`]: number }
}
