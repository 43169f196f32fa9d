/** The entries of compressed clusters are written as they are read: qcow's and qcow2's. */
import t from 'tap'
import * as qcow from '../../src/formats/qcow/words.js'
import * as qcow2 from '../../src/formats/qcow2/packed-entry.js'

/** Places in a file, up to `end`: aligned and not, on both sides of 2^32. */
const placesTo = (end: number): number[] =>
  [1, 511, 512, 65536, 2 ** 32 - 1, 2 ** 32, 2 ** 40 + 513, end - 512, end - 1].filter(
    at => at < end,
  )
const lengthsTo = (clusterBytes: number): number[] =>
  [1, 2, 300, 511, 512, clusterBytes / 2, clusterBytes - 1].filter(bytes => bytes < clusterBytes)

t.test('qcow: each byte counts', async t => {
  for (const clusterBits of [9, 12, 16]) {
    for (const at of placesTo(qcow.maxPackedOffset(clusterBits))) {
      for (const packedBytes of lengthsTo(2 ** clusterBits)) {
        const { high, low } = qcow.packedEntry(at, packedBytes, clusterBits)
        t.same(qcow.packedAt(high, low, clusterBits), { at, packedBytes }, `${at}, ${clusterBits}`)
        t.ok(high >= qcow.COMPRESSED && high < 2 ** 32 && low >= 0)
      }
    }
  }
})

t.test('qcow2: whole sectors count', async t => {
  for (const clusterBits of [9, 12, 16, 21]) {
    for (const at of placesTo(qcow2.maxPackedOffset(clusterBits))) {
      for (const bytes of lengthsTo(2 ** clusterBits)) {
        const { high, low } = qcow2.packedEntry(at, bytes, clusterBits)
        t.equal(qcow2.packedOffset(high, low, clusterBits), at, `${at}, ${clusterBits}`)
        const reach = qcow2.packedLength(high, low, clusterBits)
        t.ok(reach >= bytes && reach < bytes + 512 && (at + reach) % 512 === 0)
        t.ok(high >= 2 ** 30 && high < 2 ** 31, 'compressed, and not COPIED')
      }
    }
  }
})

t.test('what no entry can say is refused', async t => {
  for (const { packedEntry, maxPackedOffset } of [qcow, qcow2]) {
    t.throws(() => packedEntry(maxPackedOffset(16), 1, 16), 'too far')
    t.throws(() => packedEntry(0, 65536, 16), 'as long as the cluster')
  }
  t.equal(qcow2.maxPackedOffset(21), 2 ** 49)
  t.equal(qcow.maxPackedOffset(16), 2 ** 47)
})
