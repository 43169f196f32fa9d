/** Damaged images of all formats as sources: reading on through the damage never fails, and loses no sound byte. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { ImageError } from '../../src/errors.js'
import { changesOf } from '../../src/image/comparing/diff.js'
import { Losses } from '../../src/image/reading/salvage.js'
import { openSource, type Source } from '../../src/image/reading/source.js'
import { buildCow } from '../fixtures/cow-builder.js'
import { noise, prose } from '../fixtures/model.js'
import { deflated } from '../fixtures/packers.js'
import { buildQcow } from '../fixtures/qcow-builder.js'
import { buildImage, type Cluster } from '../fixtures/qcow2-builder.js'
import { buildExtent, packed } from '../fixtures/vmdk-builder.js'
import { buildDynamic } from '../fixtures/vpc-builder.js'
import { holds } from '../support/property.js'
import { tempFolder } from '../support/run.js'

const K = 1024
const data = (bytes: number, seed: number) => ({ kind: 'data' as const, bytes: noise(bytes, seed) })
const clusters = new Map<number, Cluster>([
  [0, data(4 * K, 1)],
  [1, deflated(prose(4 * K, 2))],
  [2, { kind: 'zero' }],
  [5, data(4 * K, 3)],
])
const sectors = new Map([
  [1, noise(512, 1)],
  [9, noise(512, 2)],
])

const IMAGES: Record<string, { format: string; bytes: Buffer }> = {
  qcow2: {
    format: 'qcow2',
    bytes: buildImage({ clusterBits: 12, sizeBytes: 64 * K, clusters }).bytes(),
  },
  qcow: {
    format: 'qcow',
    bytes: buildQcow({ sizeBytes: 64 * K, clusters: new Map([[1, data(4 * K, 1)]]) }).bytes,
  },
  cow: {
    format: 'cow',
    bytes: buildCow({ layout: 'qemu-x86-64', sizeBytes: 16 * K, sectors }).bytes,
  },
  vmdk: {
    format: 'vmdk',
    bytes: buildExtent({
      capacitySectors: 128,
      grainSectors: 8,
      grains: new Map([
        [0, data(4 * K, 1)],
        [3, data(4 * K, 2)],
      ]),
    }).bytes,
  },
  'vmdk, compressed': {
    format: 'vmdk',
    bytes: buildExtent({
      capacitySectors: 128,
      grainSectors: 8,
      version: 3,
      isCompressed: true,
      grains: new Map([
        [0, packed(prose(4 * K, 1))],
        [3, packed(prose(4 * K, 2))],
      ]),
    }).bytes,
  },
  vpc: { format: 'vpc', bytes: buildDynamic({ sizeBytes: 16 * K, sectors }) },
}

/** The part that is looked at of a disk whose header claims more. */
const MOST_BYTES = 128 * K

/** Reads sector by sector; undefined for one that cannot be read. */
function sectorAt(source: Source, offset: number, length: number): Buffer | undefined {
  const target = Buffer.alloc(length)
  try {
    source.read(target, 0, length, offset)
    return target
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    return undefined
  }
}

for (const [title, { format, bytes }] of Object.entries(IMAGES)) {
  t.test(title, async t => {
    const image = join(tempFolder(t), 'disk')
    const poke = fc.record({ at: fc.nat(bytes.length - 1), value: fc.nat(255) })
    const near = fc.record({ at: fc.nat(Math.min(bytes.length, 8 * K) - 1), value: fc.nat(255) })
    const pokes = fc.array(fc.oneof(poke, near), { minLength: 1, maxLength: 12 })
    const cut = fc.option(fc.nat(bytes.length))
    let opened = 0
    let lost = 0
    await holds(fc.tuple(pokes, cut), 60, async ([pokes, cut]) => {
      const changed = Buffer.from(bytes)
      for (const { at, value } of pokes) changed[at] = value
      writeFileSync(image, cut === null ? changed : changed.subarray(0, cut))
      let source: Source
      try {
        source = await openSource(image, { format })
      } catch (error) {
        if (error instanceof ImageError) return
        throw error
      }
      try {
        opened++
        const length = Math.min(source.sizeBytes, MOST_BYTES)
        const losses = new Losses()
        const target = Buffer.alloc(length, 0xee)
        source.salvage(target, 0, length, 0, losses.add)
        if (losses.list.length > 0) lost++
        const isLost = (at: number) =>
          losses.list.some(({ offset, length: bytes }) => offset <= at && at < offset + bytes)
        for (let at = 0; at < length; at += 512) {
          const size = Math.min(512, length - at)
          const expected = sectorAt(source, at, size)
          const found = target.subarray(at, at + size)
          // Of a sector that cannot be read as a whole, a part may still be there.
          if (expected && !found.equals(expected)) throw new Error(`${at} reads otherwise`)
          if (!expected && !isLost(at) && !isLost(at + size - 1)) {
            throw new Error(`${at} is lost, and nobody says so`)
          }
          for (const [i, byte] of found.entries()) {
            if (byte !== 0 && isLost(at + i)) throw new Error(`${at + i} is lost, and is not 0`)
          }
        }
        let end = 0
        for (const piece of source.pieces(0, length, losses.add)) {
          if (piece.offset !== end || piece.length <= 0) throw new Error(`a gap at ${end}`)
          end += piece.length
        }
        if (end !== length) throw new Error(`it ends at ${end}`)
        differsFromItself(source)
      } finally {
        source.close()
      }
    })
    t.ok(opened > 0, `${opened} opened, ${lost} with losses`)
  })
}

/** No part of a disk differs from itself; damage is an ImageError. */
function differsFromItself(source: Source): void {
  if (source.sizeBytes > MOST_BYTES) return
  try {
    for (const { start } of changesOf(source, source)) throw new RangeError(`${start} differs`)
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
  }
}
