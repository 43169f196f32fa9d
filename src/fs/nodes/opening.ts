/** How files are opened: the answer to OPEN, and the end of a handle. */
import fs from 'node:fs'
import type { FileSystemParts, NodeOperations } from './node-operations.js'
import type { OpenCounts } from './open-counts.js'
import { openFlagsOf } from '../protocol/open-flags.js'
import { COHERENT_DIRECT_IO_MINOR, FOPEN, OPEN_OUT } from '../protocol/protocol.js'
import { FIRST_FILE_ID, type Node } from './tree.js'

const { O_RDWR, O_TRUNC, O_WRONLY } = fs.constants

/** In the upper half of a handle: it writes past the page cache. The lower half is its number. */
const PAST_CACHE = 1

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
   * Puts the answer for a file that was opened as `handle` into `payload`. Returns its length.
   * @param flags those of open(2)
   */
  put(payload: Buffer, node: Node, flags: number, handle: number): number {
    const { opens, passthrough } = this.parts
    const isImage = node.kind === 'image'
    const passed = isImage && this.isDirectCoherent ? passthrough?.open(node, flags) : undefined
    const openFlags = passed?.openFlags ?? this.flagsFor(node, flags)
    const isWriting = (flags & (O_WRONLY | O_RDWR | O_TRUNC)) !== 0
    const past = isWriting && (openFlags & FOPEN.DIRECT_IO) !== 0 ? PAST_CACHE : 0
    if (isImage) opens?.opened(node.id, past !== 0)
    const fh = handle + past * 2 ** 32
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

/** Counts that a handle is closed. `bytes` has it at `at`, as OPEN has answered. */
export function countReleased(
  opens: OpenCounts | undefined,
  nodeid: number,
  bytes: Buffer,
  at: number,
): void {
  if (nodeid >= FIRST_FILE_ID) opens?.released(nodeid, bytes.readUInt32LE(at + 4) === PAST_CACHE)
}
