/**
 * The file system's operations on the inode tree, each for one opcode. They read what they need from
 * a request, write the payload of its reply, and return the payload's length, or an errno, negative.
 */
import { constants } from 'node:os'
import { isExpected } from '../errors.js'
import type { View } from '../formats/driver.js'
import { readView } from '../formats/engine.js'
import { countAllocated, nextData, nextHole } from '../formats/holes.js'
import type { ImageSet } from '../formats/image-set.js'
import type { UnpackCrew } from '../formats/unpack-crew.js'
import { SEEK_DATA, SEEK_HOLE } from '../io/libc.js'
import type { TextSlots } from './control.js'
import {
  ACCESS_IN,
  ATTR,
  ATTR_OUT,
  DIRENT,
  ENTRY_OUT,
  FOPEN,
  GETXATTR_IN,
  GETXATTR_OUT,
  LSEEK_IN,
  LSEEK_OUT,
  MAX_REQUEST_BYTES,
  OPEN_IN,
  OPEN_OUT,
  READ_IN,
  ROOT_ID,
  STATFS_OUT,
  STATX_OUT,
} from './protocol.js'
import type { ControlNode, DirNode, ImageNode, Node, Tree } from './tree.js'

const { EACCES, EINVAL, EISDIR, ENODATA, ENOENT, ENOTDIR, ENXIO, ERANGE, EROFS } = constants.errno

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
  /** Allocated bytes by place in the catalog, -1 where nobody counted yet; shared by the workers. */
  readonly allocated: Float64Array
  readonly slots: TextSlots
  readonly controlText: { status: string; stats(): string }
  /** With allow_root the kernel lets all in, and everybody but these is turned away here. */
  readonly onlyUids?: readonly number[]
  /** Decompresses on two processors; its target is the payload of all requests. */
  readonly crew?: UnpackCrew
}

/** Nothing changes while it is mounted: the kernel may remember names and attributes for a year. */
const VALID_SECONDS = 365 * 86400
const BLOCK_BYTES = 4096
const ACCESS_MODE = 3
const O_TRUNC = 0o1000
const X_OK = 1
const W_OK = 2
const S_IFDIR = 0o040000
const S_IFREG = 0o100000
const DT_DIR = 4
const DT_REG = 8
const STATX_BASIC_STATS = 0x7ff
const STATX_BTIME = 0x800
const XATTR_PREFIX = 'user.vimgfs.'
/** A count of allocated bytes may take this long for the first files, less for each later one. */
const COUNTING_MS = 40

export class ImageFs {
  private readonly views = new Map<number, View>()
  private counted = 0

  constructor(private readonly parts: ImageFsParts) {}

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
    ATTR_OUT.put(request.payload, 0, { attrValid: validity(node), attrValidNsec: 0, padding: 0 })
    this.putAttr(request.payload, ATTR_OUT.size, node)
    return ATTR_OUT.size + ATTR.size
  }

  statx(request: Request): number {
    const node = this.parts.tree.node(request.nodeid)
    if (!node) return -ENOENT
    const a = this.attributes(node)
    const isSnapshot = node.kind === 'image' && node.entry.table !== undefined
    const time = { seconds: a.mtime, nanoseconds: a.mtimensec, reserved: 0 }
    STATX_OUT.put(request.payload, 0, {
      attrValid: validity(node),
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
    if ((flags & ACCESS_MODE) !== 0 || flags & O_TRUNC) return -EROFS
    const fh = node.kind === 'control' ? this.openControl(node) : 0
    // The image files cannot change while we serve them: their pages stay good for every opening.
    const openFlags = node.kind === 'control' ? FOPEN.DIRECT_IO : FOPEN.KEEP_CACHE
    OPEN_OUT.put(request.payload, 0, { fh, openFlags, padding: 0 })
    return OPEN_OUT.size
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
    const length = Math.max(0, Math.min(size, node.entry.sizeBytes - offset))
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
    if (offset >= node.entry.sizeBytes) return -ENXIO
    const view = this.view(node)
    const found = whence === SEEK_DATA ? nextData(view, offset) : nextHole(view, offset)
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
    const root = tree.node(ROOT_ID) as DirNode
    const disk = tree.node(root.children[0] as number)
    const bytes = disk?.kind === 'image' ? disk.entry.sizeBytes : 0
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
    if (mask & W_OK) return -EROFS
    // Folders are entered; no file here is a program.
    return mask & X_OK && node.kind !== 'dir' ? -EACCES : 0
  }

  getxattr(request: Request): number {
    const node = this.parts.tree.node(request.nodeid)
    if (!node) return -ENOENT
    const { size } = GETXATTR_IN.decode(request.message, request.args)
    const name = stringAt(request, request.args + GETXATTR_IN.size)
    const key = name.startsWith(XATTR_PREFIX) ? name.slice(XATTR_PREFIX.length) : undefined
    const value = key === undefined ? undefined : extendedAttributes(node).get(key)
    return value === undefined ? -ENODATA : putSized(request.payload, size, Buffer.from(value))
  }

  listxattr(request: Request): number {
    const node = this.parts.tree.node(request.nodeid)
    if (!node) return -ENOENT
    const { size } = GETXATTR_IN.decode(request.message, request.args)
    const names = [...extendedAttributes(node).keys()].map(key => `${XATTR_PREFIX}${key}\0`)
    return putSized(request.payload, size, Buffer.from(names.join('')))
  }

  /** For requests that would change something. */
  refuseChange(): number {
    return -EROFS
  }

  private readImage(node: ImageNode, payload: Buffer, length: number, offset: number): void {
    const { crew } = this.parts
    try {
      readView(this.view(node), payload, 0, length, offset, crew)
    } finally {
      // Also when the read failed: nobody may write to the payload any more.
      crew?.finish()
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
    if (node.file === 'status.json') return Buffer.from(this.parts.controlText.status)
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
    const isKnown = node.kind !== 'image' || this.allocatedOf(node, false) >= 0
    if (!isDots && isKnown) this.putEntry(payload, at, node)
    else payload.fill(0, at, at + ENTRY_OUT.size + ATTR.size)
  }

  private putEntry(payload: Buffer, at: number, node: Node): void {
    ENTRY_OUT.put(payload, at, {
      nodeid: node.id,
      generation: 0,
      entryValid: VALID_SECONDS,
      attrValid: validity(node),
      entryValidNsec: 0,
      attrValidNsec: 0,
    })
    this.putAttr(payload, at + ENTRY_OUT.size, node)
  }

  private putAttr(payload: Buffer, at: number, node: Node): void {
    ATTR.put(payload, at, this.attributes(node))
  }

  private attributes(node: Node) {
    const { uid, gid, fileMode, dirMode, modified } = this.parts.tree.appearance
    const isDir = node.kind === 'dir'
    const entry = node.kind === 'image' ? node.entry : undefined
    const time = entry ? entry.modified : modified
    const size = entry ? entry.sizeBytes : 0
    return {
      ino: node.id,
      size,
      blocks: node.kind === 'image' ? Math.ceil(this.allocatedOf(node, true) / 512) : 0,
      atime: time.seconds,
      mtime: time.seconds,
      ctime: time.seconds,
      atimensec: time.nanoseconds,
      mtimensec: time.nanoseconds,
      ctimensec: time.nanoseconds,
      mode: isDir ? S_IFDIR | dirMode : S_IFREG | fileMode,
      nlink: isDir ? 2 : 1,
      uid,
      gid,
      rdev: 0,
      blksize: BLOCK_BYTES,
      flags: 0,
    }
  }

  /** Allocated bytes of a file; -1 when nobody counted yet and `mayCount` is false. */
  private allocatedOf(node: ImageNode, mayCount: boolean): number {
    const { allocated } = this.parts
    const known = allocated[node.place] as number
    if (known >= 0 || !mayCount) return known
    const bytes = this.count(node, COUNTING_MS / (1 + this.counted++ / 8))
    allocated[node.place] = bytes
    return bytes
  }

  /** A file whose table is damaged has attributes all the same: reading it is what fails. */
  private count(node: ImageNode, milliseconds: number): number {
    const fileBytes = this.parts.images.allocatedBytes(node.entry.layer)
    try {
      return countAllocated(this.view(node), fileBytes, milliseconds)
    } catch (error) {
      if (isExpected(error)) return 0
      throw error
    }
  }
}

/** Control files are made anew whenever they are opened. */
const validity = (node: Node): number => (node.kind === 'control' ? 0 : VALID_SECONDS)

function extendedAttributes(node: Node): Map<string, string> {
  if (node.kind !== 'image') return new Map()
  const { kind, attributes, sizeBytes } = node.entry
  return new Map(Object.entries({ kind, 'virtual-size': String(sizeBytes), ...attributes }))
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
