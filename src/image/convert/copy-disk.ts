/**
 * Copies a disk: windows of it are read, searched for zeros and compressed, several at once, and written in order.
 *
 *  (1) The sink is called in ascending order of the disk, and has written when it returns: a file takes one write at a time
 *      anyway, and this thread has nothing else to do.
 *  (2) Nothing is in flight when `copyDisk` returns or throws: after that the caller closes the files.
 */
import { MountError } from '../../errors.js'
import { callsAtOnce, type Pack, packer } from '../../io/codecs.js'
import { clear } from '../../io/libc.js'
import type { OnLoss } from '../reading/walk-layers.js'
import { allDone } from './all-done.js'
import { Cloner } from './cloner.js'
import { DiskReader } from './disk-reader.js'
import { grainOf, powerOfTwo } from './grain.js'
import { type ConvertedDisk, largestUnit, type Piece, PieceCursor } from './piece-cursor.js'
import { samePlaces } from './same-places.js'
import type { Sink } from './sink.js'
import { areZeros } from './zeros.js'

export interface CopyOptions {
  /** How much of the disk is copied, in bytes. Past the source's end it reads as zeros. */
  readonly sizeBytes: number
  /** Runs of so many zeros and more are not stored; 0: everything is stored. At most MAX_SPARSE_BYTES count. */
  readonly sparseBytes: number
  /** The disk that shows where the target has nothing. Only what differs from it is written. */
  readonly base?: ConvertedDisk | undefined
  /** Is told of what cannot be read, which becomes zeros; without it that is an error. */
  readonly onLoss?: OnLoss | undefined
  /** Called with how far the disk has been copied, in bytes. */
  readonly onProgress?: ((offset: number) => void) | undefined
  /** Ends the copy with its reason. */
  readonly signal?: AbortSignal | undefined
}

/** How much of the disk is read and written at once, at least. */
const WINDOW_BYTES = 2 ** 20
/** How many windows are in memory: one is written, the others are read. */
const WINDOWS = 3

/** A unit is stored compressed if that saves one part in so many: a sector of a cluster of 64 KiB. */
const LEAST_SAVED = 128

/** The memory of one window. */
interface Slot {
  readonly bytes: Buffer
  readonly base: Buffer | undefined
  /** Room for the compressed units. */
  readonly packed: Buffer | undefined
}

interface Window {
  readonly offset: number
  readonly length: number
  readonly pieces: readonly Piece[]
  readonly basePieces: readonly Piece[]
}

/** A step handles a run of units of a window; `start` is in bytes of the window. */
type Step =
  | { readonly kind: 'write' | 'zero'; readonly start: number; length: number }
  | { readonly kind: 'pack'; readonly start: number; readonly packed: Buffer }

interface Prepared {
  readonly window: Window
  readonly slot: Slot
  readonly steps: Promise<readonly Step[]>
}

/** Copies all of `source` to `sink`. Throws ImageError, SystemError, MountError, and the signal's reason. */
export async function copyDisk(
  source: ConvertedDisk,
  sink: Sink,
  options: CopyOptions,
): Promise<void> {
  const copy = new DiskCopy(source, sink, options)
  try {
    await copy.run()
  } finally {
    await copy.settled()
  }
}

class DiskCopy {
  private readonly cursor: PieceCursor
  private readonly baseCursor: PieceCursor | undefined
  private readonly reader: DiskReader
  private readonly baseReader: DiskReader | undefined
  private readonly windowBytes: number
  /** The unit in which zeros are searched, and differences. */
  private readonly grainBytes: number
  private readonly pack: Pack | undefined
  private readonly slots: Slot[]
  private readonly pending: Prepared[] = []
  private readonly cloner: Cloner | undefined
  /** How far the sink has all. */
  private written = 0

  constructor(
    private readonly source: ConvertedDisk,
    private readonly sink: Sink,
    private readonly options: CopyOptions,
  ) {
    const { sizeBytes, base, onLoss, sparseBytes } = options
    const { unitBytes, packing } = sink
    this.cursor = new PieceCursor(source, sizeBytes, onLoss)
    this.reader = new DiskReader(source, onLoss)
    if (base) {
      this.baseCursor = new PieceCursor(base, sizeBytes, undefined)
      this.baseReader = new DiskReader(base, undefined)
    }
    this.grainBytes = base ? unitBytes : grainOf(sparseBytes, unitBytes)
    this.windowBytes = Math.max(
      ...[WINDOW_BYTES, unitBytes, this.grainBytes],
      ...[source, base].map(disk => (disk ? powerOfTwo(largestUnit(disk)) : 0)),
    )
    this.pack = packing && packerOrThrow(packing.type)
    const unitsAhead = packing ? 2 * callsAtOnce() : 0
    const windows = Math.max(WINDOWS, Math.ceil((unitsAhead * unitBytes) / this.windowBytes))
    const packedBytes = ((packing?.maxBytes ?? 0) * this.windowBytes) / unitBytes
    const memory = (bytes: number) => (bytes > 0 ? Buffer.allocUnsafeSlow(bytes) : undefined)
    this.slots = Array.from({ length: windows }, () => ({
      bytes: Buffer.allocUnsafeSlow(this.windowBytes),
      base: memory(base ? this.windowBytes : 0),
      packed: memory(packedBytes),
    }))
    if (sink.clone && !base && !packing && sparseBytes > 0) {
      const clone = sink.clone.bind(sink)
      this.cloner = new Cloner(clone, unitBytes, source, this.cursor, this.windowBytes, sizeBytes)
    }
  }

  async run(): Promise<void> {
    const { sizeBytes } = this.options
    let index = 0
    for (let at = 0; at < sizeBytes; ) {
      this.options.signal?.throwIfAborted()
      const offset = this.nextWindow(at)
      if (offset >= sizeBytes) break
      const cloned = await this.cloned(offset)
      at = offset + cloned
      if (cloned > 0) continue
      if (this.pending.length === this.slots.length) await this.finishFirst()
      const slot = this.slots[index++ % this.slots.length] as Slot
      const window = this.windowAt(offset)
      at = offset + window.length
      if (isSame(window, this.source, this.options.base)) {
        index--
        continue
      }
      const steps = this.prepare(window, slot)
      // `finishFirst` reports the failure, in its turn.
      steps.catch(() => {})
      this.pending.push({ window, slot, steps })
    }
    while (this.pending.length > 0) await this.finishFirst()
    this.zerosTo(sizeBytes)
    this.options.onProgress?.(sizeBytes)
  }

  /** Returns when nothing is in flight any more. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.pending.map(({ steps }) => steps))
  }

  /** Returns where the next window begins that has to be looked at, from `at` on: a multiple of the window's size. */
  private nextWindow(at: number): number {
    if (this.options.sparseBytes === 0) return at
    const zeros = Math.min(
      this.cursor.zerosUntil(at),
      this.baseCursor?.zerosUntil(at) ?? Number.POSITIVE_INFINITY,
    )
    return zeros >= this.options.sizeBytes ? zeros : zeros - (zeros % this.windowBytes)
  }

  private windowAt(offset: number): Window {
    const end = Math.min(offset + this.windowBytes, this.options.sizeBytes)
    return {
      offset,
      length: end - offset,
      pieces: this.cursor.within(offset, end),
      basePieces: this.baseCursor?.within(offset, end) ?? [],
    }
  }

  /** Clones from `offset` on what can be cloned. Returns how much of the disk that covers. */
  private async cloned(offset: number): Promise<number> {
    const { cloner } = this
    const run = cloner?.runAt(offset)
    if (!cloner || !run) return 0
    while (this.pending.length > 0) await this.finishFirst() // rule (1)
    this.zerosTo(offset)
    cloner.take(run)
    this.written = offset + run.length
    this.options.onProgress?.(this.written)
    return run.length
  }

  /** Reads a window, and decides what to do with each of its units. */
  private async prepare(window: Window, slot: Slot): Promise<readonly Step[]> {
    const { offset, length, pieces, basePieces } = window
    const { bytes, base } = slot
    const reads = [this.reader.fill(bytes.subarray(0, length), offset, pieces)]
    if (base) {
      const target = base.subarray(0, length)
      reads.push((this.baseReader as DiskReader).fill(target, offset, basePieces))
    }
    await allDone(reads)
    // A unit that the disk's end cuts is compressed whole.
    clear(bytes, length, Math.min(roundUp(length, this.sink.unitBytes), bytes.length))
    const steps = this.stepsOf(slot, length)
    return this.pack ? this.packed(steps, slot, this.pack) : steps
  }

  private stepsOf({ bytes, base }: Slot, length: number): Step[] {
    const { grainBytes, sink } = this
    const steps: Step[] = []
    for (let start = 0; start < length; start += grainBytes) {
      const end = Math.min(start + grainBytes, length)
      if (base && bytes.compare(base, start, end, start, end) === 0) continue
      const isZero = this.options.sparseBytes > 0 && areZeros(bytes, start, end)
      if (isZero && !base && !sink.storesZeros) continue
      const kind = isZero ? 'zero' : 'write'
      const last = steps.at(-1)
      if (last && last.kind === kind && last.start + last.length === start) {
        last.length += end - start
      } else steps.push({ kind, start, length: end - start })
    }
    return steps
  }

  /** Compresses the units that are to be written. Those that do not become smaller stay as they are. */
  private async packed(steps: readonly Step[], slot: Slot, pack: Pack): Promise<Step[]> {
    const { unitBytes } = this.sink
    const { maxBytes = 0, isAlways = false } = this.sink.packing ?? {}
    // Less than that is not worth reading a unit slowly, and never writing it in place.
    const most = isAlways ? maxBytes : Math.min(maxBytes, unitBytes - unitBytes / LEAST_SAVED)
    const results: (Step | Promise<Step>)[] = []
    for (const step of steps) {
      if (step.kind !== 'write') {
        results.push(step)
        continue
      }
      const end = step.start + step.length
      for (let start = step.start; start < end; start += unitBytes) {
        const unit = slot.bytes.subarray(start, start + unitBytes)
        const at = (start / unitBytes) * maxBytes
        const target = (slot.packed as Buffer).subarray(at, at + most)
        const plain = { kind: 'write' as const, start, length: Math.min(unitBytes, end - start) }
        results.push(
          pack(unit, target).then(bytes =>
            bytes > 0 ? { kind: 'pack', start, packed: target.subarray(0, bytes) } : plain,
          ),
        )
      }
    }
    await allDone(results.map(each => Promise.resolve(each)))
    return merged(await Promise.all(results))
  }

  /** Writes the first of the pending windows. */
  private async finishFirst(): Promise<void> {
    const { window, slot, steps } = this.pending[0] as Prepared
    const { sink } = this
    const found = await steps
    this.pending.shift()
    const { offset, length } = window
    this.zerosTo(offset)
    for (const step of found) {
      const at = offset + step.start
      if (step.kind === 'pack') sink.pack(step.packed, at)
      else if (step.kind === 'zero') sink.zero(at, step.length)
      else sink.write(slot.bytes.subarray(step.start, step.start + step.length), at)
    }
    this.written = offset + length
    this.options.onProgress?.(this.written)
  }

  /** Makes the sink zeros where the windows have left the disk out, up to `offset`. */
  private zerosTo(offset: number): void {
    if (this.sink.storesZeros && offset > this.written) {
      this.sink.zero(this.written, offset - this.written)
    }
    this.written = Math.max(this.written, offset)
  }
}

const roundUp = (bytes: number, unit: number): number => Math.ceil(bytes / unit) * unit

/** Reports whether the window is the same as the base, by the places of its bytes. */
const isSame = (
  { pieces, basePieces }: Window,
  source: ConvertedDisk,
  base: ConvertedDisk | undefined,
): boolean => base !== undefined && samePlaces(pieces, source, basePieces, base)

/** Joins neighbouring steps that write. */
function merged(steps: readonly Step[]): Step[] {
  const all: Step[] = []
  for (const step of steps) {
    const last = all.at(-1)
    const follows =
      step.kind === 'write' && last?.kind === 'write' && last.start + last.length === step.start
    if (follows) last.length += step.length
    else all.push(step)
  }
  return all
}

function packerOrThrow(type: Parameters<typeof packer>[0]): Pack {
  const found = packer(type)
  if (found) return found
  throw new MountError(
    'this machine has no libzstd, which compressing with zstd needs; install it (Debian: libzstd1), or use compression_type=zlib',
  )
}
