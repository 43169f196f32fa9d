/** Damage deep inside: it mounts, reads there fail with one line in the log, the rest reads. */
import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { buildImage, type Cluster } from '../fixtures/qcow2-builder.js'
import {
  call,
  HERE,
  mount,
  noFuse,
  READ_ONLY,
  runIn,
  sharedFolder,
  until,
  vimgfs,
} from '../support/mount.js'

const CLUSTER = 65536
const data = (letter: string): Cluster => ({ kind: 'data', bytes: Buffer.alloc(CLUSTER, letter) })
const skip = noFuse()

/** The lines of the log about faults, once `count` of them are there. */
async function faults(t: Test, log: () => string, count: number) {
  const lines = () =>
    log()
      .split('\n')
      .filter(line => line !== '')
      .map(line => JSON.parse(line))
      .filter(line => line.level >= 50)
  t.ok(await until(() => lines().length >= count), 'it is logged')
  return lines()
}

t.test('an L2 table and a cluster', skip, async t => {
  const file = join(sharedFolder(t), 'disk.qcow2')
  // One L2 table maps 512 MiB: the second is at an impossible place.
  const TABLE = 512 * 2 ** 20
  const image = buildImage({
    clusterBits: 16,
    sizeBytes: TABLE + 8 * CLUSTER,
    clusters: new Map([
      [0, data('A')],
      [1, data('B')],
      [3, { kind: 'packed', packed: Buffer.from('not deflated'), content: Buffer.alloc(CLUSTER) }],
      [4, { kind: 'entry', entry: 2n ** 55n }],
      [5, data('C')],
      [TABLE / CLUSTER, data('D')],
    ]),
    snapshots: [{ name: 'good', clusters: new Map([[4, data('S')]]) }],
  })
  const bytes = image.bytes()
  bytes.writeBigUInt64BE(12345n, image.l1At + 8)
  writeFileSync(file, bytes)

  for (const threads of ['1', '2']) {
    const { file: inMount, log } = await mount(t, file, {
      args: [...READ_ONLY, '--threads', threads],
    })
    const disk = inMount('disk.raw')
    const read = (skipped: number) =>
      runIn(HERE, 'dd', [`if=${disk}`, 'bs=64k', 'count=1', `skip=${skipped}`, 'status=none'])
    t.equal(await read(0), 'A'.repeat(CLUSTER))
    t.equal(await read(1), 'B'.repeat(CLUSTER))
    t.equal(await read(5), 'C'.repeat(CLUSTER))
    for (const piece of [3, 4, TABLE / CLUSTER, TABLE / CLUSTER + 7]) {
      await t.rejects(read(piece), /Input\/output error/, `cluster ${piece}`)
    }
    const direct = ['iflag=direct', 'bs=64k', 'count=1', 'status=none']
    await t.rejects(runIn(HERE, 'dd', [`if=${disk}`, 'skip=4', ...direct]), /Input\/output error/)
    t.equal(await runIn(HERE, 'dd', [`if=${disk}`, 'skip=1', ...direct]), 'B'.repeat(CLUSTER))

    const snapshot = inMount('disk@good.raw')
    const piece = ['bs=64k', 'count=1', 'skip=4', 'status=none']
    t.equal(await runIn(HERE, 'dd', [`if=${snapshot}`, ...piece]), 'S'.repeat(CLUSTER))

    const places = [3 * CLUSTER, 4 * CLUSTER, TABLE]
    const lines = await faults(t, log, places.length)
    for (const offset of places) {
      const here = lines.filter(line => line.guestOffset === offset)
      t.ok(here.length >= 1 && here.length <= Number(threads), `${offset}: once a thread`)
      t.match(here[0], { file, msg: /^READ: / })
    }
    t.notOk(
      lines.some(line => 'stack' in line),
      'no bug of ours',
    )
    t.match(await call(HERE, 'stat', disk), { size: String(TABLE + 8 * CLUSTER) })
  }
})

t.test('a file that becomes shorter while it is mounted', skip, async t => {
  const file = join(sharedFolder(t), 'disk.qcow2')
  const clusters = new Map([...'ABCDEFGH'].map((letter, index) => [index, data(letter)] as const))
  buildImage({ clusterBits: 16, sizeBytes: 8 * CLUSTER, clusters }).write(file)
  // Other mounts that only read look for changes within a second, and then say so instead.
  const args = ['-o', 'ro,force-share']
  const { file: inMount, log } = await mount(t, file, { args })
  t.same(await call(HERE, 'failures', inMount('disk.raw'), CLUSTER), [])
  const { file: again, log: logAgain } = await mount(t, file, { args })
  truncateSync(file, readFileSync(file).length - 2 * CLUSTER)
  const failed = await call(HERE, 'failures', again('disk.raw'), CLUSTER)
  t.same(failed, [
    [6 * CLUSTER, 'EIO'],
    [7 * CLUSTER, 'EIO'],
  ])
  const [line] = await faults(t, logAgain, 1)
  t.match(line, {
    guestOffset: 6 * CLUSTER,
    msg: 'READ: the file has become shorter since it was opened',
  })
  t.notMatch(log(), '"level":50')
})

t.test('a snapshot whose table cannot be: the others are served', skip, async t => {
  const file = join(sharedFolder(t), 'disk.qcow2')
  const image = buildImage({
    clusterBits: 16,
    sizeBytes: CLUSTER,
    clusters: new Map([[0, data('A')]]),
    snapshots: [
      { id: '1', name: 'bad', clusters: new Map([[0, data('B')]]) },
      { id: '2', name: 'good', clusters: new Map([[0, data('C')]]) },
    ],
  })
  const bytes = image.bytes()
  bytes.writeBigUInt64BE(777n, image.snapshotsAt)
  writeFileSync(file, bytes)
  const { file: inMount, folder, log } = await mount(t, file, { args: READ_ONLY })
  t.equal(await runIn(HERE, 'ls', [folder]), 'disk.raw\ndisk@bad.raw\ndisk@good.raw\n')
  t.match(await call(HERE, 'stat', inMount('disk@bad.raw')), { size: String(CLUSTER) })
  await t.rejects(runIn(HERE, 'cat', [inMount('disk@bad.raw')]), /Input\/output error/)
  t.equal(await runIn(HERE, 'cat', [inMount('disk@good.raw')]), 'C'.repeat(CLUSTER))
  const [line] = await faults(t, log, 1)
  t.match(line, { msg: /an L1 table of 1 entries at 777 is impossible/ })
})

t.test('a dirty and corrupt image: served, with a warning', skip, async t => {
  const file = join(sharedFolder(t), 'disk.qcow2')
  buildImage({
    ...{ clusterBits: 16, sizeBytes: CLUSTER, incompatible: 3n },
    clusters: new Map([[0, data('A')]]),
  }).write(file)
  const { printed, file: inMount, log } = await mount(t, file, { args: READ_ONLY })
  t.match(printed.stderr, /not closed cleanly.*\n.*marked corrupt.*\n/)
  t.match(log(), 'not closed cleanly')
  t.equal(await runIn(HERE, 'cat', [inMount('disk.raw')]), 'A'.repeat(CLUSTER))
  t.equal((await vimgfs(HERE, ['umount', join(inMount('disk.raw'), '..')])).code, 0)
})
