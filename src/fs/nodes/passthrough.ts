/**
 * Decides which files the kernel reads itself, past this program (FUSE passthrough), and how they are opened.
 *
 *  (1) The bytes of such a file are, range for range, those of one regular file of the same size.
 *  (2) Readers read that file. The reads and writes of handles that write still come here, and only their maps go to the file. So
 *      nothing is written past the disk's end, and readers see each write.
 *  (3) A file keeps its way (backings.ts).
 *      A file that is only read, and has no such file, gets one where the file system has reflinks (image/layout/lay-out.ts).
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
import {
  closeBacking,
  hasHarmlessOpenings,
  isUnchangeable,
  openBacking,
  readsSectorsDirectly,
} from '../../io/backing.js'
import { regularFileSize } from '../../io/libc.js'
import { hasReflinks } from '../../io/reflinks.js'
import { filesFrom } from '../../image/layer.js'
import type { Backings, Decision, Passed } from './backings.js'
import { FOPEN } from '../protocol/protocol.js'
import { because, codeOf, type Reason, reasonOf } from './passthrough-reasons.js'
import type { ImageNode } from './tree.js'

const { EPERM } = constants.errno
const { O_DIRECT, O_TRUNC, O_WRONLY } = fs.constants
const ACCESS_MODE = 3

/** The most files of which status.json tells. */
const MOST_TOLD = 256

/** The rules for all files of a mount. Plain data. */
export interface PassthroughRules {
  /** Why no file has it; undefined if some may. */
  readonly why: string | undefined
  /** Whether files have it that others could change unnoticed. */
  readonly isForced: boolean
  /** How much of a file may be written out that cannot share blocks with the image, in bytes. */
  readonly copiedBytes: number
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
  /** Whether the kernel reads a file that shares blocks with the image. */
  readonly reflink?: true
  /** Why it has none. */
  readonly why?: string
}

/** Returns what status.json tells of files: why the server serves them, if it does, and whether they were laid out. */
export const servedFiles = (
  nodes: readonly ImageNode[],
  wayOf: (node: ImageNode) => { readonly why?: string | undefined; readonly isLaidOut?: boolean },
): ServedFile[] =>
  nodes.slice(0, MOST_TOLD).map(node => {
    const { why, isLaidOut = false } = wayOf(node)
    const reflink = isLaidOut ? ({ reflink: true } as const) : undefined
    const { name } = node
    return { name, passthrough: why === undefined, ...reflink, ...(why !== undefined && { why }) }
  })

const NOT_YET = 'it is laid out in a file of its own when it is first opened'

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
    const { backings, views } = this.parts
    if (decision === 'layout') {
      // It was opened by a way that does not wait for the layout. From now on its handles are of this kind.
      backings.giveUp(node.id, codeOf('notFlat'))
      return undefined
    }
    if ('reason' in decision) return undefined
    const { backing, readsSectors, isLaidOut } = decision
    if (!isLaidOut && !orIf(() => this.hasSize(node), false)) {
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

  /** Whether those who open the file have to wait until it is laid out. */
  awaitsLayout(node: ImageNode): boolean {
    return this.why === undefined && this.decisionOn(node) === 'layout'
  }

  /** Returns how each file is served, and if not by passthrough why, for status.json. */
  report(nodes: readonly ImageNode[]): readonly ServedFile[] {
    return servedFiles(nodes, node => {
      if (this.why !== undefined) return { why: this.why }
      const decision = this.decisionOn(node)
      if (decision === 'layout') return { why: NOT_YET }
      return 'reason' in decision ? { why: reasonOf(decision.reason) } : decision
    })
  }

  private get why(): string | undefined {
    const { rules } = this.parts
    if (rules.why !== undefined) return rules.why
    return this.device === undefined ? 'the kernel has no FUSE passthrough (Linux 6.9)' : undefined
  }

  private decisionOn(node: ImageNode): Decision {
    const { backings } = this.parts
    if (!backings.has(node.id)) return because('many')
    return backings.of(node.id, () => orIf(() => this.decide(node), because('unreadable')))
  }

  private decide(node: ImageNode): Decision {
    const { rules, watch } = this.parts
    const file = this.reading(() => flatFileOf(this.view(node), this.sizeOf(node)))
    if (!file) return this.layoutOr(node, 'notFlat')
    const against = this.againstWriting(node)
    if (against) return because(against)
    const { fd } = file
    if (regularFileSize(fd, false) < 0) return because('device')
    this.descriptors.set(node.id, fd)
    if (!this.hasSize(node)) return this.layoutOr(node, 'otherSize')
    if (!hasHarmlessOpenings(fd)) return because('fileSystem')
    // Once it has handed out a handle, this program could not make its reads fail.
    if (watch && !rules.isForced && !isUnchangeable(fd)) return this.layoutOr(node, 'watched')
    const opened = this.backingOf(fd)
    return typeof opened === 'string'
      ? because(opened)
      : { ...opened, readsSectors: readsSectorsDirectly(fd) }
  }

  private backingOf(fd: number): Omit<Passed, 'readsSectors'> | Reason {
    const backing = openBacking(this.device as number, fd)
    if (backing === -EPERM) return 'notAllowed'
    return backing > 0 ? { backing, isLaidOut: false } : 'refused'
  }

  /** Returns that `node` is laid out, or where that is impossible the reason that stands then. */
  private layoutOr({ entry }: ImageNode, otherwise: Reason): Decision {
    const { layers, watch } = this.parts
    // Nothing else says whether the image has changed meanwhile.
    if (!watch) return because(otherwise)
    const files = filesFrom(layers, entry.layer)
    // Files that are not on this machine are not looked at for changes.
    if (files.some(({ source }) => source)) return because(otherwise)
    const file = files.find(({ fd }) => hasReflinks(fd) && hasHarmlessOpenings(fd))
    if (!file) return because(otherwise)
    const opened = this.backingOf(file.fd)
    if (typeof opened === 'string') return because(opened)
    closeBacking(this.device as number, opened.backing)
    return 'layout'
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
