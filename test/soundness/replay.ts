/**
 * Plays a journal again up to a power cut.
 *
 * Writes before the last sync of a file are on the disk. Of later writes, any part
 * may be: each write, punch and truncation is kept or lost, and a write is torn at sectors of 512
 * bytes. A sync that failed keeps nothing: what it was asked for stays in doubt for good, for a kernel
 * forgets what it could not write.
 */
import type { Journal, JournalEntry, MemoryStore } from '../support/stores.js'
import type { Random } from './steps.js'

const SECTOR = 512

type Change<Mark> = Extract<JournalEntry<Mark>, { kind: 'write' | 'punch' | 'truncate' }>

interface Pending<Mark> {
  readonly change: Change<Mark>
  /** A sync that came after it succeeded; it only waits for what stands before it in doubt. */
  isSynced: boolean
}

/**
 * calls: each call is kept or lost by itself.
 * sectors: a sector that is kept is as it stood after the call, with what earlier calls had put there,
 * as a page cache writes it.
 */
export type CutModel = 'calls' | 'sectors'

/** Which of a change's sectors are kept, `index` of the change counted from the oldest in doubt. */
export type Choice = (index: number, sector: number) => boolean

export class Replay<Mark> {
  private readonly durable: MemoryStore[]
  private pendingChanges: Pending<Mark>[] = []
  private position = 0

  constructor(
    private readonly journal: Journal<Mark>,
    bases: readonly MemoryStore[],
    private readonly onMark: (mark: Mark) => void,
  ) {
    this.durable = bases.map(base => base.clone())
  }

  /** How many changes are in doubt. */
  get pending(): number {
    return this.pendingChanges.filter(({ isSynced }) => !isSynced).length
  }

  /** Goes on to just before entry `position`. */
  advance(position: number): void {
    for (; this.position < position; this.position++) {
      const entry = this.journal[this.position] as JournalEntry<Mark>
      if (entry.kind === 'mark') this.onMark(entry.mark)
      else if (entry.kind === 'sync') this.synced(entry.file)
      else if (entry.kind === 'failed sync') this.doubt(entry.file)
      else if (entry.kind === 'replace') this.replaced(entry.file, entry.bytes)
      else this.pendingChanges.push({ change: entry, isSynced: false })
    }
  }

  private readonly doubted = new Set<Pending<Mark>>()

  private doubt(file: number): void {
    for (const pending of this.pendingChanges) {
      if (pending.change.file === file) this.doubted.add(pending)
    }
  }

  private replaced(file: number, bytes: Buffer): void {
    this.pendingChanges = this.pendingChanges.filter(({ change }) => change.file !== file)
    const store = this.durable[file] as MemoryStore
    store.truncate(bytes.length)
    store.write(bytes, 0, bytes.length, 0)
  }

  private synced(file: number): void {
    const rest: Pending<Mark>[] = []
    for (const pending of this.pendingChanges) {
      if (pending.change.file === file && !this.doubted.has(pending)) pending.isSynced = true
      // In order: what comes after one in doubt cannot be applied before it.
      const mayGo =
        pending.isSynced && !rest.some(({ change }) => change.file === pending.change.file)
      if (mayGo) apply(this.durable[pending.change.file] as MemoryStore, pending.change)
      else rest.push(pending)
    }
    this.pendingChanges = rest
  }

  /** The files as a cut leaves them. `keepsSize`: lost writes have still made the file longer. */
  cut(choice: Choice, model: CutModel, keepsSize: boolean): MemoryStore[] {
    const cut = this.durable.map(store => store.clone())
    const whole = this.durable.map(store => store.clone())
    let index = 0
    for (const { change, isSynced } of this.pendingChanges) {
      const target = cut[change.file] as MemoryStore
      const all = whole[change.file] as MemoryStore
      apply(all, change)
      const i = index
      const keeps = isSynced ? () => true : (sector: number) => choice(i, sector)
      if (!isSynced) index++
      if (change.kind === 'truncate') {
        if (keeps(0)) apply(target, change)
      } else if (change.kind === 'punch') {
        if (keeps(0)) apply(target, change)
      } else keepSectors(target, change, keeps, model === 'sectors' ? all : undefined)
    }
    if (keepsSize) {
      cut.forEach((store, file) => {
        const size = whole[file]?.sizeBytes ?? 0
        if (store.sizeBytes < size) store.truncate(size)
      })
    }
    return cut
  }

  /** Lists the changes that no sync covers, and which of them are kept, for a message. */
  describe(choice: Choice): string {
    const lines = this.pendingChanges
      .filter(({ isSynced }) => !isSynced)
      .map(({ change }, i) => {
        const what =
          'at' in change ? `${change.kind} ${change.at}+${lengthOf(change)}` : change.kind
        const sectors = sectorsOf(change)
        const kept = sectors.filter(sector => choice(i, sector)).length
        const part =
          kept === sectors.length
            ? 'kept'
            : kept === 0
              ? 'lost'
              : `${kept} of ${sectors.length} sectors kept`
        return `file ${change.file} ${what}: ${part}`
      })
    return lines.join(', ')
  }
}

const lengthOf = (change: { length: number } | { bytes: Buffer }): number =>
  'bytes' in change ? change.bytes.length : change.length

function sectorsOf<Mark>(change: Change<Mark>): number[] {
  if (change.kind !== 'write') return [0]
  const first = Math.floor(change.at / SECTOR)
  const last = Math.ceil((change.at + change.bytes.length) / SECTOR)
  return Array.from({ length: last - first }, (_, i) => i)
}

function apply<Mark>(store: MemoryStore, change: Change<Mark>): void {
  if (change.kind === 'write') store.write(change.bytes, 0, change.bytes.length, change.at)
  else if (change.kind === 'punch') store.punch(change.at, change.length)
  else store.truncate(change.sizeBytes)
}

const sectorBytes = Buffer.alloc(SECTOR)

/** Runs of kept sectors, from the write or from what `all` has there. */
function keepSectors<Mark>(
  target: MemoryStore,
  change: Change<Mark> & { kind: 'write' },
  keeps: (sector: number) => boolean,
  all: MemoryStore | undefined,
): void {
  const { at, bytes } = change
  const end = at + bytes.length
  const first = Math.floor(at / SECTOR)
  for (const sector of sectorsOf(change)) {
    if (!keeps(sector)) continue
    const from = Math.max(at, (first + sector) * SECTOR)
    const to = Math.min(end, (first + sector + 1) * SECTOR)
    if (!all) {
      target.write(bytes, from - at, to - from, from)
      continue
    }
    const start = (first + sector) * SECTOR
    const got = all.read(sectorBytes, 0, SECTOR, start)
    target.write(sectorBytes, 0, got, start)
  }
}

/** A choice at random: few or many kept, one of all, or all but one; some of them torn. */
export function randomChoice(random: Random, count: number): Choice {
  const shape = random.below(10)
  const only = shape === 0 ? random.below(count) : -1
  const without = shape === 1 ? random.below(count) : -1
  const part = random.pick([0.1, 0.3, 0.5, 0.7, 0.9])
  const tears = random.chance(0.6)
  const salt = random.below(2 ** 31)
  const kept = Array.from({ length: count }, (_, i) =>
    only >= 0 ? i === only : without >= 0 ? i !== without : random.chance(part),
  )
  const torn = kept.map(() => tears && random.chance(0.4))
  return (i, sector) => {
    if (!torn[i]) return kept[i] as boolean
    const hash = Math.imul((i + 1) * 0x9e3779b1 + sector * 0x85ebca6b + salt, 0xc2b2ae35) >>> 0
    return ((hash ^ (hash >>> 15)) & 255) / 256 < part
  }
}
