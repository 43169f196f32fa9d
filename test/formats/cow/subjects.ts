/** Cow images as what scenarios of writing run on (test/soundness). */
import { checkCow } from '../../../src/formats/cow/check.js'
import type { WritableStore } from '../../../src/io/store.js'
import {
  buildCow,
  type BuiltCow,
  type CowSpec,
  LAYOUTS,
  type Layout,
} from '../../fixtures/cow-builder.js'
import { noise } from '../../fixtures/model.js'
import { DiskModel, type Strictness } from '../../soundness/disk-model.js'
import { type Finding, goOn, type Subject } from '../../soundness/scenario.js'
import type { Geometry } from '../../soundness/steps.js'
import { MemoryStore } from '../../support/stores.js'
import { openCow, readCow, SECTOR, sectorsOf } from './images.js'

export interface Kind extends Geometry {
  readonly title: string
  readonly built: BuiltCow
  readonly image: MemoryStore
  readonly parent: Buffer | undefined
}

/** One more than a multiple of 8: UML of version 2 has no count of the last one's bit. */
const SECTORS = 401
const WRITTEN = [
  [0, 1],
  [5, 20],
  [64, 3],
  [130, 70],
  [399, 2],
] as const

interface Recipe {
  readonly title: string
  readonly layout: Layout
  readonly sectors?: number
  readonly odd?: number
  readonly runs?: readonly (readonly [number, number])[]
  /** Sectors without a bit that hold something, as a crash leaves them. */
  readonly stray?: readonly (readonly [number, number])[]
  /** Of the layer below, in bytes. */
  readonly parentBytes?: number
  readonly unwritable?: number
}

const RECIPES: readonly Recipe[] = [
  ...LAYOUTS.map(layout => ({
    title: `${layout}, over a parent`,
    layout,
    runs: WRITTEN,
    parentBytes: SECTORS * SECTOR,
  })),
  { title: 'empty, over a parent', layout: 'qemu-x86-64', parentBytes: SECTORS * SECTOR },
  { title: 'alone', layout: 'qemu-x86-64', runs: WRITTEN },
  { title: 'alone, empty', layout: 'qemu-i386' },
  {
    title: 'what a crash has left, over a parent',
    layout: 'qemu-x86-64',
    runs: WRITTEN,
    stray: [
      [2, 2],
      [30, 30],
      [210, 180],
    ],
    parentBytes: 90_000,
  },
  {
    title: 'what a crash has left, alone',
    layout: 'uml-3',
    runs: WRITTEN,
    stray: [[25, 100]],
  },
  {
    title: 'a size that is no multiple of 512',
    layout: 'uml-3',
    odd: 112,
    runs: WRITTEN,
    parentBytes: 100_000,
  },
  { title: 'sectors without a bit', layout: 'uml-2', sectors: 488 * 8 + 3, unwritable: 3 },
]

const BACKING = 'base.raw'

export const KINDS: readonly Kind[] = RECIPES.map(recipe => {
  const { title, layout, sectors = SECTORS, odd = 0, runs = [], stray = [], parentBytes } = recipe
  const sizeBytes = sectors * SECTOR - odd
  const spec: CowSpec = { layout, sizeBytes, sectors: sectorsOf(runs), backing: BACKING }
  const built = buildCow(spec)
  const image = new MemoryStore('disk.cow', built.bytes)
  for (const sector of sectorsOf(stray).keys()) {
    image.write(noise(SECTOR, sector + 5000), 0, SECTOR, built.placeOf(sector))
  }
  const unwritable = recipe.unwritable && {
    offset: (sectors - recipe.unwritable) * SECTOR,
    length: recipe.unwritable * SECTOR,
  }
  return {
    ...{ title, built, image, sizeBytes, cluster: 4096 },
    parent: parentBytes === undefined ? undefined : noise(parentBytes, 31),
    ...(unwritable && { unwritable }),
  }
})

export function cowSubject(kind: Kind): Subject {
  const { title, image, parent, sizeBytes, cluster, unwritable } = kind
  const subject: Subject = {
    ...{ title, sizeBytes, cluster, unwritable },
    files: [image],
    disk: readCow(image, parent),
    leaks: strays(kind, image),
    isHeavy: sizeBytes > 2 ** 20,
    open: ([store]) => openCow(store as WritableStore, parent),
    check: ([store], model, strictness) => judged(kind, store as MemoryStore, model, strictness),
    checkClosed: ([store], model) => {
      const { leaks } = judged(kind, store as MemoryStore, model, 'exactly')
      if (leaks > subject.leaks) throw new Error(`${leaks} sectors leak after a clean close`)
    },
    recover: ([store], steps) => {
      const copy = (store as MemoryStore).clone()
      const model = new DiskModel(readCow(copy, parent))
      goOn(openCow(copy, parent), model, steps)
      judged(kind, copy, model, 'exactly')
    },
    reopened: ([store]) => cowSubject({ ...kind, image: (store as MemoryStore).clone() }),
  }
  return subject
}

/** Nothing changes but the bitmap and the sectors; a bit stays, and what it stands for is in the file. */
function judged(kind: Kind, store: MemoryStore, model: DiskModel, strictness: Strictness): Finding {
  const { built, image, sizeBytes, parent } = kind
  model.check(readCow(store, parent), strictness)
  const [before, now] = [image.bytes(), store.bytes()]
  const sectors = Math.ceil(sizeBytes / SECTOR)
  const bits = Math.min(Math.ceil(sectors / 8), built.dataAt - built.bitmapAt)
  for (const [from, to] of [
    [0, built.bitmapAt],
    [built.bitmapAt + bits, built.dataAt],
  ] as const) {
    const [old, found] = [before.subarray(from, to), now.subarray(from, to)]
    const padded = Buffer.concat([old, Buffer.alloc(to - from - old.length)])
    if (!padded.subarray(0, found.length).equals(found)) throw new Error(`${from}-${to} changed`)
  }
  if (now.length < before.length) throw new Error('the file is shorter')
  for (let sector = 0; sector < Math.min(sectors, bits * 8); sector++) {
    if (isMarked(built, before, sector) && !isMarked(built, now, sector)) {
      throw new Error(`sector ${sector} is not marked any more`)
    }
    const end = built.dataAt + Math.min((sector + 1) * SECTOR, sizeBytes)
    if (isMarked(built, now, sector) && end > now.length) {
      throw new Error(`sector ${sector} is marked and beyond the end of the file`)
    }
  }
  if (checkCow(store).corruptions > 0) throw new Error('vimgfs check finds corruptions')
  return { leaks: strays(kind, store), isDirty: false }
}

const isMarked = ({ bitOf, dataAt }: BuiltCow, bytes: Buffer, sector: number): boolean => {
  const { at, mask } = bitOf(sector)
  return at < dataAt && ((bytes[at] as number) & mask) !== 0
}

/** How many sectors hold something and are not marked. */
function strays(
  { built, sizeBytes }: Pick<Kind, 'built' | 'sizeBytes'>,
  store: MemoryStore,
): number {
  const bytes = store.bytes()
  let found = 0
  for (let sector = 0; sector < Math.ceil(sizeBytes / SECTOR); sector++) {
    if (isMarked(built, bytes, sector)) continue
    const place = built.placeOf(sector)
    if (bytes.subarray(place, place + SECTOR).some(byte => byte !== 0)) found++
  }
  return found
}
