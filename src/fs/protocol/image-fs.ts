/**
 * The operations of the kernel's protocol, one for each opcode. They read their arguments from a request, write the payload
 * of its reply, and return the payload's length in bytes, or a negative errno.
 */
import fs from 'node:fs'
import { constants } from 'node:os'
import { placeOf } from '../writing/disk-files.js'
import { READING } from '../nodes/file-reader.js'
import { BLOCK_BYTES, type FileSystemParts, NodeOperations } from '../nodes/node-operations.js'
import { countReleased, Openings } from '../nodes/opening.js'
import type { KernelSession } from '../nodes/passthrough.js'
import {
  ACCESS_IN,
  ATTR,
  ATTR_OUT,
  DIRENT,
  ENTRY_OUT,
  FALLOCATE_IN,
  FATTR,
  FLUSH_IN,
  FOPEN,
  GETXATTR_IN,
  IN_HEADER,
  LSEEK_IN,
  LSEEK_OUT,
  MAX_REQUEST_BYTES,
  OPCODE,
  OPEN_IN,
  OPEN_OUT,
  READ_IN,
  RELEASE_IN,
  ROOT_ID,
  SETATTR_IN,
  STATFS_OUT,
  STATX_OUT,
  WRITE_CACHE,
  WRITE_IN,
  WRITE_OUT,
} from './protocol.js'
import { askingHandle, putSized, type Request, stringAt } from './request.js'
import type { Node, Tree } from '../nodes/tree.js'
import type { FilePlace } from '../writing/truncations.js'

const { EINVAL, ENODATA, ENOENT, ENOTDIR, EOPNOTSUPP, ESTALE } = constants.errno
const { O_APPEND, O_RDONLY } = fs.constants

const DT_DIR = 4
const DT_REG = 8
const STATX_BASIC_STATS = 0x7ff
const STATX_BTIME = 0x800
/** The bytes of arguments of CREATE and MKNOD before the name. */
const CREATE_BYTES = 16
const XATTR_PREFIX = 'user.vimgfs.'

export class ImageFs {
  private readonly tree: Tree
  private readonly nodes: NodeOperations
  private readonly openings: Openings

  constructor(private readonly parts: FileSystemParts) {
    this.tree = parts.tree
    this.nodes = new NodeOperations(parts)
    this.openings = new Openings(parts, this.nodes)
  }

  /** Sets what was agreed with the kernel: the minor version of the protocol, and whether files may be passed through. */
  speak(minor: number, session?: KernelSession): void {
    this.openings.speak(minor)
    if (session) this.parts.passthrough?.connect(session)
  }

  /** Returns where the file of a node lies on its disk, if it can be written. */
  placeOf(nodeid: number): FilePlace | undefined {
    const node = this.tree.node(nodeid)
    return node?.kind === 'image' && this.nodes.isWritable(node)
      ? placeOf(node, this.tree)
      : undefined
  }

  /** Whether those who open the file have to wait until it is laid out. */
  awaitsLayout(nodeid: number): boolean {
    const node = this.tree.node(nodeid)
    return node?.kind === 'image' && this.parts.passthrough?.awaitsLayout(node) === true
  }

  /** Reports whether the user `uid` may use the mount at all. */
  admits(uid: number): boolean {
    const { onlyUids } = this.parts
    return onlyUids === undefined || onlyUids.includes(uid)
  }

  lookup(request: Request): number {
    const name = stringAt(request, request.args)
    const from = this.tree.node(request.nodeid)
    // NFS servers look up "." with a number from a handle, also for files.
    if (!from) return name === '.' || name === '..' ? -ESTALE : -ENOENT
    let node: Node | undefined = from
    if (name === '..') node = this.tree.node(from.parent)
    else if (name !== '.') {
      if (from.kind !== 'dir') return -ENOTDIR
      node = this.tree.child(from.id, name)
    }
    if (!node) return -ENOENT
    this.putEntry(request, 0, node)
    return ENTRY_OUT.size + ATTR.size
  }

  getattr(request: Request): number {
    const node = this.tree.node(request.nodeid)
    if (!node) return -ESTALE
    return this.putAttrOut(request, node, askingHandle(request))
  }

  setattr(request: Request): number {
    const node = this.tree.node(request.nodeid)
    if (!node) return -ESTALE
    const { valid, ...asked } = SETATTR_IN.decode(request.message, request.args)
    const handle = valid & FATTR.FH ? asked.fh % 2 ** 32 : undefined
    // Ignore times: they are always those of the last write.
    const error = this.nodes.setattr(node, {
      asker: request.uid,
      ...(valid & FATTR.MODE && { mode: asked.mode }),
      ...(valid & FATTR.UID && { uid: asked.uid }),
      ...(valid & FATTR.GID && { gid: asked.gid }),
      ...(valid & FATTR.SIZE && { sizeBytes: asked.size, handle }),
    })
    if (error < 0) return error
    // After truncating to 0 answer with the disk's size: the kernel keeps it, and so knows where to append.
    const isEmptied = valid & FATTR.SIZE && asked.size === 0 && !this.parts.writeBack
    return this.putAttrOut(request, node, isEmptied ? READING : handle)
  }

  statx(request: Request): number {
    const node = this.tree.node(request.nodeid)
    if (!node) return -ESTALE
    const a = this.nodes.attributes(node, askingHandle(request), request.pid)
    const attrValid = this.nodes.validity(node)
    const isSnapshot = node.kind === 'image' && ['snapshot', 'vmstate'].includes(node.entry.kind)
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
    const node = this.tree.node(request.nodeid)
    if (!node) return -ESTALE
    const { flags } = OPEN_IN.decode(request.message, request.args)
    const fh = this.nodes.open(node, flags)
    if (fh < 0) return fh
    return this.openings.put(request.payload, node, flags, fh)
  }

  write(request: Request): number {
    const { message, args, end, payload } = request
    const { at } = WRITE_IN
    const size = message.readUInt32LE(args + at.size)
    const offset =
      message.readUInt32LE(args + at.offset) + message.readUInt32LE(args + at.offset + 4) * 2 ** 32
    const start = args + WRITE_IN.size
    if (size > end - start) return -EINVAL
    const node = this.tree.node(request.nodeid)
    if (!node) return -ESTALE
    // Written-back pages may come through any handle that maps the file, so they do not count as its own writes.
    const isOwn = (message.readUInt32LE(args + at.writeFlags) & WRITE_CACHE) === 0
    const isAppending = isOwn && (message.readUInt32LE(args + at.flags) & O_APPEND) !== 0
    const handle = isOwn ? message.readUInt32LE(args + at.fh) : READING
    const writer = { handle, isAppending }
    const length = this.nodes.write(node, message, start, size, offset, writer)
    if (!isOwn && length !== size && this.parts.writeBack) return this.nodes.kept.overrun(length)
    if (length < 0) return length
    payload.writeUInt32LE(length, WRITE_OUT.at.size)
    payload.writeUInt32LE(0, WRITE_OUT.at.padding)
    return WRITE_OUT.size
  }

  fallocate(request: Request): number {
    const { offset, length, mode, fh } = FALLOCATE_IN.decode(request.message, request.args)
    const node = this.tree.node(request.nodeid)
    if (!node) return -ESTALE
    return this.nodes.fallocate(node, mode, offset, length, fh % 2 ** 32)
  }

  fsync(request: Request): number {
    const node = this.tree.node(request.nodeid)
    return node ? this.nodes.flush(node) : -ESTALE
  }

  /** Serves FLUSH. */
  close(request: Request): number {
    const fh = request.message.readUInt32LE(request.args + FLUSH_IN.at.fh)
    return this.nodes.close(this.tree.node(request.nodeid), fh)
  }

  release(request: Request): number {
    const at = request.args + RELEASE_IN.at.fh
    const fh = request.message.readUInt32LE(at)
    countReleased(this.parts.opens, request.nodeid, request.message, at)
    const result = this.nodes.release(this.tree.node(request.nodeid), fh)
    this.nodes.kept.onRelease(request.nodeid)
    return result
  }

  opendir(request: Request): number {
    const node = this.tree.node(request.nodeid)
    if (node?.kind !== 'dir') return node ? -ENOTDIR : -ESTALE
    const openFlags = this.nodes.isSteady(node) ? FOPEN.KEEP_CACHE | FOPEN.CACHE_DIR : 0
    OPEN_OUT.put(request.payload, 0, { fh: 0, openFlags, backing: 0 })
    return OPEN_OUT.size
  }

  read(request: Request): number {
    const node = this.tree.node(request.nodeid)
    if (!node) return -ESTALE
    const { message, args, payload } = request
    const { at } = READ_IN
    const size = message.readUInt32LE(args + at.size)
    const offset =
      message.readUInt32LE(args + at.offset) + message.readUInt32LE(args + at.offset + 4) * 2 ** 32
    if (size > MAX_REQUEST_BYTES) return -EINVAL
    return this.nodes.read(node, message.readUInt32LE(args + at.fh), payload, size, offset)
  }

  lseek(request: Request): number {
    const node = this.tree.node(request.nodeid)
    if (!node) return -ESTALE
    const { offset, whence } = LSEEK_IN.decode(request.message, request.args)
    const found = this.nodes.lseek(node, offset, whence)
    if (found < 0) return found
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
    const { bytes, freeBytes } = this.nodes.diskSpace()
    const free = Math.floor(freeBytes / BLOCK_BYTES)
    STATFS_OUT.put(request.payload, 0, {
      blocks: Math.ceil(bytes / BLOCK_BYTES),
      bfree: free,
      bavail: free,
      files: this.tree.fileCount,
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
    const node = this.tree.node(request.nodeid)
    if (!node) return -ESTALE
    const { mask } = ACCESS_IN.decode(request.message, request.args)
    return this.nodes.access(node, mask)
  }

  getxattr(request: Request): number {
    const node = this.tree.node(request.nodeid)
    if (!node) return -ESTALE
    const { size } = GETXATTR_IN.decode(request.message, request.args)
    const name = stringAt(request, request.args + GETXATTR_IN.size)
    // ENODATA would say that the attribute can be set, and libvirt would try.
    if (name.startsWith('trusted.')) return -EOPNOTSUPP
    const key = name.startsWith(XATTR_PREFIX) ? name.slice(XATTR_PREFIX.length) : undefined
    const value = key === undefined ? undefined : this.nodes.extendedAttributes(node).get(key)
    return value === undefined ? -ENODATA : putSized(request.payload, size, Buffer.from(value))
  }

  listxattr(request: Request): number {
    const node = this.tree.node(request.nodeid)
    if (!node) return -ESTALE
    const { size } = GETXATTR_IN.decode(request.message, request.args)
    const names = [...this.nodes.extendedAttributes(node).keys()].map(
      key => `${XATTR_PREFIX}${key}\0`,
    )
    return putSized(request.payload, size, Buffer.from(names.join('')))
  }

  /** Answers a request that has changed the tree. */
  changedTree(request: Request): number {
    const opcode = request.message.readUInt32LE(IN_HEADER.at.opcode)
    if (opcode !== OPCODE.CREATE && opcode !== OPCODE.MKNOD) return 0
    const node = this.tree.child(ROOT_ID, stringAt(request, request.args + CREATE_BYTES))
    if (!node) return -ENOENT
    this.putEntry(request, 0, node)
    const bytes = ENTRY_OUT.size + ATTR.size
    if (opcode === OPCODE.MKNOD) return bytes
    // A snapshot is never written, however its file was opened.
    const fh = this.nodes.open(node, O_RDONLY)
    if (fh < 0) return fh
    this.parts.opens?.opened(node.id)
    OPEN_OUT.put(request.payload, bytes, { fh, openFlags: 0, backing: 0 })
    return bytes + OPEN_OUT.size
  }

  /** Refuses requests that would change something. */
  refuseChange(): number {
    return this.nodes.refuseChange()
  }

  refuseAttribute(request: Request): number {
    return this.nodes.refuseAttribute(this.tree.node(request.nodeid))
  }

  copyFileRange(): number {
    return this.nodes.copyFileRange()
  }

  private list(request: Request, plus: boolean): number {
    const dir = this.tree.node(request.nodeid)
    if (dir?.kind !== 'dir') return dir ? -ENOTDIR : -ESTALE
    const { offset, size } = READ_IN.decode(request.message, request.args)
    const room = Math.min(size, request.payload.length)
    const total = 2 + dir.children.length
    let used = 0
    for (let index = offset; index < total; index++) {
      const { node, name } = this.nodes.listed(dir, index)
      const nameBytes = Buffer.byteLength(name)
      const at = used + (plus ? ENTRY_OUT.size + ATTR.size : 0)
      const end = at + Math.ceil((DIRENT.size + nameBytes) / 8) * 8
      if (end > room) break
      if (plus) this.putListedEntry(request, used, node, index < 2)
      const type = node.kind === 'dir' ? DT_DIR : DT_REG
      DIRENT.put(request.payload, at, { ino: node.id, off: index + 1, namelen: nameBytes, type })
      request.payload.fill(0, at + DIRENT.size, end)
      request.payload.write(name, at + DIRENT.size)
      used = end
    }
    return used
  }

  /** Writes an entry of READDIRPLUS. An entry without an id gives no attributes of its node. */
  private putListedEntry(request: Request, at: number, node: Node, isDots: boolean): void {
    if (!isDots && this.nodes.isCounted(node)) this.putEntry(request, at, node)
    else request.payload.fill(0, at, at + ENTRY_OUT.size + ATTR.size)
  }

  /** Writes an entry. The attributes come first, because they decide how long they are valid. */
  private putEntry({ payload, pid }: Request, at: number, node: Node): void {
    ATTR.put(payload, at + ENTRY_OUT.size, this.nodes.attributes(node, undefined, pid))
    ENTRY_OUT.put(payload, at, {
      nodeid: node.id,
      generation: 0,
      entryValid: this.nodes.nameValidity,
      attrValid: this.nodes.validity(node),
      entryValidNsec: 0,
      attrValidNsec: 0,
    })
  }

  private putAttrOut({ payload, pid }: Request, node: Node, fh: number | undefined): number {
    ATTR.put(payload, ATTR_OUT.size, this.nodes.attributes(node, fh, pid))
    const attrValid = this.nodes.validity(node)
    ATTR_OUT.put(payload, 0, { attrValid, attrValidNsec: 0, padding: 0 })
    return ATTR_OUT.size + ATTR.size
  }
}

function prefixed<P extends string, T extends Record<string, number>>(prefix: P, values: T) {
  return Object.fromEntries(
    Object.entries(values).map(([name, value]) => [prefix + name, value]),
  ) as { [K in keyof T & string as `${P}${K}`]: number }
}
