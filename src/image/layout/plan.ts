/** Plans a file that has the bytes of a disk and shares the blocks of the image's files. */
import type { View } from '../../formats/driver.js'
import { FileStore } from '../../io/store.js'
import { walkView } from '../reading/engine.js'

/** A part that shares its blocks: `length` bytes at `at` of the file `fd`. All three places are multiples of a block. */
export interface SharedPart {
  readonly fd: number
  readonly at: number
  readonly offset: number
  readonly length: number
}

/** A part whose bytes are read and written. */
export interface CopiedPart {
  readonly offset: number
  readonly length: number
}

export interface LayoutPlan {
  /** In the order of the disk. What is in neither list is zeros. */
  readonly shared: readonly SharedPart[]
  readonly copied: readonly CopiedPart[]
  readonly sharedBytes: number
}

export interface PlanLimits {
  /** The block of the file system, in bytes. */
  readonly blockBytes: number
  /** How many bytes may be copied that cannot be shared. */
  readonly copiedBytes: number
  /** The most parts. */
  readonly parts: number
  /** Returns whether planning has taken too long. */
  isLate(): boolean
}

/** Why there is no plan. */
export type PlanObstacle = 'packed' | 'unaligned' | 'pieces' | 'lost' | 'slow'

/** Within these many bytes the ends of plain pieces are copied whatever the limit: the end of a disk, or of a file. */
const EDGE_BYTES = 64 * 1024
/** How many pieces are looked at between two looks at the clock. */
const PIECES_A_LOOK = 256

/** Returns how the first `sizeBytes` bytes of `view` are laid out, or why they are not. Throws ImageError, SystemError. */
export function planLayout(
  view: View,
  sizeBytes: number,
  limits: PlanLimits,
): LayoutPlan | PlanObstacle {
  const planner = new Planner(limits)
  let visits = 0
  walkView(view, 0, sizeBytes, (extent, offset, unitBytes) => {
    if (++visits % PIECES_A_LOOK === 0 && limits.isLate()) return planner.stop('slow')
    if (extent.kind === 'zero') return true
    // A store that is no file decrypts.
    if (extent.kind === 'packed' || !(extent.store instanceof FileStore)) {
      return planner.copy(offset, extent.length, 'packed')
    }
    return planner.add(extent.store, extent.at, offset, extent.length, unitBytes)
  })
  return planner.result
}

class Planner {
  private readonly shared: SharedPart[] = []
  private readonly copied: CopiedPart[] = []
  private sharedBytes = 0
  private copiedBytes = 0
  private edgeBytes = 0
  private obstacle: PlanObstacle | undefined

  constructor(private readonly limits: PlanLimits) {}

  get result(): LayoutPlan | PlanObstacle {
    const { shared, copied, sharedBytes } = this
    return this.obstacle ?? { shared, copied, sharedBytes }
  }

  /** Ends the plan. Returns false. */
  stop(obstacle: PlanObstacle): false {
    this.obstacle = obstacle
    return false
  }

  /** Adds a piece of a file. Returns whether the plan goes on. */
  add(store: FileStore, at: number, offset: number, length: number, unitBytes: number): boolean {
    const { blockBytes } = this.limits
    const fileBytes = store.sizeBytes
    // Bytes that a file lacks within its last unit read as zeros; those that it lacks after that cannot be read.
    if (at + length > Math.ceil(fileBytes / unitBytes) * unitBytes) return this.stop('lost')
    const there = Math.min(length, fileBytes - at)
    if (there <= 0) return true
    if ((at - offset) % blockBytes !== 0) return this.copy(offset, there, 'unaligned')
    const start = Math.ceil(offset / blockBytes) * blockBytes
    const end = Math.floor((offset + there) / blockBytes) * blockBytes
    if (end <= start) return this.copyEdge(offset, there)
    if (start > offset && !this.copyEdge(offset, start - offset)) return false
    this.share({ fd: store.fd, at: at + (start - offset), offset: start, length: end - start })
    const tail = offset + there - end
    if (tail > 0 && !this.copyEdge(end, tail)) return false
    return this.hasRoom()
  }

  copy(offset: number, length: number, otherwise: PlanObstacle): boolean {
    this.copiedBytes += length
    if (this.copiedBytes > this.limits.copiedBytes) return this.stop(otherwise)
    this.copied.push({ offset, length })
    return this.hasRoom()
  }

  private copyEdge(offset: number, length: number): boolean {
    if (this.edgeBytes + length > EDGE_BYTES) return this.copy(offset, length, 'unaligned')
    this.edgeBytes += length
    this.copied.push({ offset, length })
    return true
  }

  private share(part: SharedPart): void {
    const { shared } = this
    this.sharedBytes += part.length
    const last = shared.at(-1)
    const follows =
      last?.fd === part.fd &&
      last.at + last.length === part.at &&
      last.offset + last.length === part.offset
    if (follows) shared[shared.length - 1] = { ...last, length: last.length + part.length }
    else shared.push(part)
  }

  private hasRoom(): boolean {
    const parts = this.shared.length + this.copied.length
    return parts <= this.limits.parts || this.stop('pieces')
  }
}
