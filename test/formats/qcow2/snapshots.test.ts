/** The snapshot table in all its forms. */
import { truncateSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { buildImage, type ImageSpec, type SnapshotSpec } from '../../fixtures/qcow2-builder.js'
import { openedImage, readAll } from '../../support/image.js'
import { tempFolder } from '../../support/run.js'

const K = 1024
const DISK: ImageSpec = { clusterBits: 12, sizeBytes: 100 * K }

const variants: { title: string; version?: 2 | 3; snapshot: SnapshotSpec; expected: object }[] = [
  {
    title: 'no extra data',
    version: 2,
    snapshot: { extraBytes: 0, vmStateBytes: 5000 },
    expected: { sizeBytes: 100 * K, vmStateBytes: 5000, icount: undefined },
  },
  {
    title: 'only a size of the VM state',
    snapshot: { extraBytes: 8, vmStateBytes: 5000 },
    expected: { sizeBytes: 100 * K, vmStateBytes: 5000 },
  },
  {
    title: 'a size of its own',
    snapshot: { extraBytes: 16, sizeBytes: 30 * K + 7 },
    expected: { sizeBytes: 30 * K + 7, icount: undefined },
  },
  {
    title: 'an instruction count',
    snapshot: { extraBytes: 24 },
    expected: { icount: 2n ** 64n - 1n },
  },
  {
    title: 'extra data of the future',
    snapshot: { extraBytes: 1024, sizeBytes: 30 * K },
    expected: { sizeBytes: 30 * K },
  },
  {
    title: 'a VM state over 4 GiB',
    snapshot: { vmStateBytes: 2 ** 33 + 5 },
    expected: { vmStateBytes: 2 ** 33 + 5 },
  },
  {
    title: 'dates',
    snapshot: { seconds: 2 ** 32 - 1, nanoseconds: 999_999_999, guestNanoseconds: 2n ** 64n - 1n },
    expected: {
      dateSeconds: 2 ** 32 - 1,
      dateNanoseconds: 999_999_999,
      guestNanoseconds: 2n ** 64n - 1n,
    },
  },
  {
    title: 'odd names',
    snapshot: { id: '', name: Buffer.from([0xff, 0, 0x2f, 0x0a]) },
    expected: { id: '', name: Buffer.from([0xff, 0, 0x2f, 0x0a]) },
  },
  {
    title: 'the longest names',
    snapshot: { id: 'i'.repeat(65535), name: 'n'.repeat(65535) },
    expected: { id: 'i'.repeat(65535), name: Buffer.alloc(65535, 'n') },
  },
]
for (const { title, version = 3, snapshot, expected } of variants) {
  t.test(title, async t => {
    const image = join(tempFolder(t), 'disk.qcow2')
    // It stands between others: reading it wrongly shifts the next one.
    const around = { id: 'x', name: 'around', extraBytes: 16 }
    buildImage({ ...DISK, version, snapshots: [around, snapshot, around] }).write(image)
    const { snapshots } = openedImage(t, image).chain
    t.match(snapshots[1], expected)
    for (const index of [0, 2]) t.match(snapshots[index], { id: 'x', name: Buffer.from('around') })
  })
}

t.test("thousands of snapshots, over the reader's buffer", async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  const snapshots = Array.from({ length: 5000 }, (_, i) => ({
    name: `snapshot ${i} ${'.'.repeat(i % 77)}`,
    extraBytes: (i % 5) * 8,
    l1Entries: 0,
  }))
  buildImage({ clusterBits: 9, sizeBytes: K, snapshots }).write(image)
  const { chain } = openedImage(t, image)
  t.same(
    chain.snapshots.map(({ name }) => name.toString()),
    snapshots.map(({ name }) => name),
  )
})

t.test('a table that is cut off', async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  const snapshots = Array.from({ length: 300 }, () => ({ name: 'x'.repeat(100) }))
  const built = buildImage({ clusterBits: 9, sizeBytes: K, snapshots })
  built.write(image)
  truncateSync(image, built.snapshotsAt + 300 * 40 + 1)
  const { chain } = openedImage(t, image)
  t.ok(chain.snapshots.length > 50 && chain.snapshots.length < 299)
  const from = chain.snapshots.length + 1
  t.match(chain.warnings, [
    `its snapshots from ${from} of 300 on are not shown: number ${from} is cut off`,
  ])
})

t.test('a VM state lies past the disk of its snapshot', async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  const state = Buffer.alloc(4096, 'state')
  // The disk has grown since, over where the VM state is: 512-byte clusters, 32 KiB an L2 table.
  const snapshot: SnapshotSpec = {
    name: 'small',
    sizeBytes: 33 * K,
    vmStateBytes: 700,
    vmState: new Map(
      [0, 1].map(i => [i, { kind: 'data', bytes: state.subarray(i * 512, i * 512 + 512) }]),
    ),
  }
  buildImage({ clusterBits: 9, sizeBytes: 500 * K, snapshots: [snapshot] }).write(image)
  const open = openedImage(t, image)
  t.ok(readAll(open.view('disk@small.vmstate')).equals(state.subarray(0, 700)))
  t.ok(readAll(open.view('disk@small.raw')).equals(Buffer.alloc(33 * K)), 'none of it is disk')
})
