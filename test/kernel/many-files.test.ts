/** Thousands of snapshots, their names and dates, and the memory states of some. */
import { join } from 'node:path'
import t from 'tap'
import { buildImage, type Cluster } from '../fixtures/qcow2-builder.js'
import { call, HERE, mount, noFuse, READ_ONLY, runIn, sharedFolder } from '../support/mount.js'

const CLUSTER = 4096
const cluster = (text: string): Cluster => ({ kind: 'data', bytes: Buffer.alloc(CLUSTER, text) })
const skip = noFuse()

t.test('2000 snapshots', skip, async t => {
  const COUNT = 2000
  const file = join(sharedFolder(t), 'disk.qcow2')
  const content = (index: number) => `snapshot ${index}\n`
  buildImage({
    clusterBits: 12,
    sizeBytes: 2 * CLUSTER,
    snapshots: Array.from({ length: COUNT }, (_, index) => ({
      id: String(index + 1),
      name: `nightly-${index}`,
      seconds: 1_600_000_000 + index,
      clusters: new Map([[0, cluster(content(index))]]),
    })),
  }).write(file)
  const { folder, file: inMount, printed } = await mount(t, file, { args: READ_ONLY })
  t.match(printed.stdout, 'with 2000 snapshots')

  const names = (await runIn(HERE, 'ls', ['-U', folder])).trim().split('\n')
  const expected = Array.from({ length: COUNT }, (_, index) => `disk@nightly-${index}.raw`)
  t.same(names, ['disk.raw', ...expected])

  const long = (await runIn(HERE, 'ls', ['-lU', '--time-style=+%s', folder]))
    .trim()
    .split('\n')
    .slice(2)
  t.equal(long.length, COUNT)
  long.forEach((line, index) => {
    if (!line.endsWith(` 8192 ${1_600_000_000 + index} disk@nightly-${index}.raw`)) t.fail(line)
  })
  for (const index of [0, 1, 999, 1999]) {
    const text = await runIn(HERE, 'head', ['-n1', inMount(`disk@nightly-${index}.raw`)])
    t.equal(text, content(index))
  }
})

t.test('names and memory states', skip, async t => {
  const file = join(sharedFolder(t), 'my disk.v2.qcow2')
  const vmState = { vmState: new Map([[0, cluster('memory')]]), vmStateBytes: 4000 }
  buildImage({
    clusterBits: 12,
    sizeBytes: CLUSTER,
    snapshots: [
      { id: '1', name: 'a/b%c\n', clusters: new Map([[0, cluster('1')]]), ...vmState },
      { id: '2', name: 'twice', clusters: new Map([[0, cluster('2')]]) },
      { id: '3', name: 'twice', clusters: new Map([[0, cluster('3')]]) },
      { id: '4', name: 'größer', clusters: new Map([[0, cluster('4')]]) },
      { id: '5', name: 'x'.repeat(300), clusters: new Map([[0, cluster('5')]]) },
      { id: '6', name: '..', clusters: new Map([[0, cluster('6')]]) },
      { id: '7', name: '', clusters: new Map([[0, cluster('7')]]) },
    ],
  }).write(file)
  const { folder, file: inMount } = await mount(t, file, { args: READ_ONLY })
  const names = (await runIn(HERE, 'ls', ['-U', folder])).trim().split('\n')
  t.same(names.slice(0, 6), [
    'my disk.v2.raw',
    'my disk.v2@a%2Fb%25c%0A.raw',
    'my disk.v2@a%2Fb%25c%0A.vmstate',
    'my disk.v2@twice~2.raw',
    'my disk.v2@twice~3.raw',
    'my disk.v2@größer.raw',
  ])
  t.match(names[6], /^my disk\.v2@x{200,}~5\.raw$/)
  t.same(names.slice(7), ['my disk.v2@...raw', 'my disk.v2@.raw'])
  const firsts = await Promise.all(
    names.slice(1).map(async name => await runIn(HERE, 'head', ['-c1', inMount(name)])),
  )
  t.equal(firsts.join(''), '1m234567')

  const state = inMount('my disk.v2@a%2Fb%25c%0A.vmstate')
  t.match(await call(HERE, 'stat', state), { size: '4000' })
  t.equal((await runIn(HERE, 'cat', [state])).slice(-6), 'memory'.repeat(700).slice(3994, 4000))
})
