/** The steps of a scenario: random, the same for the same seed, and shortened after a failure. */
import { noise } from '../fixtures/model.js'

export type Step =
  | {
      readonly kind: 'write'
      readonly offset: number
      readonly length: number
      readonly seed: number
    }
  /** A write of zeros. */
  | { readonly kind: 'write zeros'; readonly offset: number; readonly length: number }
  /** A discard. */
  | { readonly kind: 'zero'; readonly offset: number; readonly length: number }
  | { readonly kind: 'flush' }
  | { readonly kind: 'grow'; readonly sizeBytes: number }
  /** Closes the disk and opens it again. */
  | { readonly kind: 'reopen' }

const known = new WeakMap<Step, Buffer>()

/** What a step writes; undefined where it writes nothing. Nobody changes it: it is made once. */
export function bytesOf(step: Step): Buffer | undefined {
  if (step.kind !== 'write' && step.kind !== 'write zeros') return undefined
  const bytes =
    known.get(step) ??
    (step.kind === 'write' ? noise(step.length, step.seed) : Buffer.alloc(step.length))
  known.set(step, bytes)
  return bytes
}

export function applyTo(disk: Buffer, step: Step): void {
  if (!('offset' in step)) return
  const bytes = bytesOf(step)
  if (bytes) bytes.copy(disk, step.offset)
  else disk.fill(0, step.offset, step.offset + step.length)
}

export const show = (steps: readonly Step[]): string =>
  steps
    .map(step => {
      if (step.kind === 'grow') return `grow ${step.sizeBytes}`
      if (!('offset' in step)) return step.kind
      return `${step.kind} ${step.offset}+${step.length}${'seed' in step ? ` #${step.seed}` : ''}`
    })
    .join('; ')

/** Returns random whole numbers below a limit; the same for the same seed. */
export class Random {
  private state: number

  constructor(seed: number) {
    this.state = (Math.imul(seed, 0x9e3779b1) ^ 0x5bd1e995) >>> 0
  }

  below(limit: number): number {
    this.state = (this.state + 0x6d2b79f5) >>> 0
    let x = this.state
    x = Math.imul(x ^ (x >>> 15), x | 1)
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61)
    return Math.floor((((x ^ (x >>> 14)) >>> 0) / 2 ** 32) * limit)
  }

  chance(part: number): boolean {
    return this.below(1000) < part * 1000
  }

  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)] as T
  }
}

export interface Geometry {
  readonly sizeBytes: number
  /** Bytes of a cluster. */
  readonly cluster: number
  /** The size it may grow to; undefined where it cannot. */
  readonly growsTo?: number | undefined
  /** In bytes: a range that always reads as zeros and takes no other write. */
  readonly unwritable?: Range | undefined
}

/**
 * Steps that meet each other: most of them hit a few clusters, so that what is written is overwritten,
 * freed and allocated again, across flushes.
 */
export function randomSteps(seed: number, count: number, geometry: Geometry): Step[] {
  const random = new Random(seed)
  let { sizeBytes } = geometry
  const { cluster, growsTo, unwritable } = geometry
  const hot = Array.from({ length: 3 }, () => random.below(Math.ceil(sizeBytes / cluster)))
  const steps: Step[] = []
  for (let i = 0; steps.length < count; i++) {
    const roll = random.below(100)
    if (roll < 16) steps.push({ kind: 'flush' })
    else if (roll < 19) steps.push({ kind: 'reopen' })
    else if (roll < 24 && growsTo !== undefined && sizeBytes < growsTo) {
      sizeBytes = Math.min(growsTo, sizeBytes + (1 + random.below(4 * cluster)) * 512)
      steps.push({ kind: 'grow', sizeBytes })
    } else {
      const kind = roll < 40 ? 'zero' : roll < 48 ? 'write zeros' : 'write'
      const range = randomRange(random, sizeBytes, cluster, hot)
      if (kind !== 'zero' && unwritable && meet(range, unwritable)) continue
      steps.push(kind === 'write' ? { kind, ...range, seed: seed * 1000 + i } : { kind, ...range })
    }
  }
  return steps
}

interface Range {
  readonly offset: number
  readonly length: number
}

const meet = (a: Range, b: Range): boolean =>
  a.offset < b.offset + b.length && b.offset < a.offset + a.length

function randomRange(
  random: Random,
  sizeBytes: number,
  cluster: number,
  hot: readonly number[],
): Range {
  const clusters = Math.ceil(sizeBytes / cluster)
  const first = random.chance(0.7) ? random.pick(hot) + random.below(3) : random.below(clusters)
  const start = Math.min(first, clusters - 1) * cluster
  const shape = random.below(10)
  const [within, length] =
    shape < 3
      ? [0, cluster * (1 + random.below(3))]
      : shape < 5
        ? [512 * random.below(cluster / 512), 512 * (1 + random.below(8))]
        : shape < 7
          ? [random.below(cluster), 1 + random.below(700)]
          : shape < 9
            ? [random.below(cluster), 1 + random.below(3 * cluster)]
            : [0, cluster * (4 + random.below(12))]
  const offset = Math.min(start + within, sizeBytes - 1)
  return { offset, length: Math.min(length, sizeBytes - offset) }
}

/** How often fewer steps are tried for a message. */
const MOST_TRIES = process.env.VIMGFS_TEST_LONG === '1' ? 400 : 40

/** Leaves out steps while `fails` still fails, in at most MOST_TRIES tries; returns the rest. */
export function shortest(
  steps: readonly Step[],
  fails: (steps: readonly Step[]) => boolean,
): readonly Step[] {
  let tries = 0
  let current = steps
  for (let size = Math.ceil(current.length / 2); size >= 1; ) {
    let isShorter = false
    for (let from = 0; from < current.length && tries < MOST_TRIES; ) {
      const fewer = current.filter((_, i) => i < from || i >= from + size)
      if (fewer.length < current.length && ++tries && fails(fewer)) {
        current = fewer
        isShorter = true
      } else from += size
    }
    if (tries >= MOST_TRIES) break
    if (!isShorter || size > 1) size = size > 1 ? Math.ceil(size / 2) : 0
  }
  return current
}
