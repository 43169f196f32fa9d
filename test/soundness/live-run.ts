/**
 * Takes and deletes snapshots of a disk, and goes back to them, between its writes: as a mount does it, without a kernel. A model
 * knows the bytes of the disk and of each snapshot, and all of them are compared after each step, also at the moment before a
 * change becomes valid.
 */
import { qcow2SnapshotWriter } from '../../src/formats/qcow2/snapshot/snapshot-writer.js'
import { readHeader } from '../../src/formats/qcow2/header.js'
import { changeQuietly } from '../../src/image/writing/quiet-change.js'
import type { WritableDisk } from '../../src/formats/writable.js'
import type { WritableStore } from '../../src/io/store.js'
import { ReusedBuffers } from '../support/image.js'
import { openWritten } from '../support/store-image.js'
import type { MemoryStore } from '../support/stores.js'
import { type OpenDisk, readDisk, readImage } from '../support/writable.js'
import { DiskModel } from './disk-model.js'
import { diskFiles, type Kind } from './kinds.js'
import { act, checkReads, isPossible } from './scenario.js'
import { Random, randomSteps, type Step } from './steps.js'

export type Change =
  | { readonly kind: 'create' }
  /** Of the snapshots that there are then. */
  | { readonly kind: 'delete'; readonly pick: number }
  | { readonly kind: 'revert'; readonly pick: number; readonly keeps: boolean }

export type LiveStep = Step | { readonly kind: 'change'; readonly change: Change }

/** The bytes that the image shows. */
export interface State {
  readonly disk: Buffer
  readonly snapshots: readonly Buffer[]
}

/** Is told what happens, for power cuts. */
export interface Witness {
  begin(step: Step): void
  flushed(): void
  /** A change begins: the image may have one of these states from now on. */
  changing(possible: readonly State[]): void
  /** It is valid and on the disk, or has not happened: the state is this one. */
  changed(state: State): void
}

/** Returns random steps: `rounds` changes, and writes between them. */
export function liveSteps(seed: number, rounds: number, kind: Kind): LiveStep[] {
  const random = new Random(seed)
  const hasBitmaps = readHeader(kind.image).bitmaps !== undefined
  const steps: LiveStep[] = []
  for (let round = 0; round < rounds; round++) {
    const writes = randomSteps(seed * 100 + round, 4, { ...kind, growsTo: undefined })
    steps.push(...writes.filter(step => step.kind !== 'reopen'))
    const roll = random.below(10)
    const pick = random.below(100)
    // An image with persistent bitmaps is not reverted.
    const change: Change =
      round === 0 || roll < 4
        ? { kind: 'create' }
        : roll < 7 || hasBitmaps
          ? { kind: 'delete', pick }
          : { kind: 'revert', pick, keeps: roll < 9 }
    steps.push({ kind: 'change', change })
  }
  return steps
}

export const NO_WITNESS: Witness = {
  begin: () => {},
  flushed: () => {},
  changing: () => {},
  changed: () => {},
}

const reused = new ReusedBuffers()

export class LiveRun {
  readonly model: { disk: DiskModel; snapshots: readonly Buffer[] }
  opened: OpenDisk
  private tags = 0

  /**
   * @param file what `store` writes to in the end
   * @param quietly makes the changes; tests of the tests give a wrong one
   */
  constructor(
    private readonly kind: Kind,
    private readonly file: MemoryStore,
    private readonly store: WritableStore,
    private readonly witness: Witness = NO_WITNESS,
    private readonly quietly: typeof changeQuietly = changeQuietly,
  ) {
    this.model = { disk: new DiskModel(kind.disk), snapshots: kind.snapshots }
    this.opened = this.open()
  }

  /** Does the steps. Throws what the disk and the changes throw, and for the first byte that is wrong. */
  all(steps: readonly LiveStep[]): void {
    for (const step of steps) this.step(step)
    this.opened.disk.close()
    this.model.disk.flushed()
    this.witness.flushed()
    this.checkAll('in the end')
  }

  step(step: LiveStep): void {
    if (step.kind === 'change') {
      this.change(step.change)
      return
    }
    const { model, opened, witness } = this
    if (!isPossible(step, model.disk.sizeBytes)) return
    if (step.kind === 'flush') {
      opened.disk.flush()
      model.disk.flushed()
      witness.flushed()
      return
    }
    witness.begin(step)
    model.disk.begin(step)
    act(opened, step)
    checkReads(opened, model.disk, step)
  }

  /** Makes a change, if the image has what it needs. */
  private change(change: Change): void {
    const { model, store, witness } = this
    const before: State = { disk: Buffer.from(model.disk.now), snapshots: model.snapshots }
    const count = before.snapshots.length
    if (change.kind !== 'create' && count === 0) return
    const { possible, make } = this.planned(change, before)
    let isNew = false
    const settle = (state: State) => {
      model.disk = new DiskModel(state.disk)
      model.snapshots = state.snapshots
      witness.changed(state)
    }
    try {
      this.quietly(this.opened.disk as WritableDisk, {
        act: steps => {
          // The flush and the close have returned.
          model.disk.flushed()
          witness.flushed()
          witness.changing([before, ...possible])
          make(store, steps)
        },
        alone: () => this.checkAll('in the old state'),
        show: hasChanged => {
          this.opened = this.open()
          isNew = hasChanged
          const { snapshots } = readImage(diskFiles(this.kind, [this.file]), reused)
          const found = possible.find(state => state.snapshots.length === snapshots.length)
          settle(hasChanged && found ? found : before)
        },
        warn: () => {},
      })
    } finally {
      if (isNew || this.opened.disk.failure === '') this.checkAll(`after ${change.kind}`)
    }
  }

  /** Returns the states that a change may have as its result, and the change. */
  private planned(change: Change, { disk, snapshots }: State) {
    const { create, delete: remove, revert } = qcow2SnapshotWriter
    const named = () => ({
      name: Buffer.from(`live ${++this.tags}`),
      dateSeconds: 1e9 + this.tags,
      dateNanoseconds: 0,
    })
    type Steps = Parameters<typeof create>[2]
    if (change.kind === 'create') {
      const possible: State[] = [{ disk, snapshots: [...snapshots, disk] }]
      const make = (store: WritableStore, steps: Steps) => create(store, named(), steps)
      return { possible, make }
    }
    const index = change.pick % snapshots.length
    if (change.kind === 'delete') {
      const possible: State[] = [{ disk, snapshots: snapshots.toSpliced(index, 1) }]
      const make = (store: WritableStore, steps: Steps) => remove(store, [index], steps)
      return { possible, make }
    }
    const target = snapshots[index] as Buffer
    // Nothing is kept where a snapshot shows the same already.
    const possible: State[] = [
      { disk: target, snapshots },
      ...(change.keeps ? [{ disk: target, snapshots: [...snapshots, disk] }] : []),
    ]
    const make = (store: WritableStore, steps: Steps) => {
      revert(store, index, change.keeps ? named() : undefined, steps)
    }
    return { possible, make }
  }

  private open(): OpenDisk {
    return openWritten('qcow2', diskFiles(this.kind, [this.store]))
  }

  /** Compares the disk, as the threads see it, and all snapshots with the model. */
  checkAll(when: string): void {
    const { model, opened, kind, file } = this
    model.disk.checkNow(readDisk(opened), when)
    const { snapshots } = readImage(diskFiles(kind, [file]), reused)
    if (snapshots.length !== model.snapshots.length) {
      throw new Error(`${when}: ${snapshots.length} snapshots, not ${model.snapshots.length}`)
    }
    snapshots.forEach((actual, index) => {
      if (!actual.equals(model.snapshots[index] as Buffer)) {
        throw new Error(`${when}: snapshot ${index + 1} of ${snapshots.length} differs`)
      }
    })
  }
}
