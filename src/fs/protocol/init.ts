/** FUSE_INIT: chooses from the features that the kernel offers (linux/fuse.h, "Version negotiation"). */
import { ProtocolError } from '../../errors.js'
import {
  IN_HEADER,
  INIT_FLAG,
  INIT_FLAG2,
  INIT_IN,
  INIT_IN_EXT,
  INIT_OUT,
  KERNEL_VERSION,
  MAX_REQUEST_BYTES,
  MINOR_VERSION,
  OLDEST_MINOR_VERSION,
  OUT_HEADER,
  WRITEBACK_CACHE,
} from './protocol.js'

/**
 * The flags to ask for. No other process changes the data while they are served, so the kernel may cache them and send
 * requests in parallel. Two flags are left out:
 *  WRITEBACK_CACHE, because a write that has returned must be in the server; only -o writeback asks for it;
 *  EXPLICIT_INVAL_DATA, because the size that the disk shows may shrink while a handle that truncated it is open. The
 *  kernel then zeroes the end of a page, and has to drop that page.
 */
const WANTED_FLAGS = Object.values(INIT_FLAG).reduce((all, flag) => all | flag, 0)

/**
 * How deep file systems may be stacked below the files that are passed through: those of overlayfs are not. With more than 1, no
 * overlay could be put over the mount.
 */
const STACK_DEPTH = 1

/** The largest number of background requests in flight, such as readahead. The kernel's default is 12. */
const MAX_BACKGROUND = 64

export interface InitAnswer {
  readonly reply: Buffer
  /** False if the kernel must ask again, with our major version. */
  readonly isFinal: boolean
  /** The minor version that both speak. */
  readonly minor: number
  /** INIT_FLAG bits that both know. */
  readonly flags: number
  /** Whether files may be passed through. */
  readonly hasPassthrough: boolean
  /** Whether the kernel keeps what is written, and sends it later. */
  readonly hasWriteback: boolean
}

export interface WantedFeatures {
  /** Whether some file may be passed through. The kernel allows it only without `writeback`. */
  readonly passthrough?: boolean
  readonly writeback?: boolean
}

/**
 * Returns the answer to the INIT request `message`. Throws ProtocolError for a kernel that is too old.
 */
export function answerInit(
  message: Buffer,
  { passthrough = false, writeback = false }: WantedFeatures = {},
): InitAnswer {
  const header = IN_HEADER.decode(message)
  const offered = INIT_IN.decode(message, IN_HEADER.size)
  if (
    offered.major < KERNEL_VERSION ||
    (offered.major === KERNEL_VERSION && offered.minor < OLDEST_MINOR_VERSION)
  ) {
    throw new ProtocolError(
      `this kernel speaks FUSE ${offered.major}.${offered.minor}; ${KERNEL_VERSION}.${OLDEST_MINOR_VERSION} (Linux 4.18) is needed, or --transport libfuse with the package fuse-native`,
    )
  }
  const isFinal = offered.major === KERNEL_VERSION
  const minor = Math.min(offered.minor, MINOR_VERSION)
  // JavaScript's bit operations are signed; `>>> 0` makes the 32 bits unsigned.
  const wanted = WANTED_FLAGS | (writeback ? WRITEBACK_CACHE : 0)
  const flags = (offered.flags & wanted) >>> 0
  const isExtended =
    (flags & INIT_FLAG.INIT_EXT) !== 0 &&
    message.length >= IN_HEADER.size + INIT_IN.size + INIT_IN_EXT.size
  const offered2 = isExtended
    ? INIT_IN_EXT.decode(message, IN_HEADER.size + INIT_IN.size).flags2
    : 0
  const flags2 =
    offered2 & (INIT_FLAG2.DIRECT_IO_ALLOW_MMAP | (passthrough ? INIT_FLAG2.PASSTHROUGH : 0))
  const hasPassthrough = (flags2 & INIT_FLAG2.PASSTHROUGH) !== 0
  const hasWriteback = (flags & WRITEBACK_CACHE) !== 0
  const out = INIT_OUT.encode({
    major: KERNEL_VERSION,
    minor: isFinal ? minor : MINOR_VERSION,
    maxReadahead: Math.max(offered.maxReadahead, MAX_REQUEST_BYTES),
    flags: isFinal ? flags : 0,
    maxBackground: MAX_BACKGROUND,
    congestionThreshold: MAX_BACKGROUND * 0.75,
    maxWrite: MAX_REQUEST_BYTES,
    timeGranularity: 1,
    maxPages: flags & INIT_FLAG.MAX_PAGES ? MAX_REQUEST_BYTES / 4096 : 0,
    mapAlignment: 0,
    flags2,
    maxStackDepth: hasPassthrough ? STACK_DEPTH : 0,
    unused: Buffer.alloc(24),
  })
  const length = OUT_HEADER.size + out.length
  const head = OUT_HEADER.encode({ length, error: 0, unique: header.unique })
  return { reply: Buffer.concat([head, out]), isFinal, minor, flags, hasPassthrough, hasWriteback }
}
