/** Entries of the snapshot table are written as they are read. */
import t from 'tap'
import {
  decodeSnapshotEntry,
  encodeSnapshotEntry,
  type SnapshotEntry,
  snapshotLengths,
} from '../../../src/formats/qcow2/snapshot-entry.js'

const ENTRY: SnapshotEntry = {
  l1Offset: 2 ** 40 + 65536,
  l1Entries: 7,
  id: Buffer.from('12'),
  name: Buffer.from('before the upgrade'),
  dateSeconds: 2 ** 32 - 1,
  dateNanoseconds: 999_999_999,
  guestNanoseconds: 2n ** 63n + 5n,
  vmStateBytes: 5000n,
  sizeBytes: 2 ** 50 + 512,
  icount: 2n ** 64n - 1n,
  unknownExtra: Buffer.from('of the future'),
}
const none = Buffer.alloc(0)

const variants: [title: string, change: Partial<SnapshotEntry>, extraBytes: number][] = [
  ['everything', {}, 24 + 13],
  ['no unknown extra data', { unknownExtra: none }, 24],
  ['no instruction count', { icount: undefined, unknownExtra: none }, 16],
  ['no size', { sizeBytes: undefined, icount: undefined, unknownExtra: none }, 0],
  ['a VM state that needs 64 bits', { vmStateBytes: 2n ** 63n }, 24 + 13],
  [
    'the same without a size',
    { vmStateBytes: 2n ** 32n, sizeBytes: undefined, icount: undefined, unknownExtra: none },
    8,
  ],
  ['empty names', { id: none, name: none }, 24 + 13],
  ['the longest names', { id: Buffer.alloc(65535, 1), name: Buffer.alloc(65535, 2) }, 24 + 13],
]
for (const [title, change, extraBytes] of variants) {
  t.test(title, async t => {
    const entry = { ...ENTRY, ...change }
    const bytes = encodeSnapshotEntry(entry)
    t.equal(bytes.length % 8, 0, 'the next entry is aligned')
    const lengths = snapshotLengths(bytes)
    const used = 40 + extraBytes + entry.id.length + entry.name.length
    t.same(lengths, { extraBytes, entryBytes: used })
    t.ok(bytes.length - used < 8 && bytes.subarray(used).every(byte => byte === 0), 'padding')
    t.same(decodeSnapshotEntry(Buffer.concat([Buffer.alloc(3), bytes]), 3), entry)
  })
}

t.test('the places of the fields', async t => {
  const bytes = encodeSnapshotEntry({ ...ENTRY, vmStateBytes: 0x1_0000_0001n })
  t.equal(bytes.readBigUInt64BE(0), BigInt(ENTRY.l1Offset))
  t.equal(bytes.readUInt32BE(8), ENTRY.l1Entries)
  t.equal(bytes.readUInt32BE(16), ENTRY.dateSeconds)
  t.equal(bytes.readUInt32BE(20), ENTRY.dateNanoseconds)
  t.equal(bytes.readBigUInt64BE(24), ENTRY.guestNanoseconds)
  t.equal(bytes.readUInt32BE(32), 0, 'readers without extra data see no VM state')
  t.equal(bytes.readBigUInt64BE(40), 0x1_0000_0001n)
  t.equal(bytes.readBigUInt64BE(48), BigInt(ENTRY.sizeBytes as number))
  t.equal(bytes.readBigUInt64BE(56), ENTRY.icount)
  t.equal(bytes.subarray(64).toString('latin1', 0, 13), 'of the future')
})
