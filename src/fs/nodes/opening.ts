/** How files are opened: the answer to OPEN, and the end of a handle. */
import fs from 'node:fs'
import { constants } from 'node:os'
import type { FileSystemParts, NodeOperations } from './node-operations.js'
import { type OpenCounts, READS, WRITES_PAST_CACHE, WRITES_TO_CACHE } from './open-counts.js'
import { openFlagsOf } from '../protocol/open-flags.js'
import { COHERENT_DIRECT_IO_MINOR, FOPEN, OPEN_OUT } from '../protocol/protocol.js'
import { FIRST_FILE_ID, type Node } from './tree.js'

const { O_RDWR, O_TRUNC, O_WRONLY } = fs.constants
const { EBUSY } = constants.errno

/** How long a handle that truncates waits for others to be closed that were closed by their programs just now. */
const RELEASE_MS = 250

export class Openings {
  private isDirectCoherent = false

  constructor(
    private readonly parts: FileSystemParts,
    private readonly nodes: NodeOperations,
  ) {}

  /** Sets the minor version of the protocol, as agreed with the kernel. */
  speak(minor: number): void {
    this.isDirectCoherent = minor >= COHERENT_DIRECT_IO_MINOR
  }

  /**
   * Puts the answer for a file that was opened as `handle` into `payload`. Returns its length, or an errno. The upper half of the
   * handle that the kernel gets says how it writes; the lower half is its number.
   * @param flags those of open(2)
   */
  put(payload: Buffer, node: Node, flags: number, handle: number): number {
    const { opens, passthrough, writeBack } = this.parts
    const isImage = node.kind === 'image'
    const passed = isImage && this.isDirectCoherent ? passthrough?.open(node, flags) : undefined
    let openFlags = passed?.openFlags ?? this.flagsFor(node, flags)
    let writing = writingBy(flags, openFlags, writeBack !== undefined)
    if (isImage) {
      opens?.opened(node.id, writing)
      if (writing !== READS && this.nodes.kept.mustPassCache(node)) {
        if (flags & O_TRUNC && opens?.isFreeOfWritersToCache(node.id, RELEASE_MS) === false) {
          opens.released(node.id, writing)
          this.nodes.kept.abandon(node, handle)
          return -EBUSY
        }
        opens?.released(node.id, writing)
        opens?.opened(node.id, WRITES_PAST_CACHE)
        openFlags |= FOPEN.DIRECT_IO
        writing = WRITES_PAST_CACHE
      }
    }
    const fh = handle + writing * 2 ** 32
    OPEN_OUT.put(payload, 0, { fh, openFlags, backing: passed?.backing ?? 0 })
    return OPEN_OUT.size
  }

  private flagsFor(node: Node, flags: number): number {
    const { opens, sharesBytes } = this.parts
    if (node.kind === 'control') return FOPEN.DIRECT_IO
    const isWritable = this.nodes.isWritable(node)
    return openFlagsOf(flags, {
      isWritable,
      isShared: isWritable && sharesBytes === true,
      isStale: opens?.hasStalePages === true || !this.nodes.isSteady(node),
      isDirectCoherent: this.isDirectCoherent,
      hasWriterPastCache: opens?.hasWriterPastCache(node.id) === true,
    })
  }
}

/** @param flags those of open(2) */
function writingBy(flags: number, openFlags: number, writesBack: boolean): number {
  if ((flags & (O_WRONLY | O_RDWR | O_TRUNC)) === 0) return READS
  if ((openFlags & FOPEN.DIRECT_IO) !== 0) return WRITES_PAST_CACHE
  return writesBack ? WRITES_TO_CACHE : READS
}

/** Counts that a handle is closed. `bytes` has it at `at`, as OPEN has answered. */
export function countReleased(
  opens: OpenCounts | undefined,
  nodeid: number,
  bytes: Buffer,
  at: number,
): void {
  if (nodeid >= FIRST_FILE_ID) opens?.released(nodeid, bytes.readUInt32LE(at + 4))
}
