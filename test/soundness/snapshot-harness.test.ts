/** Writers that are wrong on purpose: the power cuts of snapshot-cuts.ts find each of them. */
import t from 'tap'
import type { WritableStore } from '../../src/io/store.js'
import { needs, tempFolder } from '../support/run.js'
import { WrappedStore } from '../support/stores.js'
import { makeKind, RECIPES } from './kinds.js'
import { changesOf } from './snapshot-changes.js'
import { cutSnapshots } from './snapshot-cuts.js'

/** Where the write of the header begins that switches to the new state. */
const HEADER_AT = 24

/** Skips one of the syncs. */
class Unsynced extends WrappedStore {
  private syncs = 0

  constructor(
    inner: WritableStore,
    private readonly skipped: number,
  ) {
    super(inner)
  }

  override sync(): void {
    if (++this.syncs !== this.skipped) super.sync()
  }
}

/** Writes the header in two parts. */
class HeaderInParts extends WrappedStore {
  override write(source: Buffer, start: number, length: number, at: number): void {
    const first = at === HEADER_AT ? 24 : length
    super.write(source, start, first, at)
    if (first < length) super.write(source, start + first, length - first, at + first)
  }
}

/** Writes the header before everything else. */
class HeaderFirst extends WrappedStore {
  private waiting: { readonly bytes: Buffer; readonly at: number }[] | undefined = []

  override write(source: Buffer, start: number, length: number, at: number): void {
    if (this.waiting && at !== HEADER_AT) {
      this.waiting.push({ bytes: Buffer.from(source.subarray(start, start + length)), at })
      return
    }
    super.write(source, start, length, at)
    const { waiting = [] } = this
    this.waiting = undefined
    for (const { bytes, at } of waiting) super.write(bytes, 0, bytes.length, at)
  }
}

/** Loses a write: a table that is not there. */
class Forgetful extends WrappedStore {
  private writes = 0

  constructor(
    inner: WritableStore,
    private readonly lost: number,
  ) {
    super(inner)
  }

  override write(source: Buffer, start: number, length: number, at: number): void {
    if (++this.writes !== this.lost) super.write(source, start, length, at)
  }
}

const FLAWS: Record<string, (store: WritableStore) => WritableStore> = {
  'no sync before the header': store => new Unsynced(store, 1),
  'no sync before old tables are given back': store => new Unsynced(store, 2),
  'the header in two writes': store => new HeaderInParts(store),
  'the header first': store => new HeaderFirst(store),
  'the first write is lost': store => new Forgetful(store, 1),
  'the second write is lost': store => new Forgetful(store, 2),
  'the third write is lost': store => new Forgetful(store, 3),
}

t.test('every flaw is found, in every change', needs('qemu-img', 'qemu-io'), async t => {
  const recipe = RECIPES.find(({ title }) => title === 'snapshots, 512')
  if (!recipe) throw new Error('no such kind')
  const kind = await makeKind(recipe, tempFolder(t))
  const options = { seed: 1, perPlace: 20, allUpTo: 5, goesOnEvery: 1000 }
  for (const change of changesOf(kind)) {
    t.doesNotThrow(() => cutSnapshots(kind, change, options), `${change.title}: the right writer`)
    for (const [title, flaw] of Object.entries(FLAWS)) {
      // This one writes a table of zeros first, to space that reads as zeros.
      if (change.title === 'make it empty' && title === 'the first write is lost') continue
      t.throws(() => cutSnapshots(kind, change, { ...options, flaw }), `${change.title}: ${title}`)
    }
  }
})
