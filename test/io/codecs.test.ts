/** Compressing and decompressing in the threads of the pool. */
import { deflateRawSync, deflateSync, inflateRawSync, inflateSync } from 'node:zlib'
import t, { type Test } from 'tap'
import { type Pack, packer, unpackers, zlibPacker } from '../../src/io/codecs.js'
import { unzstdCluster } from '../../src/formats/inflate.js'
import { noise } from '../fixtures/model.js'

const UNIT = 65_536
const TEXT = Buffer.from('the same words again and again, '.repeat(UNIT / 32))

/** Returns a unit of text and noise. */
function unit(seed: number): Buffer {
  const bytes = Buffer.from(TEXT)
  noise(1000 + seed * 300, seed).copy(bytes, 5000)
  return bytes
}

async function roundTrips(t: Test, pack: Pack, unpack: (packed: Buffer) => Buffer): Promise<void> {
  // Many at once: results must not mix.
  await Promise.all(
    Array.from({ length: 60 }, async (_, seed) => {
      const target = Buffer.alloc(UNIT - 1)
      const bytes = await pack(unit(seed), target)
      t.ok(bytes > 0 && bytes < UNIT / 2)
      t.ok(unpack(target.subarray(0, bytes)).equals(unit(seed)), `unit ${seed}`)
    }),
  )
  t.equal(await pack(noise(UNIT, 1), Buffer.alloc(UNIT - 1000)), 0, 'a target that is too small')
}

t.test('compressing', async t => {
  await roundTrips(t, packer('deflate') as Pack, packed => inflateRawSync(packed))
  await roundTrips(t, packer('zlib') as Pack, packed => inflateSync(packed))
  await roundTrips(t, packer('zstd') as Pack, packed => {
    const bytes = Buffer.alloc(UNIT)
    unzstdCluster(packed, bytes)
    return bytes
  })
})

t.test('without the library', async t => {
  await roundTrips(t, zlibPacker('deflate'), packed => inflateRawSync(packed))
  await roundTrips(t, zlibPacker('zlib'), packed => inflateSync(packed))
})

t.test('decompressing', async t => {
  const { deflate, zlib, zstd } = unpackers()
  const zstdPacked = Buffer.alloc(UNIT)
  const frameBytes = await (packer('zstd') as Pack)(unit(3), zstdPacked)
  const cases = [
    ['deflate', deflate, deflateRawSync(unit(3))],
    ['zlib', zlib, deflateSync(unit(3))],
    ['zstd', zstd, zstdPacked.subarray(0, frameBytes)],
  ] as const
  for (const [title, unpack, packed] of cases) {
    if (!unpack) continue
    const target = Buffer.alloc(UNIT)
    t.equal(await unpack(packed, target), UNIT, title)
    t.ok(target.equals(unit(3)))
    t.equal(await unpack(packed, Buffer.alloc(UNIT - 1)), -1, 'more than the target holds')
    t.equal(await unpack(packed.subarray(0, packed.length / 2), target), -1, 'cut off')
    const damaged = Buffer.from(packed)
    damaged.fill(0xff, 0, 20)
    t.equal(await unpack(damaged, target), -1, 'damaged')
  }
})
