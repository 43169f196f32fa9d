import t from 'tap'
import type { CatalogEntry } from '../../../src/image/catalog.js'
import { NodeIds } from '../../../src/fs/nodes/node-ids.js'

const entry = (
  name: string,
  kind: CatalogEntry['kind'],
  rest: Partial<CatalogEntry> = {},
): CatalogEntry => ({
  name,
  kind,
  layer: 0,
  startOffset: 0,
  sizeBytes: 512,
  modified: { seconds: 5, nanoseconds: 0 },
  attributes: {},
  ...rest,
})
const disk = entry('disk.raw', 'disk')
const snapshot = (name: string, id: string, seconds = 5) =>
  entry(name, 'snapshot', {
    attributes: { 'snapshot-id': id },
    modified: { seconds, nanoseconds: 0 },
  })

t.test('files that were opened anew get other numbers', async t => {
  const ids = new NodeIds()
  t.same(ids.of([disk, snapshot('a', '1')]), [16, 17])
  ids.renew(id => id === 16)
  t.same(ids.of([disk, snapshot('a', '1')]), [18, 17])
  t.same(ids.of([disk, snapshot('a', '1')]), [18, 17])
})

t.test('files keep their numbers', async t => {
  const ids = new NodeIds()
  t.same(ids.of([disk, snapshot('a', '1'), snapshot('b', '2')]), [16, 17, 18])
  t.same(ids.of([disk, snapshot('b', '2'), snapshot('c', '3')]), [16, 18, 19], 'one has gone')
  t.same(ids.of([disk, snapshot('renamed', '2')]), [16, 18], 'the name does not count')
})

t.test('a number never comes back', async t => {
  const ids = new NodeIds()
  t.same(ids.of([disk, snapshot('a', '1')]), [16, 17])
  t.same(ids.of([disk]), [16])
  t.same(ids.of([disk, snapshot('a', '1')]), [16, 18])
  t.same(ids.of([disk, snapshot('a', '1', 6)]), [16, 19], 'the same ID, of another time')
})

t.test('a disk that grows stays the same file', async t => {
  const ids = new NodeIds()
  ids.of([disk])
  t.same(ids.of([{ ...disk, sizeBytes: 1024, modified: { seconds: 9, nanoseconds: 0 } }]), [16])
})

t.test('a partition that moves is another file', async t => {
  const ids = new NodeIds()
  const part = (startOffset: number) =>
    entry('disk.p1.raw', 'partition', { startOffset, attributes: { 'partition-number': '1' } })
  t.same(ids.of([disk, part(512)]), [16, 17])
  t.same(ids.of([disk, part(1024)]), [16, 18])
})

t.test('snapshots of a damaged table that look the same', async t => {
  const ids = new NodeIds()
  const twins = [disk, snapshot('a', '1'), snapshot('b', '1')]
  t.same(ids.of(twins), [16, 17, 18])
  t.same(ids.of(twins), [16, 17, 18])
})
