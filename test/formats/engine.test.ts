/** The engine over drivers of a few lines: clipping, parents, the ends of files. */
import t from 'tap'
import type { Extent, FormatDriver, View } from '../../src/formats/driver.js'
import { readView, walkView } from '../../src/image/reading/engine.js'
import { ImageError } from '../../src/errors.js'
import type { Store } from '../../src/io/store.js'
import { noise } from '../fixtures/model.js'
import { readAt } from '../support/image.js'

class MemoryStore implements Store {
  readonly path = '/memory'
  constructor(
    private readonly content: Buffer,
    readonly sizeBytes = content.length,
  ) {}
  read(target: Buffer, start: number, length: number, at: number): number {
    if (at >= this.content.length) return 0
    return this.content.copy(target, start, at, Math.min(at + length, this.content.length))
  }
  nextData = (at: number) => at
  nextHole = () => this.sizeBytes
}

type Step =
  | { kind: 'zero' | 'parent' | 'packed'; length: number }
  | { kind: 'data'; length: number; at: number }

/** A disk of these steps, one after the other; packed ones hold 'p'. */
function driverOf(steps: readonly Step[], store: Store, unitBytes = 1): FormatDriver {
  const sizeBytes = steps.reduce((sum, { length }) => sum + length, 0)
  return {
    sizeBytes,
    unitBytes,
    lookup(offset, length): Extent {
      let start = 0
      for (const step of steps) {
        const inside = offset - start
        if (inside < step.length) {
          const rest = Math.min(length, step.length - inside)
          if (step.kind === 'data')
            return { kind: 'data', length: rest, store, at: step.at + inside }
          if (step.kind !== 'packed') return { kind: step.kind, length: rest }
          const cluster = Buffer.alloc(step.length, 'p')
          return {
            kind: 'packed',
            length: rest,
            skip: inside,
            wholeBytes: step.length,
            unpack: () => cluster,
            unpackInto: (target: Buffer) => cluster.copy(target),
            // Where its bytes are packed is nothing to the engine.
          } as unknown as Extent
        }
        start += step.length
      }
      throw new Error(`looked up ${offset} of ${sizeBytes}`)
    },
  }
}

const store = new MemoryStore(Buffer.from('0123456789'))
const base: View = {
  driver: driverOf([{ kind: 'data', length: 10, at: 0 }], store),
  parent: undefined,
}
const top: View = {
  driver: driverOf(
    [
      { kind: 'parent', length: 3 },
      { kind: 'zero', length: 2 },
      { kind: 'packed', length: 2 },
      { kind: 'parent', length: 5 },
      { kind: 'data', length: 3, at: 1 },
    ],
    store,
  ),
  parent: base,
}
const DISK = Buffer.from('012\0\0pp789\0\x00123', 'latin1')

t.test('any part of a disk', async t => {
  t.equal(top.driver.sizeBytes, DISK.length)
  let wrong = 0
  for (let offset = 0; offset <= DISK.length + 2; offset++) {
    for (let length = 0; length <= DISK.length + 2; length++) {
      const expected = Buffer.alloc(length)
      DISK.copy(expected, 0, Math.min(offset, DISK.length), offset + length)
      if (!readAt(top, offset, length).equals(expected)) wrong++
    }
  }
  t.equal(wrong, 0)
})

t.test('only the part of the target that is asked for is touched', async t => {
  const target = Buffer.alloc(20, '.')
  readView(top, target, 5, 6, 2)
  t.equal(target.toString('latin1'), '.....2\0\0pp7.........')
})

t.test('a walk meets the bytes finally shown, and no parent', async t => {
  const met: string[] = []
  t.ok(
    walkView(top, 1, 20, ({ kind, length }, offset) => met.push(`${offset} ${kind} ${length}`) > 0),
  )
  t.same(met, [
    '1 data 2',
    '3 zero 2',
    '5 packed 2',
    '7 data 3',
    '10 zero 2',
    '12 data 3',
    '15 zero 6',
  ])
  t.notOk(
    walkView(top, 0, 15, (_, offset) => offset < 5),
    'and stops where it is told to',
  )
})

t.test('the end of a file', async t => {
  const file = new MemoryStore(noise(1000, 1))
  const read = (at: number, length: number) => {
    const driver = driverOf([{ kind: 'data', length, at }], file, 512)
    return readAt({ driver, parent: undefined }, 0, length)
  }
  t.test('inside a cluster: zeros up to its end', async t => {
    t.ok(read(512, 512).equals(Buffer.concat([noise(1000, 1).subarray(512), Buffer.alloc(24)])))
    t.ok(read(1000, 24).equals(Buffer.alloc(24)), 'even where nothing of it is there')
  })
  const beyond = [
    { title: 'a cluster past it', at: 1024, length: 512 },
    { title: 'a run over it', at: 512, length: 1024 },
    { title: 'far past it', at: 2 ** 50, length: 1 },
  ]
  for (const { title, at, length } of beyond) {
    t.test(title, async t =>
      t.throws(() => read(at, length), { code: 'CORRUPT', message: /beyond the end/ }),
    )
  }
  t.test('a file that has become shorter', async t => {
    const shrunk = new MemoryStore(noise(1000, 1), 4096)
    const driver = driverOf([{ kind: 'data', length: 512, at: 1024 }], shrunk, 512)
    const error = { code: 'CORRUPT', message: /become shorter/ }
    t.throws(() => readAt({ driver, parent: undefined }, 0, 512), error)
  })
})

t.test('errors get the place on the disk where a lookup or a cluster failed', async t => {
  const damage = () => {
    throw new ImageError('CORRUPT', 'damage', { path: '/memory' })
  }
  const contextOf = (act: () => void): object => {
    try {
      act()
    } catch (error) {
      return (error as ImageError).context
    }
    return {}
  }
  const broken: FormatDriver = { sizeBytes: 8, unitBytes: 1, lookup: damage }
  const unpacking: FormatDriver = {
    sizeBytes: 8,
    unitBytes: 1,
    lookup: (_, length) =>
      ({
        ...{ kind: 'packed', length, skip: 0, wholeBytes: length },
        unpack: damage,
        unpackInto: damage,
      }) as unknown as Extent,
  }
  for (const below of [broken, unpacking]) {
    const above = driverOf(
      [
        { kind: 'data', length: 5, at: 0 },
        { kind: 'parent', length: 3 },
      ],
      store,
    )
    const view: View = { driver: above, parent: { driver: below, parent: undefined } }
    t.match(
      contextOf(() => readView(view, Buffer.alloc(8), 0, 8, 0)),
      { offset: 5 },
    )
    t.match(
      contextOf(() => readView(view, Buffer.alloc(2), 0, 2, 6)),
      { offset: 6 },
    )
  }
  const view: View = { driver: broken, parent: undefined }
  const walk = () => void walkView(view, 3, 2, () => true)
  t.match(contextOf(walk), { offset: 3, path: '/memory' })
})
