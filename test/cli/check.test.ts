/** `vimgfs check`: what it prints, its exit codes, and what it refuses. */
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { buildDynamic } from '../fixtures/vpc-builder.js'
import { buildCow } from '../fixtures/cow-builder.js'
import { buildQcow } from '../fixtures/qcow-builder.js'
import { buildImage, type Cluster, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { noise } from '../fixtures/model.js'
import { buildExtent, descriptorText, HEADER_AT } from '../fixtures/vmdk-builder.js'
import { run as check } from '../../src/cli/check.js'
import { run as info } from '../../src/cli/info.js'
import { lockImage } from '../../src/io/locks.js'
import { runHere } from '../support/command.js'
import { HERE, vimgfs } from '../support/mount.js'
import { run, tempFolder } from '../support/run.js'

const checkHere = (args: readonly string[]) => runHere(check, args, '/')

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
      t.strictSame(await checkHere([image]), found, 'and the same in this process')
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
  const checked = await checkHere(['--output=json', image])
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
  const repaired = await checkHere(['--output=json', '--repair', 'all', image])
  t.equal(repaired.code, 0)
  t.match(JSON.parse(repaired.stdout), { 'corruptions-fixed': 1, 'leaks-fixed': 1 })
  t.equal((await checkHere([image])).code, 0)
})

t.test('the letters of qemu-img check', async t => {
  const image = imageIn(tempFolder(t), leak)
  const quiet = await checkHere(['-q', '-f', 'qcow2', '-T', 'none', image])
  t.same(quiet, { code: 3, stdout: '', stderr: '' })
  const fd = openSync(image, 'r+')
  lockImage(fd, image, 'write')
  t.match(await checkHere([image]), { code: 1, stderr: /in use/ })
  t.match(await checkHere(['-U', image]), { code: 3 })
  closeSync(fd)
  t.match(await checkHere(['-U', '-r', 'all', image]), { code: 2, stderr: /exclude each other/ })
  t.match(await checkHere(['-T', 'fast', image]), { code: 2, stderr: /-T takes none/ })
  t.match(await checkHere(['-r', 'some', image]), { code: 2, stderr: /takes leaks, all/ })
  t.match(await checkHere(['-r', 'leaks', image]), { code: 0, stdout: /repaired: 1 leaked/ })
})

t.test('a snapshot is not checked or described alone', async t => {
  const image = imageIn(tempFolder(t))
  const message =
    /takes a whole image, not its snapshot "a": name .*disk\.qcow2; vimgfs snapshot list/
  t.match(await checkHere([`${image}@a`]), { code: 2, stderr: message })
  t.match(await runHere(info, [`${image}@a`], '/'), { code: 2, stderr: message })
})

t.test('repairing leaks', async t => {
  const image = imageIn(tempFolder(t), leak)
  const { code, stdout } = await checkHere(['--repair=leaks', image])
  t.equal(code, 0)
  t.match(stdout, /^repaired at \d+: .*\n.*: repaired: 1 leaked cluster\n.*: no errors found\n/)
})

t.test('a snapshot table that is damaged', async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  const built = buildImage({ ...SPEC, snapshots: [{}] })
  const bytes = built.bytes()
  bytes.writeUInt32BE(5000, built.snapshotsAt + 36)
  writeFileSync(image, bytes)
  const found = await checkHere([image])
  t.equal(found.code, 2, found.stderr)
  t.match(found.stdout, /snapshot 1 has 5000 bytes of extra data/)
  t.ok(readFileSync(image).equals(bytes), 'a check writes nothing')
  const repaired = await checkHere(['--repair', 'all', image])
  t.equal(repaired.code, 3, 'what the snapshot may own stays, as leaks')
  t.match(repaired.stdout, /all snapshots are dropped: snapshot 1 has 5000 bytes/)
  t.match(repaired.stdout, /leaks are kept: .* --repair leaks gives them back/)
  t.equal((await checkHere(['--repair', 'leaks', image])).code, 0)
  t.equal((await checkHere([image])).code, 0)
})

const SPARSE = buildExtent({
  capacitySectors: 2048,
  descriptor: descriptorText('monolithicSparse', 2048, 'disk.vmdk'),
  grains: new Map([
    [0, { kind: 'data', bytes: noise(65536, 1) }],
    [5, { kind: 'data', bytes: noise(65536, 2) }],
  ]),
})
const descriptorOf = (extent: string) =>
  descriptorText('monolithicSparse', 2048, extent).replace('monolithicSparse', 'custom')
const lostGrain: Damage = bytes => {
  bytes.writeUInt32LE(0, SPARSE.entryAt(5))
  bytes.writeUInt32LE(0, SPARSE.redundantEntryAt(5))
}
const strayGrain: Damage = bytes => void bytes.writeUInt32LE(1e6, SPARSE.entryAt(0))

function vmdkIn(folder: string, damage?: Damage): string {
  const file = join(folder, 'disk.vmdk')
  const bytes = Buffer.from(SPARSE.bytes)
  damage?.(bytes)
  writeFileSync(file, bytes)
  return file
}

t.test('a vmdk: what it says, and its exit codes', async t => {
  const cases = [
    { title: 'a sound image', code: 0, says: /^.*disk\.vmdk: no errors found\n2 of 16 grains/ },
    {
      title: 'leaks',
      damage: lostGrain,
      code: 3,
      says: /^leak at \d+: nothing uses 65536 bytes\n.*1 leaked grain\nLeaks.*--repair leaks /,
    },
    {
      title: 'corruption',
      damage: strayGrain,
      code: 2,
      says: /^corruption at .*2 corruptions.*\nData.*--repair all /s,
    },
  ]
  for (const { title, damage, code, says } of cases) {
    await t.test(title, async t => {
      const image = vmdkIn(tempFolder(t), damage)
      const before = readFileSync(image)
      const found = await checkHere([image])
      t.equal(found.code, code)
      t.match(found.stdout, says)
      t.equal(found.stderr, '')
      t.ok(readFileSync(image).equals(before), 'nothing is written')
    })
  }
})

t.test('a vmdk: JSON, and repairing', async t => {
  const image = vmdkIn(tempFolder(t), strayGrain)
  const checked = await checkHere(['--output=json', image])
  t.equal(checked.code, 2)
  t.same(JSON.parse(checked.stdout), {
    filename: image,
    format: 'vmdk',
    'check-errors': 0,
    'image-end-offset': SPARSE.bytes.length,
    'total-clusters': 16,
    'allocated-clusters': 2,
    'fragmented-clusters': 1,
    corruptions: 2,
    leaks: 1,
  })
  t.match(checked.stderr, /^corruption at \d+: .*\ncorruption at \d+: .*\nleak at \d+: /)
  const repaired = await checkHere(['--repair', 'all', image])
  t.equal(repaired.code, 0)
  t.match(
    repaired.stdout,
    /^repaired at \d+: .*\n.*: repaired: 2 corruptions, 1 leaked grain\n.*: no errors found\n/,
  )
  t.ok(readFileSync(image).equals(SPARSE.bytes))
  const leaking = vmdkIn(tempFolder(t), lostGrain)
  t.equal((await checkHere(['--repair', 'leaks', leaking])).code, 0)
  t.equal(readFileSync(leaking).length, SPARSE.placeOf(5))
})

t.test('a vmdk: extents in files of their own', async t => {
  const folder = tempFolder(t)
  const other = tempFolder(t)
  const extent = vmdkIn(other, lostGrain)
  const image = join(folder, 'all.vmdk')
  writeFileSync(image, descriptorOf(extent))
  const refused = await checkHere([image])
  t.equal(refused.code, 1)
  t.match(refused.stderr, /lies outside the image's folder; allow it with --allow-path/)
  const allowed = ['--allow-path', other]
  t.equal((await checkHere([...allowed, image])).code, 3)
  writeFileSync(image, descriptorOf(extent).replace('RW ', 'RDONLY '))
  const kept = await checkHere([...allowed, '--repair=all', image])
  t.equal(kept.code, 3)
  t.match(kept.stdout, /^not done at 0: none of its extents may be written\nleak at /)
  writeFileSync(image, descriptorOf(extent))
  t.equal((await checkHere([...allowed, '--repair=all', image])).code, 0)
  t.equal(readFileSync(extent).length, SPARSE.placeOf(5))
})

t.test('a vmdk that was not closed cleanly', async t => {
  const image = vmdkIn(tempFolder(t), bytes => void bytes.writeUInt8(1, HEADER_AT.unclean))
  const { code, stdout, stderr } = await checkHere([image])
  t.equal(code, 0)
  t.match(stdout, /^notice at 0: it was not closed cleanly.*\n.*: no errors found\n/)
  t.equal(stderr, '')
  const repaired = await checkHere(['--repair=leaks', image])
  t.equal(repaired.code, 0)
  t.match(repaired.stdout, /^repaired at 72: it is marked as closed cleanly\n/)
  t.ok(readFileSync(image).equals(SPARSE.bytes))
})

t.test('qcow and cow: what it says, and repairing', async t => {
  const folder = tempFolder(t)
  const qcow = buildQcow({
    sizeBytes: 2 ** 20,
    clusters: new Map([
      [0, { kind: 'data', bytes: noise(4096, 1) }],
      [3, { kind: 'data', bytes: noise(4096, 2) }],
    ]),
  })
  const cow = buildCow({
    layout: 'qemu-i386',
    sizeBytes: 2 ** 20,
    sectors: new Map([
      [0, noise(512, 1)],
      [80, noise(512, 2)],
    ]),
  })
  const unlinked = Buffer.from(qcow.bytes)
  unlinked.writeBigUInt64BE(0n, qcow.entryAt(3))
  const doubled = Buffer.from(qcow.bytes)
  doubled.copy(doubled, qcow.entryAt(5), qcow.entryAt(3), qcow.entryAt(3) + 8)
  const unmarked = Buffer.from(cow.bytes)
  unmarked[cow.bitOf(80).at] = 0
  const cutOff = cow.bytes.subarray(0, cow.placeOf(80) + 100)
  const cases = [
    { name: 'sound.qcow', bytes: qcow.bytes, code: 0, says: /no errors found\n2 of 256 clusters/ },
    { name: 'leaks.qcow', bytes: unlinked, code: 3, says: /1 leaked cluster\n/, isRepaired: true },
    { name: 'doubled.qcow', bytes: doubled, code: 2, says: /corruption/ },
    { name: 'sound.cow', bytes: cow.bytes, code: 0, says: /no errors found\n2 of 2048 sectors/ },
    { name: 'leaks.cow', bytes: unmarked, code: 3, says: /leaked sector/, isRepaired: true },
    { name: 'cut.cow', bytes: cutOff, code: 2, says: /corruption/ },
  ]
  for (const { name, bytes, code, says, isRepaired } of cases) {
    await t.test(name, async t => {
      const image = join(folder, name)
      writeFileSync(image, bytes)
      await run('fallocate', ['--dig-holes', image])
      const found = await checkHere([image])
      t.equal(found.code, code, found.stdout)
      t.match(found.stdout, says)
      t.ok(readFileSync(image).equals(bytes), 'nothing is written')
      const json = await checkHere(['--output=json', image])
      t.match(JSON.parse(json.stdout), { format: name.split('.')[1], 'check-errors': 0 })
      const repaired = await checkHere(['--repair=all', image])
      t.equal(repaired.code, isRepaired ? 0 : code, repaired.stdout)
      if (!isRepaired) t.ok(readFileSync(image).equals(bytes), 'what cannot be known is left')
    })
  }
})

t.test('what it refuses, in one line', async t => {
  const folder = tempFolder(t)
  const image = imageIn(folder)
  const raw = join(folder, 'disk.raw')
  const vhd = join(folder, 'disk.vhd')
  writeFileSync(vhd, buildDynamic({ sizeBytes: 65536, sectors: new Map() }))
  writeFileSync(raw, Buffer.alloc(1024))
  const sparse = join(folder, 'disk.vmdk')
  writeFileSync(sparse, SPARSE.bytes)
  const lost = join(folder, 'lost.vmdk')
  writeFileSync(lost, descriptorOf('none.vmdk'))
  const cut = join(folder, 'cut.qcow2')
  writeFileSync(cut, IMAGE.bytes().subarray(0, 80))
  const cases = [
    { args: [raw], code: 63, says: /disk\.raw: raw images have no tables/ },
    { args: [vhd], code: 63, says: /disk\.vhd: vpc images have no tables/ },
    { args: ['--format', 'raw', image], code: 63, says: /no tables/ },
    { args: ['--format', 'vmdk', image], code: 1, says: /disk\.qcow2: / },
    { args: ['--format', 'qcow2', sparse], code: 1, says: /disk\.vmdk: this is no qcow2 image/ },
    {
      args: [lost],
      code: 1,
      says: /its extent "none\.vmdk" cannot be opened: no such file; put it/,
    },
    { args: [cut], code: 1, says: /cut\.qcow2: the qcow2 header is cut off after 80 bytes; / },
    { args: [folder], code: 1, says: /this is a folder, not a disk image; / },
    { args: [join(folder, 'none')], code: 1, says: /none: it cannot be opened: no such file; / },
    { args: [], code: 2, says: /IMAGE is missing; vimgfs help check/ },
    { args: ['--repair', 'some', image], code: 2, says: /--repair takes leaks, all, not "some"/ },
    { args: ['--output=xml', image], code: 2, says: /--output takes human, json/ },
  ]
  for (const { args, code, says } of cases) {
    const found = await checkHere([...args])
    t.equal(found.code, code, args.join(' '))
    t.match(found.stderr, says)
    t.match(found.stderr, /^vimgfs: [^\n]*\n$/, 'one line')
    t.equal(found.stdout, '')
  }
})
