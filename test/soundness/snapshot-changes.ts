/** Changes of an image's snapshots, and what the image shows before and after each. */
import { readHeader } from '../../src/formats/qcow2/header.js'
import { makeEmpty } from '../../src/formats/qcow2/make-empty.js'
import { recover } from '../../src/formats/qcow2/recovery.js'
import { qcow2SnapshotWriter } from '../../src/formats/qcow2/snapshot/snapshot-writer.js'
import type { WritableStore } from '../../src/io/store.js'
import { ReusedBuffers } from '../support/image.js'
import type { MemoryStore } from '../support/stores.js'
import { openWritable, readImage } from '../support/writable.js'
import { judge, type Verdict } from './judge.js'
import { diskFiles, type Kind } from './kinds.js'
import { act, isPossible } from './scenario.js'
import { randomSteps } from './steps.js'

/** The content that an image shows. */
export interface Shown {
  readonly disk: Buffer
  readonly snapshots: readonly Buffer[]
}

export interface SnapshotChange {
  readonly title: string
  /** The image with which it begins. */
  readonly base: MemoryStore
  readonly before: Shown
  readonly after: Shown
  run(store: WritableStore): void
}

const named = (tag: string) => ({ name: Buffer.from(tag), dateSeconds: 1e9, dateNanoseconds: 5e8 })

/** Returns a change of each sort that a kind of image allows: none if its counts are too narrow for a snapshot. */
export function changesOf(kind: Kind): SnapshotChange[] {
  const { create, delete: remove, revert } = qcow2SnapshotWriter
  const first = kind.image.clone()
  recover(first)
  const start = shownBy(kind, first)
  const taken = start.snapshots.length
  if (!canHoldMore(first, taken)) return []
  const changes = [
    change(
      kind,
      'create',
      first,
      { ...start, snapshots: [...start.snapshots, start.disk] },
      store => create(store, named('new')),
    ),
  ]
  const base = first.clone()
  create(base, named('made here'))
  write(kind, base, 1)
  if (canHoldMore(base, taken + 1)) {
    create(base, named('made here, too'))
    write(kind, base, 2)
  }
  const { disk, snapshots } = shownBy(kind, base)
  const last = snapshots.length - 1
  const kept = [...snapshots, disk]
  changes.push(
    change(kind, 'delete the last', base, { disk, snapshots: snapshots.slice(0, -1) }, store =>
      remove(store, [last]),
    ),
    change(kind, 'delete all', base, { disk, snapshots: [] }, store =>
      remove(
        store,
        snapshots.map((_, index) => index),
      ),
    ),
  )
  const beneath = Buffer.alloc(disk.length)
  kind.parent?.copy(beneath)
  changes.push(
    change(kind, 'make it empty', base, { disk: beneath, snapshots }, store =>
      makeEmpty(store, readHeader(store)),
    ),
  )
  if (readHeader(base).bitmaps) return changes
  const target = snapshots[taken] as Buffer
  changes.push(
    change(kind, 'revert, discarding', base, { disk: target, snapshots }, store => {
      revert(store, taken, undefined)
    }),
  )
  if (!canHoldMore(base, snapshots.length)) return changes
  changes.push(
    change(kind, 'revert, keeping', base, { disk: target, snapshots: kept }, store => {
      if (!revert(store, taken, named('kept')).hasKept) throw new Error('nothing was kept')
    }),
  )
  return changes
}

/** Whether the counts of an image with so many snapshots are wide enough for one more. */
const canHoldMore = (store: MemoryStore, snapshots: number): boolean =>
  2 ** (2 ** readHeader(store).refcountOrder) - 1 > snapshots + 1

const change = (
  kind: Kind,
  title: string,
  base: MemoryStore,
  after: Shown,
  run: (store: WritableStore) => void,
): SnapshotChange => ({ title, base, before: shownBy(kind, base), after, run })

/** Writes here and there, and closes the image. */
function write(kind: Kind, store: WritableStore, seed: number): void {
  const opened = openWritable(diskFiles(kind, [store]))
  for (const step of randomSteps(seed, 8, { ...kind, growsTo: undefined })) {
    if (step.kind === 'flush' || step.kind === 'reopen') continue
    if (isPossible(step, opened.disk.sizeBytes)) act(opened, step)
  }
  opened.disk.close()
}

/** @param reused as for readImage */
const shownBy = (kind: Kind, store: MemoryStore, reused?: ReusedBuffers): Shown =>
  readImage(diskFiles(kind, [store]), reused)

/** For what is only looked at: twice, where one is compared with the other. */
const [SHOWN, SHOWN_AFTER] = [new ReusedBuffers(), new ReusedBuffers()]

const verdicts = new WeakMap<MemoryStore, Verdict>()

/** The verdict of an image that nobody writes. */
function verdictOf(base: MemoryStore): Verdict {
  const known = verdicts.get(base) ?? judge(base)
  verdicts.set(base, known)
  return known
}

/**
 * Returns which of the two states the image has: wholly, with nothing leaked that did not leak before. Throws if it has neither.
 */
export function stateOf(
  kind: Kind,
  { base, before, after }: SnapshotChange,
  store: MemoryStore,
): 'before' | 'after' {
  const shown = shownBy(kind, store, SHOWN)
  const state = isSame(shown, after) ? 'after' : isSame(shown, before) ? 'before' : undefined
  if (state === undefined) {
    throw new Error(`it shows neither state: ${shown.snapshots.length} snapshots`)
  }
  const verdict = judge(store)
  const old = verdictOf(base)
  if (verdict.corruptions.length > 0) throw new Error(verdict.corruptions.join('; '))
  if (verdict.leaks > old.leaks) throw new Error(`${verdict.leaks} clusters leak, not ${old.leaks}`)
  if (verdict.isDirty || verdict.isMarkedCorrupt) throw new Error('it is marked')
  if (!verdict.luksHeader.equals(old.luksHeader)) throw new Error('the LUKS header has changed')
  const names = (bitmaps: typeof old.bitmaps) => bitmaps.map(({ name, isInUse }) => [name, isInUse])
  if (JSON.stringify(names(verdict.bitmaps)) !== JSON.stringify(names(old.bitmaps))) {
    throw new Error('its bitmaps have changed')
  }
  return state
}

const isSame = (one: Shown, other: Shown): boolean =>
  one.disk.equals(other.disk) &&
  one.snapshots.length === other.snapshots.length &&
  one.snapshots.every((snapshot, i) => snapshot.equals(other.snapshots[i] as Buffer))

/** Throws unless the image can be written, and is sound and shows its snapshots afterwards. */
export function goesOn(kind: Kind, store: MemoryStore, seed: number): void {
  const { snapshots } = shownBy(kind, store, SHOWN)
  write(kind, store, seed)
  const after = shownBy(kind, store, SHOWN_AFTER)
  if (!isSame({ ...after, snapshots }, after)) throw new Error('a write has changed a snapshot')
  const { corruptions } = judge(store)
  if (corruptions.length > 0) throw new Error(`after writing: ${corruptions.join('; ')}`)
}
