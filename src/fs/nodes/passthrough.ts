/**
 * Decides which files the kernel reads itself, past this program (FUSE passthrough), and how they are opened.
 *
 *  (1) The bytes of such a file are, range for range, those of one regular file of the same size.
 *  (2) Readers read that file. The reads and writes of handles that write still come here, and only their maps go to the file. So
 *      nothing is written past the disk's end, and readers see each write.
 *  (3) A file keeps its way (backings.ts).
 *  (4) What speaks against it is no error: the file is served as all others.
 */
import fs from 'node:fs'
import { constants } from 'node:os'
import type { LayerSpec } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import type { View } from '../../formats/driver.js'
import { isExpected } from '../../errors.js'
import type { ChangeWatch } from '../../image/opening/change-watch.js'
import { flatFileOf } from '../../image/reading/flat-file.js'
import type { ViewSet } from '../../image/reading/view-set.js'
import { directAlignment, isUnchangeable, openBacking } from '../../io/backing.js'
import { regularFileSize } from '../../io/libc.js'
import { SECTOR_BYTES } from '../../sector.js'
import type { Backings, Decision } from './backings.js'
import { FOPEN } from '../protocol/protocol.js'
import type { ImageNode } from './tree.js'

const { EPERM } = constants.errno
const { O_DIRECT, O_TRUNC, O_WRONLY } = fs.constants
const ACCESS_MODE = 3

/** Why the server serves a file, for status.json. The code of a reason is its place here, below 0. */
const REASONS = {
  notFlat: 'its bytes are not those of one file, range for range',
  otherSize: 'its file is longer or shorter than the disk',
  device: 'it lies on a block device',
  fileSystem: 'its file does not lie on ext4, xfs, btrfs or tmpfs',
  unseen: 'what programs write through maps would not be seen, and the image notes each write',
  guessed:
    'its format was guessed as raw, which a write through a map might change; mount it with --format raw',
  grows: 'it grows with what is written (growable)',
  watched:
    'another program could change its file unnoticed; -o passthrough=on allows that, and an immutable file (chattr +i) needs no option',
  notAllowed: 'the kernel allows that to root of the first user namespace only',
  refused: 'the kernel refuses its file',
  many: 'the mount has too many files',
  unreadable: 'its tables cannot be read',
} as const
type Reason = keyof typeof REASONS
const ORDER = Object.keys(REASONS) as Reason[]
const codeOf = (reason: Reason): number => -1 - ORDER.indexOf(reason)
const because = (reason: Reason): Decision => ({ reason: codeOf(reason) })
const reasonOf = (code: number): string => REASONS[ORDER[-1 - code] as Reason]

const BTRFS = 0x9123683e
const TMPFS = 0x01021994
/** statfs(2): ext, xfs, btrfs, tmpfs. To open a file of theirs anew has no effect on it, whatever the flags. */
const FILE_SYSTEMS: readonly number[] = [0xef53, 0x58465342, BTRFS, TMPFS]
/** Those that read at any place with O_DIRECT. */
const UNALIGNED: readonly number[] = [BTRFS, TMPFS]

/** The most files of which status.json tells. */
const MOST_TOLD = 256

/** The rules for all files of a mount. Plain data. */
export interface PassthroughRules {
  /** Why no file has it; undefined if some may. */
  readonly why: string | undefined
  /** Whether files have it that others could change unnoticed. */
  readonly isForced: boolean
}

export interface PassthroughParts {
  readonly rules: PassthroughRules
  readonly backings: Backings
  readonly views: ViewSet
  readonly layers: readonly LayerSpec[]
  readonly isGrowable: boolean
  readonly watch: ChangeWatch | undefined
}

/** The result of INIT: the device, and the features that both sides have. */
export interface KernelSession {
  /** A /dev/fuse of the mount. */
  readonly device: number
  readonly hasPassthrough: boolean
}

/** How a file is opened: flags of FOPEN, and the number of its file. */
export interface PassedOpening {
  readonly openFlags: number
  readonly backing: number
}

/** What status.json tells of a file. */
export interface ServedFile {
  readonly name: string
  readonly passthrough: boolean
  /** Why it has none. */
  readonly why?: string
}

/** Returns what status.json tells of files, with the reasons why they have none. */
export const servedFiles = (
  nodes: readonly ImageNode[],
  reasonAgainst: (node: ImageNode) => string | undefined,
): ServedFile[] =>
  nodes.slice(0, MOST_TOLD).map(node => {
    const why = reasonAgainst(node)
    return { name: node.name, passthrough: why === undefined, ...(why !== undefined && { why }) }
  })

/** One thread's part, in one world. */
export class Passthrough {
  private readonly descriptors = new Map<number, number>()
  /** A /dev/fuse of the mount; undefined if the kernel has no passthrough. */
  private device: number | undefined

  constructor(private readonly parts: PassthroughParts) {}

  connect({ device, hasPassthrough }: KernelSession): void {
    this.device = hasPassthrough ? device : undefined
  }

  /** Returns how `node` is opened with the flags of open(2); undefined if as all other files. */
  open(node: ImageNode, flags: number): PassedOpening | undefined {
    if (this.why !== undefined) return undefined
    const decision = this.decisionOn(node)
    if ('reason' in decision) return undefined
    const { backing, readsSectors } = decision
    const { backings, views } = this.parts
    if (!orIf(() => this.hasSize(node), false)) {
      backings.giveUp(node.id, codeOf('otherSize'))
      return undefined
    }
    const isDirect = (flags & O_DIRECT) !== 0
    const past = FOPEN.DIRECT_IO | (isDirect ? FOPEN.PARALLEL_DIRECT_WRITES : 0)
    if ((flags & ACCESS_MODE) !== 0 || (flags & O_TRUNC) !== 0) {
      if ((flags & ACCESS_MODE) !== O_WRONLY) views.diskOf(node.entry)?.noteMaps()
      return { backing, openFlags: FOPEN.PASSTHROUGH | past }
    }
    const isServed = isDirect && !readsSectors
    return { backing, openFlags: FOPEN.PASSTHROUGH | (isServed ? past : 0) }
  }

  /** Returns how each file is served, and if not by passthrough why, for status.json. */
  report(nodes: readonly ImageNode[]): readonly ServedFile[] {
    return servedFiles(nodes, node => this.why ?? this.reasonAgainst(node))
  }

  private get why(): string | undefined {
    const { rules } = this.parts
    if (rules.why !== undefined) return rules.why
    return this.device === undefined ? 'the kernel has no FUSE passthrough (Linux 6.9)' : undefined
  }

  private reasonAgainst(node: ImageNode): string | undefined {
    const decision = this.decisionOn(node)
    return 'reason' in decision ? reasonOf(decision.reason) : undefined
  }

  private decisionOn(node: ImageNode): Decision {
    const { backings } = this.parts
    if (!backings.has(node.id)) return because('many')
    return backings.of(node.id, () => orIf(() => this.decide(node), because('unreadable')))
  }

  private decide(node: ImageNode): Decision {
    const { rules, watch } = this.parts
    const file = this.reading(() => flatFileOf(this.view(node), this.sizeOf(node)))
    if (!file) return because('notFlat')
    const against = this.againstWriting(node)
    if (against) return because(against)
    const { fd } = file
    if (regularFileSize(fd, false) < 0) return because('device')
    this.descriptors.set(node.id, fd)
    if (!this.hasSize(node)) return because('otherSize')
    const { type } = fs.statfsSync(`/proc/self/fd/${fd}`)
    if (!FILE_SYSTEMS.includes(type)) return because('fileSystem')
    // Once it has handed out a handle, this program could not make its reads fail.
    if (watch && !rules.isForced && !isUnchangeable(fd)) return because('watched')
    const number = openBacking(this.device as number, fd)
    if (number === -EPERM) return because('notAllowed')
    if (number <= 0) return because('refused')
    const alignment = UNALIGNED.includes(type) ? 1 : directAlignment(fd)
    const isAligned = alignment !== undefined && alignment > 0 && alignment <= SECTOR_BYTES
    return { backing: number, readsSectors: isAligned }
  }

  /** Returns why a file that programs can write does not have it. */
  private againstWriting({ entry }: ImageNode): Reason | undefined {
    const { views, layers, isGrowable } = this.parts
    const layer = layers[entry.layer]
    if (!layer || !views.diskOf(entry)) return undefined
    if (isGrowable) return 'grows'
    if (!formatOf(layer).writing?.allowsUnseenWrites) return 'unseen'
    return layer.isProbed ? 'guessed' : undefined
  }

  private hasSize(node: ImageNode): boolean {
    const { id } = node
    // A disk that grows has its size and that of its file under the lock.
    return this.reading(() => {
      if (!this.descriptors.has(id)) {
        const file = flatFileOf(this.view(node), Math.min(1, this.sizeOf(node)))
        if (!file) return false
        this.descriptors.set(id, file.fd)
      }
      return regularFileSize(this.descriptors.get(id) as number, false) === this.sizeOf(node)
    })
  }

  /** Runs `act` while no tables of the disk change. */
  private reading<T>(act: () => T): T {
    const { disk } = this.parts.views
    disk?.beginRead(0, 0)
    try {
      return act()
    } finally {
      disk?.endRead()
    }
  }

  private view({ entry }: ImageNode): View {
    return this.parts.views.viewOf(entry)
  }

  private sizeOf({ entry }: ImageNode): number {
    return this.parts.views.diskOf(entry)?.sizeBytes ?? entry.sizeBytes
  }
}

/** Returns what `act` returns, or `otherwise` if it fails by what is not a bug. */
function orIf<T>(act: () => T, otherwise: T): T {
  try {
    return act()
  } catch (error) {
    if (isExpected(error)) return otherwise
    throw error
  }
}
