/** Good images with some of their bytes or words changed, headers included: each used like a mount. */
import fc from 'fast-check'
import t from 'tap'
import { ImageError } from '../../../src/errors.js'
import { nextData, nextHole } from '../../../src/image/reading/holes.js'
import { checkQcow } from '../../../src/formats/qcow/check.js'
import { repairQcow } from '../../../src/formats/qcow/repair.js'
import { noise, prose } from '../../fixtures/model.js'
import { buildQcow, type Cluster, HEADER_AT } from '../../fixtures/qcow-builder.js'
import { readAt } from '../../support/image.js'
import { holds } from '../../support/property.js'
import { MemoryStore } from '../../support/stores.js'
import { openQcow, viewQcow } from './disks.js'

/** In a long test 30 times as many. */
const TRIES = 800
const K = 1024
const CLUSTER = 4 * K

const clusters = new Map<number, Cluster>([
  [0, { kind: 'data', bytes: noise(CLUSTER, 1) }],
  [1, { kind: 'data', bytes: noise(CLUSTER, 2) }],
  [2, { kind: 'packed', content: prose(CLUSTER, 3) }],
  [70, { kind: 'packed', content: noise(CLUSTER, 4) }],
  [71, { kind: 'data', bytes: noise(CLUSTER, 5) }],
])
const spec = { sizeBytes: 300 * CLUSTER, l2Bits: 6, clusters, backingName: 'base' }
const bases = [0, 1].map(cryptMethod => buildQcow({ ...spec, cryptMethod }))
const [base] = bases as [ReturnType<typeof buildQcow>]

/** What breaks programs: limits, signs, flags, and places of other things in the file. */
const WORDS = [
  ...[0n, 1n, 2n, 48n, 511n, 512n, 4096n, 2n ** 31n, 2n ** 32n, 2n ** 52n, 2n ** 53n],
  ...[2n ** 62n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n, 2n ** 64n - 512n],
  ...[base.tableAt(0), base.tableAt(1), base.placeOf(0), base.bytes.length].map(BigInt),
]
const PLACES = [
  ...Object.values(HEADER_AT),
  ...[0, 1, 2].map(base.l1EntryAt),
  ...[0, 1, 2, 3, 70, 71].map(base.entryAt),
]
const change = fc.oneof(
  fc.record({
    at: fc.constantFrom(...PLACES),
    bytes: fc.constantFrom(8 as const),
    value: fc.oneof(fc.constantFrom(...WORDS), fc.bigInt(0n, 2n ** 64n - 1n)),
  }),
  fc.record({
    at: fc.nat(base.bytes.length - 9),
    bytes: fc.constantFrom(1 as const),
    value: fc.bigInt(0n, 255n),
  }),
)
const image = fc.record({
  base: fc.constantFrom(...bases),
  changes: fc.array(change, { minLength: 1, maxLength: 4 }),
  cut: fc.constantFrom(0, 0, 0, 1, 700, 9000, base.bytes.length - 50),
})

/** Runs `act`; throws its error again unless it refuses the image, or reports damage, in one line. */
function allowing(act: () => void): void {
  try {
    act()
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    if (error.message.includes('\n') || error.message === '') throw error
  }
}

t.test('changed images are read, checked, written and repaired, or refused', async t => {
  const parent = noise(500 * K, 9)
  const runs = await holds(image, TRIES, ({ base, changes, cut }) => {
    const bytes = Buffer.from(base.bytes)
    for (const { at, bytes: width, value } of changes) {
      if (width === 8) bytes.writeBigUInt64BE(value, at)
      else bytes.writeUInt8(Number(value), at)
    }
    const store = new MemoryStore('disk.qcow', bytes.subarray(0, bytes.length - cut))
    allowing(() => {
      const view = viewQcow(store, parent)
      const { sizeBytes } = view.driver
      for (const place of [0, 9000, 70 * CLUSTER, sizeBytes - 7000, sizeBytes / 2]) {
        const offset = Math.max(0, Math.min(Math.floor(place), sizeBytes - 1))
        allowing(() => readAt(view, offset, 40 * K))
        allowing(() => nextData(view, offset))
        allowing(() => nextHole(view, offset))
      }
    })
    allowing(() => checkQcow(store))
    allowing(() => repairQcow(store.clone(), 'all'))
    allowing(() => {
      const { disk } = openQcow(store, parent)
      for (const place of [0, 9000, disk.sizeBytes - 7000]) {
        const offset = Math.max(0, Math.min(place, disk.sizeBytes - 1))
        const length = Math.min(6000, disk.sizeBytes - offset)
        allowing(() => disk.write(noise(length, 1), 0, length, offset))
        allowing(() => disk.zero(offset, length))
      }
      allowing(() => disk.flush())
    })
  })
  t.ok(runs >= TRIES, `${runs} images`)
})
