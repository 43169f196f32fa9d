/** The map of taken sectors against a plain list of them. */
import fc from 'fast-check'
import t from 'tap'
import { SectorMap } from '../../src/formats/check/sector-map.js'
import { holds } from '../support/property.js'

/** Two pages of the map are a window. */
const WINDOW_BYTES = 2 * 4096
const WINDOW_SECTORS = WINDOW_BYTES * 8
const MAX_SECTORS = 3 * WINDOW_SECTORS

/** Places near the ends of words, pages and windows, and others. */
const sector = fc.oneof(
  fc.nat(MAX_SECTORS),
  fc
    .tuple(
      fc.constantFrom(32, 4096 * 8, WINDOW_SECTORS),
      fc.nat(6),
      fc.integer({ min: -1, max: 1 }),
    )
    .map(([unit, count, more]) => Math.max(0, unit * count + more)),
)

t.test('windows have what was taken, and nothing of the window before', async t => {
  const range = fc.tuple(sector, sector).map(([a, b]) => [Math.min(a, b), Math.max(a, b)] as const)
  const tries = await holds(
    fc.tuple(fc.integer({ min: 1, max: MAX_SECTORS }), fc.array(range, { maxLength: 4 })),
    60,
    ([sectors, ranges]) => {
      const taken = new Uint8Array(sectors)
      for (const [from, to] of ranges) taken.fill(1, from, to)
      const map = new SectorMap(sectors, WINDOW_BYTES)
      const free = new Uint8Array(sectors)
      for (let window = 0; window < map.windows; window++) {
        map.begin(window)
        const before = map.end < map.first + 1 || map.isTaken(map.first, map.end)
        if (before) throw new Error(`window ${window} begins with taken sectors`)
        for (const [from, to] of ranges) map.take(from, to)
        let end = -1
        map.eachFree((from, to) => {
          if (from <= end || to <= from) throw new Error(`the run ${from}-${to} follows ${end}`)
          end = to
          free.fill(1, from, to)
        })
        for (const [from, to] of ranges) {
          const [start, stop] = [Math.max(from, map.first), Math.min(to, map.end)]
          if (map.isTaken(from, to) !== start < stop) throw new Error(`isTaken(${from}, ${to})`)
        }
      }
      const wrong = free.findIndex((isFree, i) => isFree === taken[i])
      if (wrong >= 0) throw new Error(`sector ${wrong} is both or neither`)
    },
  )
  t.ok(tries > 0)
})
