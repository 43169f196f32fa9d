/** `vimgfs check`: what it prints, its exit codes, and what it refuses. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { buildImage, type Cluster, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { noise } from '../fixtures/model.js'
import { HERE, vimgfs } from '../support/mount.js'
import { tempFolder } from '../support/run.js'

const SPEC: ImageSpec = {
  clusterBits: 16,
  sizeBytes: 2 ** 20,
  clusters: new Map<number, Cluster>([
    [0, { kind: 'data', bytes: noise(65536, 1) }],
    [1, { kind: 'data', bytes: noise(65536, 2) }],
  ]),
}
const IMAGE = buildImage(SPEC)
type Damage = (bytes: Buffer) => void
const leak: Damage = bytes => void bytes.writeBigUInt64BE(0n, IMAGE.l2EntryAt(1))
const doubled: Damage = bytes =>
  void bytes.writeBigUInt64BE(bytes.readBigUInt64BE(IMAGE.l2EntryAt(0)), IMAGE.l2EntryAt(2))

function imageIn(folder: string, damage?: Damage): string {
  const file = join(folder, 'disk.qcow2')
  const bytes = IMAGE.bytes()
  damage?.(bytes)
  writeFileSync(file, bytes)
  return file
}

t.test('what it says, and its exit codes', async t => {
  const cases = [
    { title: 'a sound image', code: 0, says: /^.*disk\.qcow2: no errors found\n2 of 16 clusters/ },
    { title: 'leaks', damage: leak, code: 3, says: /1 leaked cluster\nLeaks.*--repair leaks / },
    { title: 'corruption', damage: doubled, code: 2, says: /1 corruption\nData.*--repair all / },
  ]
  for (const { title, damage, code, says } of cases) {
    await t.test(title, async t => {
      const image = imageIn(tempFolder(t), damage)
      const before = readFileSync(image)
      const found = await vimgfs(HERE, ['check', image])
      t.equal(found.code, code)
      t.match(found.stdout, says)
      t.equal(found.stderr, '')
      t.ok(readFileSync(image).equals(before), 'nothing is written')
    })
  }
})

t.test('JSON with the fields of qemu-img', async t => {
  const image = imageIn(tempFolder(t), bytes => {
    leak(bytes)
    doubled(bytes)
  })
  const checked = await vimgfs(HERE, ['check', '--output=json', image])
  t.equal(checked.code, 2)
  t.same(JSON.parse(checked.stdout), {
    filename: image,
    format: 'qcow2',
    'check-errors': 0,
    'image-end-offset': 7 * 65536,
    'total-clusters': 16,
    'allocated-clusters': 2,
    'fragmented-clusters': 1,
    corruptions: 1,
    leaks: 1,
  })
  t.match(checked.stderr, /^corruption at \d+: .*\nleak at \d+: /)
  const repaired = await vimgfs(HERE, ['check', '--output=json', '--repair', 'all', image])
  t.equal(repaired.code, 0)
  t.match(JSON.parse(repaired.stdout), { 'corruptions-fixed': 1, 'leaks-fixed': 1 })
  t.equal((await vimgfs(HERE, ['check', image])).code, 0)
})

t.test('repairing leaks', async t => {
  const image = imageIn(tempFolder(t), leak)
  const { code, stdout } = await vimgfs(HERE, ['check', '--repair=leaks', image])
  t.equal(code, 0)
  t.match(stdout, /^repaired at \d+: .*\n.*: repaired: 1 leaked cluster\n.*: no errors found\n/)
})

t.test('a snapshot table that is damaged: the check has failed', async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  const built = buildImage({ ...SPEC, snapshots: [{}] })
  const bytes = built.bytes()
  bytes.writeUInt32BE(5000, built.snapshotsAt + 36)
  writeFileSync(image, bytes)
  const { code, stdout } = await vimgfs(HERE, ['check', '--repair', 'all', image])
  t.equal(code, 1)
  t.match(stdout, /not done at \d+: the snapshot table is damaged: snapshot 1/)
  t.ok(readFileSync(image).equals(bytes), 'nothing is written')
})

t.test('what it refuses, in one line', async t => {
  const folder = tempFolder(t)
  const image = imageIn(folder)
  const raw = join(folder, 'disk.raw')
  writeFileSync(raw, Buffer.alloc(1024))
  const cut = join(folder, 'cut.qcow2')
  writeFileSync(cut, IMAGE.bytes().subarray(0, 80))
  const cases = [
    { args: [raw], code: 63, says: /disk\.raw: raw images have no tables/ },
    { args: ['--format', 'raw', image], code: 63, says: /no tables/ },
    { args: ['--format', 'vmdk', image], code: 63, says: /vmdk images are not checked yet/ },
    { args: [cut], code: 1, says: /cut\.qcow2: the qcow2 header is cut off after 80 bytes; / },
    { args: [folder], code: 1, says: /this is a folder, not a disk image; / },
    { args: [join(folder, 'none')], code: 1, says: /none: it cannot be opened: no such file; / },
    { args: [], code: 2, says: /IMAGE is missing; vimgfs help check/ },
    { args: ['--repair', 'some', image], code: 2, says: /--repair takes leaks, all, not "some"/ },
    { args: ['--output=xml', image], code: 2, says: /--output takes human, json/ },
  ]
  for (const { args, code, says } of cases) {
    const found = await vimgfs(HERE, ['check', ...args])
    t.equal(found.code, code, args.join(' '))
    t.match(found.stderr, says)
    t.match(found.stderr, /^vimgfs: [^\n]*\n$/, 'one line')
    t.equal(found.stdout, '')
  }
})
