import t from 'tap'
import { endOfRun, isSet, setBits, walkBitmap } from '../../../src/formats/cow/bitmap.js'
import { readCowHeader } from '../../../src/formats/cow/header.js'
import { LAYOUTS } from '../../fixtures/cow-builder.js'
import { SECTOR, sectorsOf, storeOf } from './images.js'

/** 24 bytes, in which runs of all kinds begin and end at all places of a byte and of a word. */
const patterns = (): Buffer[] =>
  Array.from({ length: 300 }, (_, seed) => {
    const bytes = Buffer.alloc(24, seed % 3 === 0 ? 0xff : 0)
    let state = seed + 1
    for (let i = 0; i < seed % 7; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      bytes[state % 24]! ^= 1 << (state >>> 29)
    }
    return bytes
  })

t.test('where a run ends', t => {
  let wrong = 0
  for (const bytes of patterns()) {
    for (let from = 0; from < 192; from++) {
      for (const to of [from + 1, from + 7, from + 33, 191, 192]) {
        if (to > 192 || to <= from) continue
        let end = from + 1
        while (end < to && isSet(bytes, end) === isSet(bytes, from)) end++
        if (endOfRun(bytes, from, to) !== end) wrong++
      }
    }
  }
  t.equal(wrong, 0)
  t.end()
})

t.test('the lowest bit of a byte comes first', t => {
  const bits = (byte: number) => Array.from({ length: 8 }, (_, i) => isSet(Buffer.of(byte), i))
  t.same(bits(0b1000_0101), [true, false, true, false, false, false, false, true])
  t.end()
})

t.test('bits that are set', t => {
  let wrong = 0
  for (let from = 0; from < 40; from++) {
    for (let to = from; to <= 64; to++) {
      const bytes = Buffer.from([0, 0x10, 0, 0, 0x81, 0, 0, 0])
      const expected = Buffer.from(bytes)
      for (let bit = from; bit < to; bit++) expected[bit >> 3]! |= 1 << (bit % 8)
      setBits(bytes, from, to)
      if (!bytes.equals(expected)) wrong++
    }
  }
  t.equal(wrong, 0)
  t.end()
})

t.test('walking a bitmap', t => {
  // Longer than the piece that is read at once, with holes of the file before, between and after.
  const count = 1_300_003
  const runs = [
    [5, 3],
    [300_000, 12_345],
    [524_280, 16],
    [count - 1, 1],
  ] as const
  for (const layout of LAYOUTS) {
    const { built, store } = storeOf({ layout, sizeBytes: 4096, backing: 'b' })
    const bitmap = Buffer.alloc(Math.ceil(count / 8))
    for (const sector of sectorsOf(runs).keys()) bitmap[sector >> 3]! |= 1 << (sector % 8)
    const header = {
      ...readCowHeader(store),
      sizeBytes: count * SECTOR,
      bitmapBytes: bitmap.length,
    }
    for (const byte of bitmap.keys()) {
      if (bitmap[byte] !== 0) store.write(bitmap, byte, 1, built.bitmapAt + byte)
    }
    store.truncate(built.bitmapAt + bitmap.length)
    for (const from of [0, 3, 6, 8, 300_001, 524_288, count - 1]) {
      const found: number[] = []
      let next = from
      walkBitmap(store, header, from, (isMarked, first, end) => {
        if (first !== next || end <= first) throw new Error(`${first} to ${end} after ${next}`)
        next = end
        if (isMarked) for (let sector = first; sector < end; sector++) found.push(sector)
        return true
      })
      t.equal(next, count)
      t.same(
        found,
        [...sectorsOf(runs).keys()].filter(sector => sector >= from),
        `${layout} from ${from}`,
      )
    }
    let visits = 0
    walkBitmap(store, header, 0, () => ++visits < 2)
    t.equal(visits, 2, 'until it is told to stop')
  }
  t.end()
})
