/**
 * The operations of fuse-native, by path, on the nodes that all transports share. They run on the main thread, one after
 * the other, and each is answered exactly once, whatever happens in it.
 */
import fs from 'node:fs'
import { constants } from 'node:os'
import { errnoOf } from '../../errors.js'
import type { AttributeChange } from '../writing/disk-file.js'
import type { Gate } from '../workers/gate.js'
import { BLOCK_BYTES, type FileSystemParts, NodeOperations } from '../nodes/node-operations.js'
import { OPCODE } from '../protocol/protocol.js'
import type { WorkerStats } from '../status/stats.js'
import type { ChangeTree, TreeChange } from '../workers/errands.js'
import type { ControlNode, Node } from '../nodes/tree.js'
import type { Done, FuseOperations, FuseStat } from './package.js'

const { ENODEV, ENOENT, ENOTDIR, ESTALE } = constants.errno
const { O_APPEND, O_TRUNC } = fs.constants

/** Opcodes of the kernel's protocol, for the statistics. */
const { READ, WRITE, RELEASE, FSYNC } = OPCODE
const GETATTR = 3
const SETATTR = 4
const OPEN = 14
const STATFS = 17
const FLUSH = 25
const READDIR = 28
const ACCESS = 34
const CHANGES = { create: 35, mknod: 8, mkdir: 9, unlink: 10, rmdir: 11, rename: 12, link: 13 }
const SYMLINK = 6

/** The time between looks whether a handle has been released. */
const LOOK_MS = 2
const MAX_UINT32 = 2 ** 32 - 1
/** The value for an id that chown(2) does not change. */
const UNCHANGED = MAX_UINT32
const SPACE = 0x20
const NEWLINE = 0x0a
/** The size of stats.json, whose numbers grow; and what the text of a failure may add to status.json. */
const STATS_BYTES = 4096
const FAILURE_BYTES = 3072

export interface LibfuseFsOptions {
  /** Present if others may write the image meanwhile: calls `act` when their snapshots are shown as they are now. */
  readonly whenFresh?: (act: () => void) => void
  readonly stats: WorkerStats
  /** Called with everything that is thrown, and the opcode. */
  readonly onError: (error: unknown, opcode: number) => void
  readonly gate?: Pick<Gate, 'holdsChanges'>
  /**
   * Called when a handle has truncated the file at this place of the catalog. Its writes may have to drop cached pages, so the
   * handle is answered when the promise resolves.
   */
  readonly onTruncated?: (place: number) => Promise<void>
  /** Present where programs change snapshots by changing the folder. */
  readonly changeTree?: ChangeTree | undefined
}

export class LibfuseFs {
  private nodes: NodeOperations
  private paths: Map<string, Node>
  private readonly statusBytes: number
  private hasEnded = false
  /** Handles with O_APPEND. */
  private readonly appending = new Set<number>()
  /** The mtime of control files. It always changes, so that libfuse does not show the cached pages of an old text. */
  private controlTime = 0

  constructor(
    private parts: FileSystemParts,
    private readonly options: LibfuseFsOptions,
  ) {
    this.nodes = new NodeOperations(parts)
    this.paths = parts.tree.paths()
    this.statusBytes = Buffer.byteLength(parts.controlText.status()) + FAILURE_BYTES
  }

  /** Serves the files of a new world from now on. */
  serve(parts: FileSystemParts): void {
    this.parts = parts
    this.nodes = new NodeOperations(parts)
    this.paths = parts.tree.paths()
  }

  /** Ends serving: from now on all operations answer that the mount has gone. */
  end(): void {
    this.hasEnded = true
  }

  operations(): FuseOperations {
    return {
      getattr: (path, done) => this.whenFresh(() => this.statWhenClosed(path, done)),
      fgetattr: (path, fh, done) => this.stat(path, fh, done),
      readdir: (path, done) => this.whenFresh(() => this.list(path, done)),
      statfs: (path, done) => {
        const result = this.answer(STATFS, path, () => 0)
        done(result, this.statfs())
      },
      access: (path, mask, done) =>
        done(this.answer(ACCESS, path, node => this.nodes.access(node, mask))),
      open: (path, flags, done) => {
        const fh = this.answer(OPEN, path, node => this.open(node, flags))
        if (fh > 0 && flags & O_APPEND) this.appending.add(fh)
        const answer = () => done(Math.min(0, fh), Math.max(0, fh))
        if (fh > 0 && flags & O_TRUNC) this.afterTruncation(path, answer)
        else answer()
      },
      read: (path, fh, target, length, offset, done) =>
        done(
          this.gone(this.answer(READ, path, node => this.read(node, fh, target, length, offset))),
        ),
      write: (path, handle, source, length, offset, done) => {
        const writer = { handle, isAppending: this.appending.has(handle) }
        this.whenOpen(() =>
          done(
            this.answer(WRITE, path, node =>
              this.nodes.write(node, source, 0, length, offset, writer),
            ),
          ),
        )
      },
      // The file may have gone before its last descriptor.
      flush: (path, fh, done) => {
        const result = this.answer(FLUSH, path, node => this.nodes.close(node, fh))
        done(result === -ENOENT ? 0 : result)
      },
      release: (path, fh, done) => {
        this.appending.delete(fh)
        done(this.answer(RELEASE, path, node => this.release(node, fh)))
      },
      fsync: (path, _dataOnly, _fh, done) =>
        done(this.answer(FSYNC, path, node => this.nodes.flush(node))),
      truncate: (path, sizeBytes, done) => this.change(path, { sizeBytes }, done),
      ftruncate: (path, handle, sizeBytes, done) => this.change(path, { sizeBytes, handle }, done),
      // Ignore times: they are always those of the last write.
      utimens: (path, _atime, _mtime, done) => this.change(path, {}, done),
      chmod: (path, mode, done) => this.change(path, { mode }, done),
      chown: (path, uid, gid, done) =>
        this.change(
          path,
          { ...(uid !== UNCHANGED && { uid }), ...(gid !== UNCHANGED && { gid }) },
          done,
        ),
      create: (path, _mode, done) =>
        this.changeTree(CHANGES.create, { kind: 'create', name: path.slice(1) }, result => {
          const fh = result === 0 ? this.answer(OPEN, path, node => this.open(node, 0)) : result
          done(Math.min(0, fh), Math.max(0, fh))
        }),
      mknod: (path, _mode, _device, done) =>
        this.changeTree(CHANGES.mknod, { kind: 'create', name: path.slice(1) }, done),
      mkdir: (_path, _mode, done) => this.refuse(CHANGES.mkdir, done),
      unlink: (path, done) =>
        this.changeTree(CHANGES.unlink, { kind: 'remove', name: path.slice(1) }, done),
      rmdir: (_path, done) => this.refuse(CHANGES.rmdir, done),
      rename: (from, to, done) => {
        const change = { kind: 'rename', name: from.slice(1), to: to.slice(1) } as const
        this.changeTree(CHANGES.rename, change, done)
      },
      link: (_from, _to, done) => this.refuse(CHANGES.link, done),
      symlink: (_target, _path, done) => this.refuse(SYMLINK, done),
    }
  }

  private open(node: Node, flags: number): number {
    const fh = this.nodes.open(node, flags)
    if (fh < 0 || node.kind !== 'image') return fh
    this.parts.opens?.opened(node.id)
    // The path may be that of another snapshot when this one is read.
    return this.options.whenFresh ? node.id : fh
  }

  /** An open file without a path has gone with a snapshot. */
  private gone(result: number): number {
    return this.options.whenFresh && result === -ENOENT ? -ESTALE : result
  }

  private whenFresh(act: () => void): void {
    const { whenFresh } = this.options
    if (whenFresh) whenFresh(act)
    else act()
  }

  private release(node: Node, fh: number): number {
    if (node.kind === 'image') this.parts.opens?.released(node.id)
    return this.nodes.release(node, fh)
  }

  /** Returns what `act` returns for the node at `path`, or an errno. Never throws. */
  private answer(opcode: number, path: string, act: (node: Node) => number): number {
    const { stats, onError } = this.options
    if (this.hasEnded) return -ENODEV
    const started = stats.start()
    let result: number
    try {
      const node = this.paths.get(path)
      result = node === undefined ? -ENOENT : act(node)
    } catch (error) {
      onError(error, opcode)
      result = -errnoOf(error)
    }
    stats.count(opcode, Math.min(0, result), Math.max(0, result), started)
    return result
  }

  private change(path: string, change: AttributeChange, done: Done): void {
    // The package does not say which user asks. The kernel admits only the mounting user, or checks modes itself.
    const asker = process.geteuid?.() ?? 0
    this.whenOpen(() => {
      const set = (node: Node) => this.nodes.setattr(node, { asker, ...change })
      const result = this.answer(SETATTR, path, set)
      if (result === 0 && change.sizeBytes === 0) this.afterTruncation(path, () => done(result))
      else done(result)
    })
  }

  private afterTruncation(path: string, act: () => void): void {
    const node = this.paths.get(path)
    const { onTruncated } = this.options
    if (onTruncated && node?.kind === 'image') void onTruncated(node.place).then(act)
    else act()
  }

  /** Runs `act` when requests that change the disk do not have to wait. */
  private whenOpen(act: () => void): void {
    if (this.options.gate?.holdsChanges) setTimeout(() => this.whenOpen(act), LOOK_MS)
    else act()
  }

  /**
   * The package does not say which user asks. The kernel admits only the mounting user, or checks the folder's mode itself, which
   * lets only its owner and root change it.
   */
  private changeTree(opcode: number, change: TreeChange, done: (result: number) => void): void {
    const { changeTree } = this.options
    if (!changeTree) this.refuse(opcode, done)
    else void changeTree(change).then(errno => done(this.answer(opcode, '/', () => -errno)))
  }

  private refuse(opcode: number, done: Done): void {
    done(this.answer(opcode, '/', () => this.nodes.refuseChange()))
  }

  private list(path: string, done: Parameters<FuseOperations['readdir']>[1]): void {
    const names: string[] = []
    const stats: Partial<FuseStat>[] = []
    const result = this.answer(READDIR, path, dir => {
      if (dir.kind !== 'dir') return -ENOTDIR
      for (let index = 0; index < 2 + dir.children.length; index++) {
        const { node, name } = this.nodes.listed(dir, index)
        names.push(name)
        // A listing uses only the number and the kind of these.
        stats.push({ ino: node.id, mode: this.nodes.modeOf(node), atime: 0, mtime: 0, ctime: 0 })
      }
      return 0
    })
    done(result, names, stats)
  }

  /** Answers later if a handle is being closed: its release may arrive here after a request that came later. */
  private statWhenClosed(path: string, done: Parameters<FuseOperations['getattr']>[1]): void {
    if (this.nodes.isClosing) setTimeout(() => this.statWhenClosed(path, done), LOOK_MS)
    else this.stat(path, undefined, done)
  }

  private stat(
    path: string,
    fh: number | undefined,
    done: Parameters<FuseOperations['getattr']>[1],
  ): void {
    let stat: FuseStat | undefined
    const result = this.answer(GETATTR, path, node => {
      stat = this.statOf(node, fh)
      return 0
    })
    done(result, stat)
  }

  private statOf(node: Node, fh: number | undefined): FuseStat {
    const a = this.nodes.attributes(node, fh)
    // Negative times would wrap around.
    const time = Math.max(0, Math.floor(a.mtime * 1000 + a.mtimensec / 1_000_000))
    const isControl = node.kind === 'control'
    if (isControl) this.controlTime = Math.max(Date.now(), this.controlTime + 1)
    const modified = isControl ? this.controlTime : time
    const size = isControl ? this.controlBytes(node) : a.size
    return { ...a, size, atime: modified, mtime: modified, ctime: modified }
  }

  /** Chooses blocks so large that their number fits in 32 bits. */
  private statfs() {
    const { bytes, freeBytes } = this.nodes.diskSpace()
    let bsize = BLOCK_BYTES
    while (bytes / bsize > MAX_UINT32) bsize *= 2
    const blocks = Math.ceil(bytes / bsize)
    const bfree = Math.floor(freeBytes / bsize)
    const files = this.parts.tree.fileCount
    return { bsize, frsize: bsize, blocks, bfree, bavail: bfree, files, namemax: 255 }
  }

  private read(node: Node, fh: number, target: Buffer, size: number, offset: number): number {
    if (node.kind !== 'control') {
      if (this.options.whenFresh && fh !== node.id) return -ESTALE
      return this.nodes.read(node, fh, target, size, offset)
    }
    // Without FOPEN.DIRECT_IO the kernel does not read a file with size 0, so the text is padded to a constant size.
    const end = this.controlBytes(node)
    const length = Math.max(0, Math.min(size, end - offset))
    target.fill(SPACE, 0, length)
    this.nodes.read(node, fh, target, length, offset)
    if (length > 0 && offset + length === end) target[length - 1] = NEWLINE
    return length
  }

  private controlBytes(node: ControlNode): number {
    return node.file === 'stats.json' ? STATS_BYTES : this.statusBytes
  }
}
