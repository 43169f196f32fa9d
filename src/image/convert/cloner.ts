/**
 * Finds what of a source can be cloned: file systems with reflinks, such as xfs and btrfs, then store it once. The search for
 * zeros is left out there, because it would read all that cloning does not.
 */
import type { FileSpec } from '../../io/file-spec.js'
import { CLONED_BLOCK_BYTES, hasReflinks } from '../../io/reflinks.js'
import { type ConvertedDisk, PieceCursor } from './piece-cursor.js'
import type { ClonedPart, Sink } from './sink.js'

/** How much of the disk is cloned in one step, so that progress is seen. */
const STEP_BYTES = 256 * 2 ** 20

export interface CloneRun {
  readonly offset: number
  /** Ends at a multiple of the window's size, or at the disk's end. */
  readonly length: number
  readonly parts: readonly ClonedPart[]
}

/** Reports whether the first data of the disk lie in a file whose file system may have reflinks. */
export function mayBeCloned(disk: ConvertedDisk): boolean {
  const cursor = new PieceCursor(disk, disk.sizeBytes, () => {})
  const at = cursor.zerosUntil(0)
  const [piece] = cursor.within(at, at + 1)
  const place = piece?.extent.kind === 'data' ? disk.placeOf(piece.extent) : undefined
  return place?.isPlain === true && canClone(place.file)
}

const canClone = ({ fd, source }: FileSpec): boolean => !source && hasReflinks(fd)

export class Cloner {
  private isPossible = true
  private hasCloned = false
  private readonly known = new Map<FileSpec, boolean>()

  constructor(
    private readonly clone: NonNullable<Sink['clone']>,
    private readonly unitBytes: number,
    private readonly disk: Pick<ConvertedDisk, 'placeOf'>,
    private readonly cursor: PieceCursor,
    private readonly windowBytes: number,
    private readonly sizeBytes: number,
  ) {}

  /** Returns what can be cloned from `offset` on, a multiple of the window's size; undefined if that is less than a window. */
  runAt(offset: number): CloneRun | undefined {
    if (!this.isPossible) return undefined
    // The first try is small: if it fails, its data are copied without help of other threads.
    const stepBytes = this.hasCloned ? STEP_BYTES : this.windowBytes
    const stepEnd = Math.min(offset + stepBytes, this.sizeBytes)
    const parts: ClonedPart[] = []
    let end = stepEnd
    for (const { offset: start, length, extent } of this.cursor.within(offset, stepEnd)) {
      if (extent.kind === 'zero') continue
      const from = Math.max(start, offset)
      const place = extent.kind === 'data' ? this.disk.placeOf(extent) : undefined
      const at = (place?.at ?? 0) + (from - start)
      const isWhole = at % CLONED_BLOCK_BYTES === 0 && from % CLONED_BLOCK_BYTES === 0
      if (!place?.isPlain || !isWhole || !this.isCloneable(place.file)) {
        end = from - (from % this.windowBytes)
        break
      }
      const bytes = Math.min(start + length, stepEnd) - from
      parts.push({ file: place.file, at, offset: from, length: bytes })
    }
    if (end <= offset) return undefined
    const inside = parts
      .filter(part => part.offset < end)
      .map(part => ({ ...part, length: Math.min(part.length, end - part.offset) }))
    return { offset, length: end - offset, parts: inside }
  }

  /** Puts a run into the target: cloned, or copied where the file system refuses. */
  take({ parts }: CloneRun): void {
    for (const { offset, length, parts: inside } of this.groups(parts)) {
      if (this.clone(offset, length, inside)) this.hasCloned = true
      else if (!this.hasCloned) this.isPossible = false
    }
  }

  /** Returns the parts in ranges of whole units, in order. */
  private *groups(
    parts: readonly ClonedPart[],
  ): Generator<Pick<CloneRun, 'offset' | 'length' | 'parts'>> {
    const { unitBytes, sizeBytes } = this
    let group: ClonedPart[] = []
    let start = 0
    let end = 0
    for (const part of parts) {
      if (group.length > 0 && part.offset >= end) {
        yield { offset: start, length: end - start, parts: group }
        group = []
      }
      if (group.length === 0) start = part.offset - (part.offset % unitBytes)
      group.push(part)
      const partEnd = part.offset + part.length
      end = Math.min(Math.ceil(partEnd / unitBytes) * unitBytes, sizeBytes)
    }
    if (group.length > 0) yield { offset: start, length: end - start, parts: group }
  }

  private isCloneable(file: FileSpec): boolean {
    let known = this.known.get(file)
    if (known === undefined) {
      known = canClone(file)
      this.known.set(file, known)
    }
    return known
  }
}
