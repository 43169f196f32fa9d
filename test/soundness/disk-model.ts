/**
 * What a disk may hold: after each step, and after a power cut or an error.
 *
 * The unit is the sector of 512 bytes. Each has what it must read as now, and, since the last flush
 * that returned, all that it held before: after a cut it reads as any one of these, never as anything
 * else. A flush that returns leaves one.
 */
import { applyTo, type Step } from './steps.js'

export const SECTOR = 512

/**
 * exactly: a sector is one of its versions, whole, as a disk keeps it.
 * mixed: each byte is that byte of one of the versions: where two writes into one sector were kept and
 * dropped apart, or one was cut within the sector.
 */
export type Strictness = 'exactly' | 'mixed'

export class DiskModel {
  private content: Buffer
  private readonly versions = new Map<number, Buffer[]>()
  /** Sizes that the disk may have. */
  private sizes: Set<number>
  private isSizeInDoubt = false

  constructor(content: Buffer) {
    this.content = Buffer.from(content)
    this.sizes = new Set([content.length])
  }

  get sizeBytes(): number {
    return this.content.length
  }

  /** What it reads as while all is well. */
  get now(): Buffer {
    return this.content
  }

  read(offset: number, length: number): Buffer {
    return this.content.subarray(offset, offset + length)
  }

  /** A step has begun: from now on, what it writes may be there. */
  begin(step: Step): void {
    if (step.kind === 'grow') {
      this.content = Buffer.concat([this.content], Math.max(step.sizeBytes, this.sizeBytes))
      this.sizes.add(this.sizeBytes)
    }
    if (!('offset' in step)) return
    const last = Math.ceil((step.offset + step.length) / SECTOR)
    for (let sector = Math.floor(step.offset / SECTOR); sector < last; sector++) this.keep(sector)
    applyTo(this.content, step)
  }

  /** Whether a part of the range was written since the last flush that returned. */
  isInDoubt(offset: number, length: number): boolean {
    const first = Math.floor(offset / SECTOR)
    const last = Math.ceil((offset + length) / SECTOR)
    for (let sector = first; sector < last; sector++) if (this.versions.has(sector)) return true
    return false
  }

  /** Sectors that differ from `other` may read as they do there. */
  mayAlsoBe(other: Buffer): void {
    for (let at = 0; at < this.sizeBytes; at += SECTOR) {
      const there = Buffer.from(other.subarray(at, at + SECTOR))
      if (!there.equals(this.content.subarray(at, at + SECTOR))) {
        this.versions.set(at / SECTOR, [there])
      }
    }
  }

  /** A flush has returned: earlier writes are there to stay. */
  flushed(): void {
    this.versions.clear()
    if (!this.isSizeInDoubt) this.sizes = new Set([this.sizeBytes])
  }

  /**
   * A step that had begun failed with an error, and the disk now reads as `actual`: each byte of its
   * range as before or as after, and the rest as if nothing had happened. From then on it stays so.
   * @param isReadOnly nothing is written any more: then nobody knows whether the disk has grown
   */
  failed(step: Step, actual: Buffer, what: string, isReadOnly = false): void {
    if (step.kind === 'grow') {
      this.content = padded(this.content, actual.length)
      this.isSizeInDoubt ||= isReadOnly
    }
    if ('offset' in step) this.settle(step.offset, step.length, actual)
    this.checkNow(actual, what)
  }

  private settle(offset: number, length: number, actual: Buffer): void {
    const last = Math.ceil((offset + length) / SECTOR)
    for (let sector = Math.floor(offset / SECTOR); sector < last; sector++) {
      const old = this.versions.get(sector)?.at(-1)
      this.keep(sector)
      for (let at = sector * SECTOR; at < Math.min((sector + 1) * SECTOR, actual.length); at++) {
        if (actual[at] === old?.[at % SECTOR]) this.content[at] = actual[at] as number
      }
    }
  }

  /** What a sector holds may be found there after a cut, until the next flush. */
  private keep(sector: number): void {
    const kept = this.versions.get(sector)
    const version = Buffer.from(this.content.subarray(sector * SECTOR, (sector + 1) * SECTOR))
    if (kept) kept.push(version)
    else this.versions.set(sector, [version])
  }

  /** Throws unless `actual` is the disk as it is now, without a cut. */
  checkNow(actual: Buffer, what: string): void {
    if (actual.equals(this.content)) return
    if (actual.length !== this.sizeBytes) {
      throw new Error(`${what}: ${actual.length} bytes, not ${this.sizeBytes}`)
    }
    const at = differs(actual, this.content, 0, actual.length)
    throw new Error(`${what}: ${this.describe(at, actual)}`)
  }

  /** Throws unless `actual` may be the disk after a cut. */
  check(actual: Buffer, strictness: Strictness, what = 'the disk'): void {
    if (!this.sizes.has(actual.length)) {
      throw new Error(`${what} has ${actual.length} bytes, not ${[...this.sizes].join(' or ')}`)
    }
    // All that lies between the sectors in doubt is as it is now.
    let from = 0
    for (const sector of [...this.versions.keys()].sort((a, b) => a - b)) {
      const at = Math.min(sector * SECTOR, actual.length)
      const end = Math.min(at + SECTOR, actual.length)
      if (at > from) this.requireSame(actual, from, at, what)
      if (end > at && !this.allows(sector, actual.subarray(at, end), strictness)) {
        throw new Error(`${what}: ${this.describe(differs(actual, this.content, at, end), actual)}`)
      }
      from = end
    }
    this.requireSame(actual, from, actual.length, what)
  }

  private requireSame(actual: Buffer, from: number, to: number, what: string): void {
    if (actual.compare(this.content, from, to, from, to) === 0) return
    throw new Error(`${what}: ${this.describe(differs(actual, this.content, from, to), actual)}`)
  }

  private allows(sector: number, actual: Buffer, strictness: Strictness): boolean {
    const versions = this.versions.get(sector)
    if (!versions) return false
    const current = this.content.subarray(sector * SECTOR, sector * SECTOR + actual.length)
    if (current.equals(actual)) return true
    const all = [current, ...versions.map(version => padded(version, actual.length))]
    if (all.some(version => version.equals(actual))) return true
    if (strictness === 'exactly') return false
    return actual.every((byte, i) => all.some(version => version[i] === byte))
  }

  private describe(at: number, actual: Buffer): string {
    const sector = Math.floor(at / SECTOR)
    const start = sector * SECTOR
    const versions = this.versions.get(sector) ?? []
    const show = (bytes: Buffer) => bytes.subarray(at - start, at - start + 8).toString('hex')
    const allowed = [this.content.subarray(start, start + SECTOR), ...versions].map(show)
    const kind = versions.length === 0 ? 'flushed' : 'not flushed'
    const found = show(actual.subarray(start, start + SECTOR))
    return `byte ${at} (sector ${sector}, ${kind}) reads ${found}, not ${[...new Set(allowed)].join(' or ')}`
  }
}

/** Where two buffers first differ from `from` on; -1 where they do not. Halves what differs: compare() is fast. */
function differs(a: Buffer, b: Buffer, from: number, to: number): number {
  if (a.compare(b, from, to, from, to) === 0) return -1
  let [first, end] = [from, to]
  for (let step = SECTOR; end - first > SECTOR; ) {
    const middle = Math.min(first + step, end)
    if (a.compare(b, first, middle, first, middle) === 0) {
      first = middle
      step *= 2
    } else {
      end = middle
      step = Math.max(SECTOR, Math.floor((end - first) / 2))
    }
  }
  while (a[first] === b[first]) first++
  return first
}

/** A disk that grew may have had a shorter last sector. */
const padded = (version: Buffer, length: number): Buffer =>
  version.length >= length ? version.subarray(0, length) : Buffer.concat([version], length)
