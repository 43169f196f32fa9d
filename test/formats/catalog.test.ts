/** The files of a mount, with their sizes, dates and attributes. */
import { utimesSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { buildImage } from '../fixtures/qcow2-builder.js'
import { openedImage } from '../support/image.js'
import { needs, run, tempFolder } from '../support/run.js'

const K = 1024

t.test('a disk, its snapshots, their VM states, its layers', async t => {
  const folder = tempFolder(t)
  const image = join(folder, 'disk.qcow2')
  const clusterBits = 12
  buildImage({ clusterBits, sizeBytes: 32 * K }).write(join(folder, 'base.qcow2'))
  buildImage({
    clusterBits,
    sizeBytes: 64 * K,
    backing: { name: 'base.qcow2', format: 'qcow2' },
    snapshots: [
      { id: '1', name: 'a/b', seconds: 1_600_000_000, nanoseconds: 5, guestNanoseconds: 7n },
      { id: '2', name: 'twice', sizeBytes: 10_001, vmStateBytes: 3000 },
      { id: '3', name: 'twice', nanoseconds: 4_000_000_000 },
      { id: '4', name: 'base' },
    ],
  }).write(image)
  utimesSync(image, 1_500_000_000, 1_500_000_000)
  utimesSync(join(folder, 'base.qcow2'), 1_400_000_000, 1_400_000_000)
  const { entries, warnings } = openedImage(t, image)
  t.same(warnings, [])
  t.same(
    entries.map(({ name, kind, layer, sizeBytes }) => [name, kind, layer, sizeBytes]),
    [
      ['disk.raw', 'disk', 0, 64 * K],
      ['disk@a%2Fb.raw', 'snapshot', 0, 64 * K],
      ['disk@twice~2.raw', 'snapshot', 0, 10_001],
      ['disk@twice~2.vmstate', 'vmstate', 0, 3000],
      ['disk@twice~3.raw', 'snapshot', 0, 64 * K],
      ['disk@base~4.raw', 'snapshot', 0, 64 * K],
      ['disk@base~1.raw', 'layer', 1, 32 * K],
    ],
  )
  const [disk, first, , state, third, , layer] = entries
  t.match(disk, {
    modified: { seconds: 1_500_000_000, nanoseconds: 0 },
    attributes: { format: 'qcow2', 'cluster-size': '4096', 'format-version': '3' },
  })
  t.match(first, {
    modified: { seconds: 1_600_000_000, nanoseconds: 5 },
    attributes: {
      'snapshot-id': '1',
      'snapshot-name': 'a/b',
      'snapshot-date': '2020-09-13T12:26:40.000Z',
      'snapshot-vm-clock-ns': '7',
      'snapshot-vm-state-size': '0',
    },
  })
  t.equal(state?.startOffset, 512 * 4 * K)
  t.equal(third?.modified.nanoseconds, 999_999_999, 'no more than a second')
  t.equal(layer?.modified.seconds, 1_400_000_000)
  t.match(layer?.attributes, { layer: '1', path: join(folder, 'base.qcow2') })
})

t.test('a VM state that its table cannot hold is left out, with a warning', async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  const snapshots = [{ id: '7', vmStateBytes: 2 ** 40, l1Entries: 3 }]
  buildImage({ clusterBits: 12, sizeBytes: 64 * K, snapshots }).write(image)
  const { entries, warnings } = openedImage(t, image)
  t.same(
    entries.map(({ kind }) => kind),
    ['disk', 'snapshot'],
  )
  t.match(warnings, [/VM state of snapshot 7 has an impossible size/])
})

t.test('the last change is that of the newest file', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const at = (name: string) => join(folder, name)
  const create = (format: string, ...words: string[]) =>
    run('qemu-img', ['create', '-q', '-f', format, ...words], { cwd: folder })
  await create('raw', 'low.raw', '1M')
  await create('qcow2', '-b', 'low.raw', '-F', 'raw', 'middle.qcow2')
  await create('qcow2', '-b', 'middle.qcow2', '-F', 'qcow2', 'top.qcow2')
  await create('qcow2', '-o', `data_file=${at('data.raw')}`, 'split.qcow2', '1M')
  await create('vmdk', '-o', 'subformat=monolithicFlat', 'flat.vmdk', '1M')
  const chain = ['top.qcow2', 'middle.qcow2', 'low.raw']
  const cases = [
    { image: 'top.qcow2', files: chain },
    { image: 'split.qcow2', files: ['split.qcow2', 'data.raw'] },
    { image: 'flat.vmdk', files: ['flat.vmdk', 'flat-flat.vmdk'] },
  ]
  for (const { image, files } of cases) {
    for (const newest of files) {
      for (const file of files) utimesSync(at(file), 1_000_000_000, 1_000_000_000)
      utimesSync(at(newest), 1_100_000_000, 1_100_000_000.5)
      const { entries } = openedImage(t, at(image))
      const expected = { seconds: 1_100_000_000, nanoseconds: 500_000_000 }
      t.same(entries[0]?.modified, expected, `${image}: ${newest}`)
      const layers = entries.filter(({ kind }) => kind === 'layer')
      const isNew = layers.map(({ modified }) => modified.seconds === expected.seconds)
      t.same(
        isNew,
        layers.map((_, below) => files.indexOf(newest) > below),
      )
    }
  }
})
