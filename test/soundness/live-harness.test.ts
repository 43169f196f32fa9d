/** Changes of mounted images that are wrong on purpose: the model and the power cuts of live.test.ts find each of them. */
import t from 'tap'
import { changeQuietly, type QuietChange } from '../../src/image/writing/quiet-change.js'
import type { WritableDisk } from '../../src/formats/writable.js'
import { needs, tempFolder } from '../support/run.js'
import { seedOf } from './cut-suite.js'
import { makeKind, RECIPES } from './kinds.js'
import { callsOfLive, cutLive, failLive } from './live-cuts.js'
import { liveSteps } from './live-run.js'

type Quietly = typeof changeQuietly

/** Each makes the change, and lacks something. */
const FLAWS: Record<string, Quietly> = {
  'what was written stays in memory': (_disk, { act, alone, show }) =>
    act({ beforeSwitch: alone, afterSwitch: () => show(true) }),
  'the old caches and tables stay': (disk, change) =>
    changeQuietly(disk, { ...change, show: () => {} }),
  'the disk is shown anew too early': (disk, change) =>
    changeQuietly(disk, {
      ...change,
      alone: () => change.show(true),
      show: hasChanged => {
        if (!hasChanged) change.show(false)
      },
    }),
  'a write goes on while the tables change': (disk, change) =>
    changeQuietly(disk, { ...change, alone: () => writing(disk, change) }),
  'the old disk is flushed after the change': (disk, change) => {
    const result = changeQuietly(disk, { ...change, alone: () => writing(disk, change) })
    disk.flush()
    return result
  },
}

/** Writes where no model expects it. */
function writing<T>(disk: WritableDisk, { alone }: QuietChange<T>): void {
  alone()
  const bytes = Buffer.alloc(3000, 'x')
  disk.write(bytes, 0, bytes.length, 1024)
}

t.test('every flaw is found', needs('qemu-img', 'qemu-io'), async t => {
  const recipe = RECIPES.find(({ title }) => title === 'snapshots, 512')
  if (!recipe) throw new Error('no such kind')
  const kind = await makeKind(recipe, tempFolder(t))
  const seed = seedOf(recipe.title, 1)
  const steps = liveSteps(seed, 5, kind)
  const options = { seed, cuts: 24, goesOnEvery: 12 }
  t.doesNotThrow(() => cutLive(kind, steps, options), 'the right one')
  for (const [title, quietly] of Object.entries(FLAWS)) {
    t.throws(() => cutLive(kind, steps, { ...options, quietly }), title)
  }
  const { sync } = callsOfLive(kind, steps)
  const failEach = (quietly?: Quietly) => {
    for (let nth = 0; nth < sync; nth++) {
      const fault = { nth, calls: ['sync'] as const, errno: 5, persists: false, part: 0 }
      failLive(kind, steps, fault, quietly)
    }
  }
  t.doesNotThrow(() => failEach(), 'the right one, after an error')
  t.throws(() => failEach(goingOn), 'the old disk goes on after the change may have become valid')
})

/** The disk never becomes read-only. */
const goingOn: Quietly = (disk, change) =>
  changeQuietly(
    new Proxy(disk, {
      get: (target, key) => {
        if (key === 'end') return () => {}
        const value = Reflect.get(target, key, target)
        return typeof value === 'function' ? value.bind(target) : value
      },
    }),
    { ...change, show: hasChanged => hasChanged && change.show(true) },
  )
