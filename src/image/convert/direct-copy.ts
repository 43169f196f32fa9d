/**
 * Copies a disk to a file that has each byte at its own place. This thread finds out where the disk's bytes are; all threads read,
 * decompress and write them, each a part of its own.
 *
 *  (1) A thread that cannot do its job writes nothing, or a part of the same bytes. This thread does it again by the engine, which
 *      has the last word on what is damage.
 *  (2) Jobs end in the order of the disk. So of several errors the first on the disk is reported, however the threads run.
 *  (3) No helper is at work when `copyDirectly` returns or throws: after that the caller closes the files.
 */
import { availableParallelism } from 'node:os'
import { setImmediate as turn } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { packedFormat } from '../../formats/packed-places.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { WritableStore } from '../../io/store.js'
import { type CopyJob, JOB_BYTES, JobRunner, type JobTarget } from './copy-job.js'
import { withPlace } from './damage-place.js'
import { grainOf } from './grain.js'
import { createJobMemory, type JobMemory, JobQueue } from './job-queue.js'
import { type ConvertedDisk, type Piece, PieceCursor } from './piece-cursor.js'

export interface DirectTarget {
  readonly fd: number
  readonly path: string
  readonly store: Pick<WritableStore, 'write'>
  /** The size that the threads' stores share. */
  readonly size: SharedArrayBuffer
}

export interface DirectOptions {
  /** How much of the disk is copied, in bytes. Past the source's end the target has a hole. */
  readonly sizeBytes: number
  /** Runs of so many zeros and more become holes; above 0. */
  readonly sparseBytes: number
  readonly onProgress?: ((offset: number) => void) | undefined
  /** Ends the copy with its reason. */
  readonly signal?: AbortSignal | undefined
  /** How many threads help; by default one less than there are processors, or none if there is little to do. */
  readonly helpers?: number
}

/** The data that a helper starts with. */
export interface DirectSetup {
  readonly target: Pick<DirectTarget, 'fd' | 'path' | 'size'>
  readonly shape: Pick<JobTarget, 'grainBytes'>
  readonly memory: JobMemory
  /** The number of the helper, from 1 on. */
  readonly thread: number
}

type Disk = ConvertedDisk & { readonly files: readonly Pick<FileSpec, 'allocatedBytes'>[] }

const MAX_HELPERS = 3
/** Helpers cost more than they save if the source's files have less than that. */
const HELPERS_FROM_BYTES = 48 * 2 ** 20
/** How long this thread works before it lets signals be handled. */
const TURN_MS = 100
const NO_NUMBERS = [0, 0, 0, 0]

/** How much of a disk is looked at to find out whether its data are compressed, in pieces. */
const LOOKED_AT = 256

/** Reports whether the disk has compressed data near its start. Others gain nothing from several threads: they wait for each other. */
export function hasPacked(source: Pick<ConvertedDisk, 'walk' | 'sizeBytes'>): boolean {
  let seen = 0
  for (const { extent } of source.walk(0, source.sizeBytes, () => {})) {
    if (extent.kind === 'packed') return true
    if (++seen === LOOKED_AT) break
  }
  return false
}

/** Copies all of `source` but its zeros. Throws ImageError, SystemError, and the signal's reason. */
export async function copyDirectly(
  source: Disk,
  target: DirectTarget,
  options: DirectOptions,
): Promise<void> {
  const copy = new DirectCopy(source, target, options)
  try {
    await copy.run()
  } finally {
    copy.end()
  }
}

class DirectCopy {
  private readonly cursor: PieceCursor
  private readonly runner: JobRunner
  private readonly queue: JobQueue
  private readonly grainBytes: number
  private bytes: Buffer = Buffer.allocUnsafeSlow(JOB_BYTES)
  private turnedAt = performance.now()

  constructor(
    private readonly source: Disk,
    target: DirectTarget,
    private readonly options: DirectOptions,
  ) {
    const { sizeBytes, sparseBytes, helpers = helpersFor(source) } = options
    this.grainBytes = grainOf(sparseBytes, 1)
    const shape = { grainBytes: this.grainBytes }
    const memory = createJobMemory(helpers)
    const { fd, path, size } = target
    for (let thread = 1; thread <= helpers; thread++) {
      startHelper({ target: { fd, path, size }, shape, memory, thread })
    }
    this.cursor = new PieceCursor(source, sizeBytes, undefined)
    this.runner = new JobRunner({ store: target.store, ...shape })
    this.queue = new JobQueue(memory)
  }

  async run(): Promise<void> {
    for (const job of this.jobs()) {
      while (this.queue.isFull) this.makeRoom()
      this.queue.add(job)
      if (performance.now() - this.turnedAt > TURN_MS) await this.report(job.offset)
    }
    this.finish()
    this.options.onProgress?.(this.options.sizeBytes)
  }

  /** Lets the helpers end, and waits for what they are doing: rule (3). */
  end(): void {
    this.queue.end()
  }

  /** Yields what any thread can copy, and copies the rest itself. */
  private *jobs(): Generator<CopyJob> {
    try {
      yield* this.found()
    } catch (error) {
      this.finish() // rule (2)
      throw error
    }
  }

  /** All parts begin at a multiple of a grain, and end at one or at the disk's end. */
  private *found(): Generator<CopyJob> {
    const { sizeBytes } = this.options
    const { grainBytes } = this
    for (let at = 0; at < sizeBytes; ) {
      const whole = (end: number) => (end >= sizeBytes ? sizeBytes : end - (end % grainBytes))
      const zeros = whole(this.cursor.zerosUntil(at))
      if (zeros > at) {
        at = zeros
        continue
      }
      const [piece] = this.cursor.within(at, at + 1) as [Piece]
      const end = whole(piece.offset + piece.length)
      if (end > at) {
        yield* this.parts(piece, at, end)
        at = end
        continue
      }
      // Several pieces lie in this grain.
      const length = Math.min(grainBytes, sizeBytes - at)
      this.copy({ offset: at, length })
      at += length
    }
  }

  private *parts(piece: Piece, from: number, end: number): Generator<CopyJob> {
    const { extent } = piece
    const found = extent.kind === 'zero' ? undefined : this.source.placeOf(extent)
    // The helpers read by descriptors.
    const place = found?.file.source ? undefined : found
    const isAll = from === piece.offset && end === from + piece.length
    if (isAll && extent.kind === 'packed' && piece.length === extent.wholeBytes) {
      const { numbers } = extent.job
      const format = packedFormat(extent.job.format)
      if (place && format >= 0) {
        yield { offset: from, length: end - from, fd: place.file.fd, at: place.at, format, numbers }
        return
      }
    }
    const jobBytes = Math.max(JOB_BYTES, this.grainBytes)
    for (let at = from; at < end; ) {
      const next = Math.min(end, (Math.floor(at / jobBytes) + 1) * jobBytes)
      const part = { offset: at, length: next - at }
      if (place?.isPlain) {
        const { fd } = place.file
        yield { ...part, fd, at: place.at + (at - piece.offset), format: -1, numbers: NO_NUMBERS }
      } else this.copy(part)
      at = next
    }
  }

  /** Drops the first job of the queue if it has ended; otherwise does another one, or waits. */
  private makeRoom(): void {
    const first = this.queue.drop()
    if (first === true) return
    if (first !== false)
      this.copy(first) // rule (1)
    else if (!this.queue.runOne(this.runner)) this.queue.wait()
  }

  private finish(): void {
    while (!this.queue.isEmpty) this.makeRoom()
  }

  /** Copies a part of the disk by the engine. */
  private copy({ offset, length }: Pick<CopyJob, 'offset' | 'length'>): void {
    if (this.bytes.length < length) this.bytes = Buffer.allocUnsafeSlow(length)
    withPlace(offset, () => this.source.read(this.bytes, 0, length, offset))
    this.runner.write(this.bytes, offset, length)
  }

  private async report(offset: number): Promise<void> {
    this.options.onProgress?.(offset)
    await turn()
    this.options.signal?.throwIfAborted()
    this.turnedAt = performance.now()
  }
}

function helpersFor({ files }: Disk): number {
  const bytes = files.reduce((sum, { allocatedBytes }) => sum + allocatedBytes, 0)
  return bytes < HELPERS_FROM_BYTES ? 0 : Math.min(availableParallelism() - 1, MAX_HELPERS)
}

function startHelper(workerData: DirectSetup): void {
  const helper = new Worker(new URL('./direct-helper.js', import.meta.url), { workerData })
  // The queue knows whether it is at work, and does without it if it cannot start.
  helper.unref()
  helper.once('error', () => {})
}
