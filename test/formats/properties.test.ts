/** Any chain of images, read anywhere, against a Buffer that holds the disk. */
import fc from 'fast-check'
import t from 'tap'
import type { View } from '../../src/formats/driver.js'
import { countAllocated, nextData, nextHole } from '../../src/image/reading/holes.js'
import { depthOf, type Expected, randomChain, writeChain } from '../fixtures/random-chain.js'
import {
  dataRuns,
  firstDifference,
  openImage,
  type OpenImage,
  readAll,
  readAt,
} from '../support/image.js'
import { holds } from '../support/property.js'
import { tempFolder } from '../support/run.js'

/** Offsets and lengths as parts of 1000 of the disk; a read may go past its end. */
const places = fc.array(fc.tuple(fc.nat(1000), fc.nat(400)), { minLength: 1, maxLength: 6 })

function equal(actual: Buffer, expected: Buffer, what: string): void {
  const at = firstDifference(actual, expected)
  if (at < 0) return
  throw new Error(`${what}: byte ${at} of ${expected.length} is ${actual[at]}, not ${expected[at]}`)
}

const isZero = (disk: Buffer, from: number, to: number): boolean =>
  disk.subarray(from, to).every(byte => byte === 0)

/** All views of an image in pairs with what they must show. */
function* views(
  { entries, views }: OpenImage,
  all: readonly Expected[],
): Generator<[View, Buffer]> {
  const [top, ...below] = all as [Expected, ...Expected[]]
  const snapshotsOf = ({ snapshots }: Expected) =>
    snapshots.flatMap(({ disk, state }) => (state.length > 0 ? [disk, state] : [disk]))
  const expected = [
    top.disk,
    ...snapshotsOf(top),
    ...below.map(({ disk }) => disk),
    ...below.flatMap(snapshotsOf),
  ]
  if (entries.length !== expected.length) throw new Error(`${entries.length} files`)
  for (const [index, entry] of entries.entries()) {
    yield [views.viewOf(entry), expected[index] as Buffer]
  }
}

function eachView(
  t: Parameters<typeof tempFolder>[0],
  check: (view: View, disk: Buffer, places: readonly (readonly [number, number])[]) => void,
): Promise<number> {
  const folder = tempFolder(t)
  return holds(fc.tuple(randomChain, places), 250, ([chain, places]) => {
    const { image, all } = writeChain(chain, folder)
    const open = openImage(image, { format: chain[0]?.format ?? 'qcow2', metadataBytes: 64 * 1024 })
    try {
      if (open.chain.layers.length !== depthOf(chain)) throw new Error('the chain is cut')
      for (const [view, disk] of views(open, all)) check(view, disk, places)
    } finally {
      open.close()
    }
  })
}

t.test('reads', async t => {
  const runs = await eachView(t, (view, disk, places) => {
    if (view.driver.sizeBytes !== disk.length) throw new Error(`size ${view.driver.sizeBytes}`)
    for (const [from, part] of places) {
      const offset = Math.floor((from / 1000) * disk.length)
      const length = 1 + Math.floor((part / 1000) * disk.length)
      const expected = Buffer.alloc(length)
      disk.copy(expected, 0, offset, offset + length)
      equal(readAt(view, offset, length), expected, `${length} bytes at ${offset}`)
    }
    equal(readAll(view), disk, 'the whole disk')
  })
  t.ok(runs >= 50, `${runs} chains`)
})

t.test('holes', async t => {
  const runs = await eachView(t, (view, disk, places) => {
    for (const [from] of places) {
      const offset = Math.min(Math.floor((from / 1000) * disk.length), disk.length - 1)
      const data = nextData(view, offset)
      const end = data < 0 ? disk.length : data
      if (end < offset || end > disk.length) throw new Error(`data from ${offset} at ${data}`)
      if (!isZero(disk, offset, end)) throw new Error(`bytes of ${offset}-${end} are in a hole`)
      const hole = nextHole(view, offset)
      if (hole < offset || hole > disk.length) throw new Error(`hole from ${offset} at ${hole}`)
      if (data > offset && hole !== offset) throw new Error(`${offset} is neither data nor a hole`)
      if (data === offset && hole === offset) throw new Error(`${offset} is data and a hole`)
    }
    let at = 0
    for (const { start, end } of dataRuns(view)) {
      if (!isZero(disk, at, start)) throw new Error(`bytes of ${at}-${start} are in a hole`)
      at = end
    }
    if (!isZero(disk, at, disk.length)) throw new Error(`bytes after ${at} are in a hole`)
    const allocated = countAllocated(view, Number.MAX_SAFE_INTEGER, 1000)
    if (allocated < 0 || allocated > disk.length) throw new Error(`${allocated} allocated`)
  })
  t.ok(runs >= 50, `${runs} chains`)
})
