/** How a range that shall read as zeros is cut into steps. */
import t from 'tap'
import type { WritableView } from '../../src/image/writing/write-engine.js'
import { nextZeroStep } from '../../src/image/writing/write-steps.js'

const UNIT = 4096

/** A disk in which no two units lie side by side in the file; `zeroed` of them from its start on are zeros. */
function scattered(units: number) {
  const state = { lookups: 0, zeroed: 0 }
  const driver = {
    sizeBytes: units * UNIT,
    zeroUnitBytes: UNIT,
    lookup: (offset: number, length: number) => {
      state.lookups++
      const isZero = offset < state.zeroed * UNIT
      return { kind: isZero ? 'zero' : 'packed', length: Math.min(length, UNIT) }
    },
  }
  return { state, view: { driver, parent: undefined } as unknown as WritableView }
}

t.test('a scattered disk is looked through once, not once a step', async t => {
  const units = 50_000
  const { state, view } = scattered(units)
  let steps = 0
  while (state.zeroed < units) {
    const step = nextZeroStep(view, state.zeroed * UNIT, (units - state.zeroed) * UNIT)
    t.equal(step.kind, 'units')
    state.zeroed += step.length / UNIT
    steps++
  }
  t.ok(steps < units / 50, `${steps} steps`)
  t.ok(state.lookups <= units, `${state.lookups} lookups`)
  const rest = nextZeroStep(view, 0, units * UNIT)
  t.same(rest, { kind: 'done', length: units * UNIT }, 'zeros are gone over at once')
})

t.test('pieces smaller than a unit still make one', async t => {
  const { view } = scattered(4)
  const small = { ...view, driver: { ...view.driver, zeroUnitBytes: 2 * UNIT } }
  t.same(nextZeroStep(small, 0, 4 * UNIT), { kind: 'units', length: 4 * UNIT })
  t.same(nextZeroStep(small, UNIT, 3 * UNIT), { kind: 'bytes', length: UNIT }, 'to the border')
  t.same(nextZeroStep(small, 2 * UNIT, UNIT), { kind: 'bytes', length: UNIT }, 'less than one')
})
