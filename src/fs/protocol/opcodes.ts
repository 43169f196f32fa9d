/**
 * The table of opcodes, one row each, and `answer`, which turns a message's bytes into its reply's bytes. It uses no
 * descriptor, so the worker and the tests call the same function.
 */
import { constants } from 'node:os'
import { u64le } from '../../binary.js'
import { errnoOf } from '../../errors.js'
import type { ImageFs } from './image-fs.js'
import {
  ACCESS_IN,
  FALLOCATE_IN,
  FLUSH_IN,
  GETXATTR_IN,
  IN_HEADER,
  LSEEK_IN,
  OPEN_IN,
  OUT_HEADER,
  READ_IN,
  RELEASE_IN,
  REPLY_BYTES,
  SETATTR_IN,
  STATX_IN,
  WRITE_IN,
} from './protocol.js'
import type { Request } from './request.js'

const { EACCES, EINVAL, ENOSYS, ENOTTY } = constants.errno

interface Opcode {
  readonly opcode: number
  readonly name: string
  /** The least bytes of arguments; a shorter message gets EINVAL. */
  readonly argumentBytes: number
  /** Undefined if the kernel expects no reply. */
  readonly run: ((fs: ImageFs, request: Request) => number) | undefined
  /** Whether it needs an open file: under allow_root such requests are served for all users, as libfuse does. */
  readonly openToAll: boolean
}

const row = (
  opcode: number,
  name: string,
  argumentBytes: number,
  run: Opcode['run'],
  { openToAll = false } = {},
): Opcode => ({ opcode, name, argumentBytes, run, openToAll })

const done = () => 0
const notTyped = () => -ENOTTY
const unknown = () => -ENOSYS
const refuse = (fs: ImageFs) => fs.refuseChange()
const ONCE_OPEN = { openToAll: true }

const ROWS: readonly Opcode[] = [
  row(1, 'LOOKUP', 1, (fs, r) => fs.lookup(r)),
  row(2, 'FORGET', 0, undefined),
  row(3, 'GETATTR', 0, (fs, r) => fs.getattr(r)),
  row(4, 'SETATTR', SETATTR_IN.size, (fs, r) => fs.setattr(r)),
  row(5, 'READLINK', 0, () => -EINVAL),
  row(6, 'SYMLINK', 0, refuse),
  row(8, 'MKNOD', 0, refuse),
  row(9, 'MKDIR', 0, refuse),
  row(10, 'UNLINK', 0, refuse),
  row(11, 'RMDIR', 0, refuse),
  row(12, 'RENAME', 0, refuse),
  row(13, 'LINK', 0, refuse),
  row(14, 'OPEN', OPEN_IN.size, (fs, r) => fs.open(r)),
  row(15, 'READ', READ_IN.size, (fs, r) => fs.read(r), ONCE_OPEN),
  row(16, 'WRITE', WRITE_IN.size, (fs, r) => fs.write(r), ONCE_OPEN),
  row(17, 'STATFS', 0, (fs, r) => fs.statfs(r)),
  row(18, 'RELEASE', RELEASE_IN.size, (fs, r) => fs.release(r), ONCE_OPEN),
  row(20, 'FSYNC', 0, (fs, r) => fs.fsync(r), ONCE_OPEN),
  row(21, 'SETXATTR', 0, (fs, r) => fs.refuseAttribute(r)),
  row(22, 'GETXATTR', GETXATTR_IN.size, (fs, r) => fs.getxattr(r)),
  row(23, 'LISTXATTR', GETXATTR_IN.size, (fs, r) => fs.listxattr(r)),
  row(24, 'REMOVEXATTR', 0, (fs, r) => fs.refuseAttribute(r)),
  row(25, 'FLUSH', FLUSH_IN.size, (fs, r) => fs.close(r), ONCE_OPEN),
  // The main thread answers INIT before the workers start. A second one is an error of the kernel.
  row(26, 'INIT', 0, () => -EINVAL, ONCE_OPEN),
  row(27, 'OPENDIR', OPEN_IN.size, (fs, r) => fs.opendir(r)),
  row(28, 'READDIR', READ_IN.size, (fs, r) => fs.readdir(r), ONCE_OPEN),
  row(29, 'RELEASEDIR', RELEASE_IN.size, done, ONCE_OPEN),
  row(30, 'FSYNCDIR', 0, done, ONCE_OPEN),
  row(34, 'ACCESS', ACCESS_IN.size, (fs, r) => fs.access(r)),
  row(35, 'CREATE', 0, refuse),
  // A request must not be answered twice, so an interrupted one is simply finished.
  row(36, 'INTERRUPT', 0, undefined, ONCE_OPEN),
  row(37, 'BMAP', 0, unknown),
  row(38, 'DESTROY', 0, done, ONCE_OPEN),
  row(39, 'IOCTL', 0, notTyped),
  row(40, 'POLL', 0, unknown),
  row(42, 'BATCH_FORGET', 0, undefined),
  row(43, 'FALLOCATE', FALLOCATE_IN.size, (fs, r) => fs.fallocate(r), ONCE_OPEN),
  row(44, 'READDIRPLUS', READ_IN.size, (fs, r) => fs.readdirplus(r), ONCE_OPEN),
  row(45, 'RENAME2', 0, refuse),
  row(46, 'LSEEK', LSEEK_IN.size, (fs, r) => fs.lseek(r)),
  row(47, 'COPY_FILE_RANGE', 0, fs => fs.copyFileRange()),
  row(51, 'TMPFILE', 0, refuse),
  row(52, 'STATX', STATX_IN.size, (fs, r) => fs.statx(r)),
]
/** The rows by opcode, for a fast lookup. */
export const OPCODES: readonly (Opcode | undefined)[] = ROWS.reduce<(Opcode | undefined)[]>(
  (table, entry) => {
    table[entry.opcode] = entry
    return table
  },
  [],
)

export const opcodeName = (opcode: number): string => OPCODES[opcode]?.name ?? `opcode ${opcode}`

/** Answers requests with a worker's buffers. */
export class Responder {
  private readonly request: Request

  /**
   * @param onError called with everything that is thrown, and the opcode
   * @param reply receives the replies; `answer` returns how many bytes of it count
   */
  constructor(
    private fs: ImageFs,
    private readonly onError: (error: unknown, opcode: number) => void,
    readonly reply: Buffer = Buffer.allocUnsafeSlow(REPLY_BYTES),
  ) {
    this.request = {
      nodeid: 0,
      uid: 0,
      pid: 0,
      message: Buffer.alloc(0),
      args: IN_HEADER.size,
      end: 0,
      payload: reply.subarray(OUT_HEADER.size),
    }
  }

  /** Answers by another file system from now on: that of a new world. */
  serve(fs: ImageFs): void {
    this.fs = fs
  }

  /**
   * Answers the first `length` bytes of `message`. Returns the length of the reply in bytes; 0 if the kernel expects none.
   * Never throws: every failure becomes an errno.
   * @param outcome what has become of a change of the tree: 0 or an errno
   */
  answer(message: Buffer, length: number, outcome?: number): number {
    if (length < IN_HEADER.size) return 0
    const opcode = message.readUInt32LE(IN_HEADER.at.opcode)
    const entry = OPCODES[opcode]
    if (entry !== undefined && entry.run === undefined) return 0
    let result: number
    try {
      result = this.run(entry, message, length, outcome)
    } catch (error) {
      this.onError(error, opcode)
      result = -errnoOf(error)
    }
    return this.finish(message, result)
  }

  private finish(message: Buffer, result: number): number {
    const bytes = OUT_HEADER.size + Math.max(0, result)
    this.reply.writeUInt32LE(bytes, OUT_HEADER.at.length)
    this.reply.writeInt32LE(Math.min(0, result), OUT_HEADER.at.error)
    message.copy(this.reply, OUT_HEADER.at.unique, IN_HEADER.at.unique, IN_HEADER.at.unique + 8)
    return bytes
  }

  /** Answers a request with an errno, which is above 0. */
  refuse(message: Buffer, errno: number): number {
    return this.finish(message, -errno)
  }

  private run(
    entry: Opcode | undefined,
    message: Buffer,
    length: number,
    outcome: number | undefined,
  ): number {
    if (entry?.run === undefined) return -ENOSYS
    if (length < IN_HEADER.size + entry.argumentBytes) return -EINVAL
    const uid = message.readUInt32LE(IN_HEADER.at.uid)
    if (!entry.openToAll && !this.fs.admits(uid)) return -EACCES
    const { request } = this
    request.nodeid = u64le.get(message, IN_HEADER.at.nodeid)
    request.uid = uid
    request.pid = message.readUInt32LE(IN_HEADER.at.pid)
    request.message = message
    request.end = length
    if (outcome !== undefined) return outcome === 0 ? this.fs.changedTree(request) : -outcome
    return entry.run(this.fs, request)
  }
}

/** Returns the reply to `message`; undefined if the kernel expects none. */
export function answer(fs: ImageFs, message: Buffer): Buffer | undefined {
  const responder = new Responder(fs, () => {})
  const length = responder.answer(message, message.length)
  return length === 0 ? undefined : responder.reply.subarray(0, length)
}
