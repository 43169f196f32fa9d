/** `vimgfs snapshot`: what it prints and refuses. */
import { copyFileSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { run as snapshot } from '../../src/cli/snapshot.js'
import {
  createSnapshot,
  deleteSnapshots,
  listSnapshots,
  openImage,
  renameSnapshot,
  revertToSnapshot,
} from '../../src/index.js'
import { buildImage, type Cluster, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { noise } from '../fixtures/model.js'
import { buildExtent, descriptorText } from '../fixtures/vmdk-builder.js'
import { vmsdOf } from '../fixtures/vmsd.js'
import { runHere } from '../support/command.js'
import { tempFolder } from '../support/run.js'

const CLUSTER = 4096
const SPEC: ImageSpec = {
  clusterBits: 12,
  sizeBytes: 64 * CLUSTER,
  clusters: new Map<number, Cluster>([
    [0, { kind: 'data', bytes: noise(CLUSTER, 1) }],
    [9, { kind: 'data', bytes: noise(CLUSTER, 2) }],
  ]),
}

const here = (...args: string[]) => runHere(snapshot, args, '/')

function imageIn(t: Test, spec: ImageSpec = SPEC): string {
  const file = join(tempFolder(t), 'disk.qcow2')
  writeFileSync(file, buildImage(spec).bytes())
  return file
}

const namesIn = (image: string) => listSnapshots(image).snapshots.map(({ name }) => name)

async function firstByte(image: string): Promise<number> {
  const { disk, close } = await opened(image)
  const byte = Buffer.alloc(1)
  disk.read(byte, 0)
  close()
  return byte[0] as number
}

async function opened(image: string, access: 'read' | 'write' = 'read') {
  const one = await openImage(image, { access })
  return { disk: one.disk, close: () => one.close() }
}

async function put(image: string, value: number): Promise<void> {
  const { disk, close } = await opened(image, 'write')
  disk.write(Buffer.alloc(CLUSTER, value), 0)
  close()
}

t.test('a snapshot before an upgrade, and back to it', async t => {
  const image = imageIn(t)
  t.same(await here('list', image), { code: 0, stdout: '', stderr: '' })
  await put(image, 1)
  t.same(await here('create', image, 'before'), { code: 0, stdout: '', stderr: '' })
  await put(image, 2)
  const reverted = await here('revert', image, 'before')
  t.match(reverted.stdout, /^the state before is kept as snapshot "before-revert-[-0-9]{19}"\n$/)
  t.equal(reverted.code, 0)
  t.equal(await firstByte(image), 1)
  const [, kept] = namesIn(image)
  t.match(
    await here('revert', image, kept as string),
    { code: 0, stdout: '' },
    'it is kept already',
  )
  t.equal(await firstByte(image), 2)
  t.match(await here('delete', image, 'before', kept as string), { code: 0, stdout: '' })
  t.same(namesIn(image), [])
})

t.test('the letters of qemu-img', async t => {
  const image = imageIn(t)
  await put(image, 1)
  t.match(await here('-c', 'one', image), { code: 0 })
  await put(image, 2)
  t.match(await here('-a', 'one', image, '-q', '--discard', '-f', 'qcow2'), { code: 0, stdout: '' })
  t.equal(await firstByte(image), 1)
  t.match((await here('-l', image)).stdout, /^Snapshot list:\nID .*\n1 +one /)
  t.strictSame(await here(image), await here('-l', image), 'the image alone is a list, too')
  t.match(await here('-c', 'two', `${image}@one`), { code: 2, stderr: /takes a whole image/ })
  t.match(await here('-d', 'one', image), { code: 0 })
  t.same(namesIn(image), [])
})

t.test('tags and IDs', async t => {
  const image = imageIn(t)
  for (const tag of ['a', 'b', '1']) await createSnapshot(image, tag)
  t.match(await here('create', image, 'a'), { code: 1, stderr: /a snapshot "a" already; choose/ })
  t.match(await here('delete', image, 'c'), { code: 1, stderr: /no snapshot "c"; vimgfs snapshot/ })
  t.match(await here('delete', image, '2'), { stderr: /no snapshot "2"; --id 2 names/ })
  t.match(await here('delete', image, '--id', '7'), { code: 1, stderr: /with the ID 7/ })
  t.match(await here('delete', image, '--id', '1', '--id', '2'), { code: 0 })
  t.same(namesIn(image), ['1'], 'a tag that is a number is a tag')
  await createSnapshot(image, 'next')
  t.equal(listSnapshots(image).snapshots[1]?.id, '4', 'one above the highest')
})

t.test('a tag that occurs twice', async t => {
  const name = Buffer.from('twin')
  const image = imageIn(t, {
    ...SPEC,
    snapshots: [
      { id: '1', name, clusters: new Map() },
      { id: '2', name, clusters: new Map() },
    ] as unknown as NonNullable<ImageSpec['snapshots']>,
  })
  for (const action of ['delete', 'revert']) {
    const found = await here(action, image, 'twin')
    t.match(found, { code: 1, stderr: /has 2 snapshots "twin"; name one by its ID: --id 1 or/ })
  }
  t.match(await here('delete', image, '--id', '2'), { code: 0 })
  t.same(namesIn(image), ['twin'])
})

t.test('a new one in place of those of the same tag', async t => {
  const image = imageIn(t)
  for (const [value, ...args] of [
    [1, 'x'],
    [2, 'y'],
    [3, '--replace', 'x'],
    [4, '--replace', 'z'],
  ] as const) {
    await put(image, value)
    t.same(await here('create', image, ...args), { code: 0, stdout: '', stderr: '' })
  }
  t.same(namesIn(image), ['y', 'x', 'z'])
  t.equal((await here('revert', '--discard', image, 'x')).code, 0)
  t.equal(await firstByte(image), 3)
})

t.test('another tag', async t => {
  const image = imageIn(t)
  for (const [value, tag] of [
    [1, 'x'],
    [2, 'y'],
  ] as const) {
    await put(image, value)
    await here('create', image, tag)
  }
  const before = listSnapshots(image).snapshots
  const name = 'a much longer tag, which moves the entry after it'
  t.same(await here('rename', image, 'x', name), { code: 0, stdout: '', stderr: '' })
  t.same(listSnapshots(image).snapshots, [{ ...before[0], name }, before[1]])
  t.same(await here('rename', image, '--id', '2', 'x'), { code: 0, stdout: '', stderr: '' })
  await renameSnapshot(image, { tag: 'x' }, 'x')
  t.same(namesIn(image), [name, 'x'])
  t.match(await here('rename', image, 'x', name), {
    code: 1,
    stderr:
      /^vimgfs: [^\n]*it has a snapshot "a much longer tag[^\n]* already; choose another tag\n$/,
  })
  t.match(await here('rename', image, 'z', 'w'), { code: 1, stderr: /has no snapshot "z"/ })
  t.match(await here('rename', image, 'x', ''), { code: 1, stderr: /a tag has 1 to/ })
  t.match(await here('rename', image, 'x'), { code: 2, stderr: /TAG is missing/ })
  t.equal((await here('revert', '--discard', image, name)).code, 0)
  t.equal(await firstByte(image), 1)
})

t.test('old ones are deleted together', async t => {
  const image = imageIn(t)
  const { SnapshotImage } = await import('../../src/image/snapshots/snapshots.js')
  for (const [tag, days] of [
    ['old', 40],
    ['older', 90],
    ['new', 3],
  ] as const) {
    const one = await SnapshotImage.open(image)
    await one.create(tag, new Date(Date.now() - days * 86_400_000))
    one.close()
  }
  const dry = await here('delete', image, '--older-than', '30d', '--dry-run')
  t.match(
    dry.stdout,
    /^would delete snapshot "old" \(ID 1, of .*\nwould delete snapshot "older" .*\n$/,
  )
  t.same(namesIn(image), ['old', 'older', 'new'])
  t.match(await here('delete', image, '--older-than', '5w'), { stdout: /^deleted snapshot "old" / })
  t.same(namesIn(image), ['new'])
  t.same(await here('delete', image, '--older-than', '5w'), { code: 0, stdout: '', stderr: '' })
})

t.test('JSON, and the layers', async t => {
  const folder = tempFolder(t)
  const base = join(folder, 'base.qcow2')
  const top = join(folder, 'top.qcow2')
  writeFileSync(base, buildImage(SPEC).bytes())
  await createSnapshot(base, 'in the base')
  const backing = { name: 'base.qcow2', format: 'qcow2' }
  writeFileSync(top, buildImage({ ...SPEC, backing }).bytes())
  await createSnapshot(top, 'in the top')
  const found = JSON.parse((await here('list', '--output=json', top)).stdout)
  t.match(found, {
    filename: top,
    format: 'qcow2',
    snapshots: [{ id: '1', name: 'in the top', 'vm-state-size': 0 }],
    layers: [
      { layer: 0, filename: top, 'virtual-size': SPEC.sizeBytes },
      { layer: 1, filename: base, snapshots: [{ name: 'in the base' }] },
    ],
  })
  t.notMatch((await here('list', top)).stdout, /layer|base/)
  const { stdout } = await here('list', '--layers', top)
  t.match(
    stdout,
    /^Snapshot list:\nID.*\n1 .*\nlayer 0: .*top.*\nlayer 1: .*base.*\nSnapshot list:/,
  )
})

t.test('what is refused leaves the image as it was', async t => {
  const cases: [string, ImageSpec, readonly string[], RegExp][] = [
    ['a data file', { ...SPEC, dataFile: 'data.raw' }, ['create', 'x'], /data are in another file/],
    ['a long tag', SPEC, ['create', 'x'.repeat(256)], /a tag has 1 to 255 bytes, not 256/],
    ['no tag', SPEC, ['create', ''], /a tag has 1 to 255 bytes/],
    ['counts of one bit', { ...SPEC, refcountOrder: 0 }, ['create', 'x'], /more than 1 references/],
    ['a corrupt image', { ...SPEC, incompatible: 2n }, ['create', 'x'], /marked corrupt/],
  ]
  for (const [title, spec, [action, tag], says] of cases) {
    const image = imageIn(t, spec)
    writeFileSync(join(image, '../data.raw'), Buffer.alloc(SPEC.sizeBytes))
    const before = readFileSync(image)
    t.match(await here(action as string, image, tag as string), { code: 1, stderr: says }, title)
    t.ok(readFileSync(image).equals(before), `${title}: it is as it was`)
  }
  const raw = join(tempFolder(t), 'disk.raw')
  writeFileSync(raw, noise(8192, 3))
  t.match(await here('create', '-f', 'raw', raw, 'x'), {
    code: 1,
    stderr: /raw images have no snap/,
  })
  t.match(await here('list', '-f', 'raw', raw), { code: 0, stdout: '' })
  t.match(await here('create', '/no/such', 'x'), { code: 1, stderr: /^vimgfs: \/no\/such: / })
})

t.test('a base that another image needs', async t => {
  const base = imageIn(t)
  await createSnapshot(base, 'one')
  await put(base, 3)
  const backing = { name: 'disk.qcow2', format: 'qcow2' }
  writeFileSync(join(base, '../overlay.qcow2'), buildImage({ ...SPEC, backing }).bytes())
  t.match(await here('revert', base, 'one'), { code: 1, stderr: /would be broken by writing it/ })
  t.match(await here('create', base, 'two'), { code: 0 }, 'the disk stays as it is')
  t.match(await here('delete', base, 'two'), { code: 0 })
  t.match(await here('revert', base, 'one', '--force'), { code: 0 })
})

t.test('an image in use', async t => {
  const image = imageIn(t)
  const { disk, close } = await opened(image, 'write')
  disk.write(Buffer.alloc(CLUSTER, 1), 0)
  for (const args of [
    ['create', image, 'x'],
    ['-d', 'x', image],
    ['revert', image, 'x'],
  ]) {
    t.match(await here(...args), { code: 1, stderr: /in use/ }, args.join(' '))
  }
  t.match(await here('list', image), { code: 0 }, 'the list only reads')
  close()
  t.match(await here('create', image, 'x'), { code: 0 })
})

t.test("the snapshots of a vmdk's machine", async t => {
  const folder = tempFolder(t)
  const image = join(folder, 'disk.vmdk')
  const descriptor = descriptorText('monolithicSparse', 2048, 'disk.vmdk')
  writeFileSync(image, buildExtent({ capacitySectors: 2048, descriptor }).bytes)
  const disks = { 'scsi0:0': 'disk.vmdk' }
  const list = [
    { uid: 1, name: 'first', description: 'before all', disks },
    { uid: 2, parent: 1, name: 'second', disks },
  ]
  writeFileSync(join(folder, 'machine.vmsd'), vmsdOf(list, 2))
  const { stdout } = await here('list', image)
  t.match(
    stdout,
    /^Snapshot list of the machine:\nID.*\n1 +first .* in disk\.vmdk\n2 +second .* after 1, in/,
  )
  const found = JSON.parse((await here('list', '--output=json', image)).stdout)
  t.match(found['machine-snapshots'], [
    { id: '1', name: 'first', description: 'before all', filename: 'disk.vmdk' },
    { id: '2', parent: '1' },
  ])
})

t.test('wrong usage', async t => {
  const cases: [readonly string[], RegExp][] = [
    [[], /the action is missing: list, create, delete, rename, revert/],
    [['undo', 'x'], /"undo" is no action/],
    [['list'], /IMAGE is missing/],
    [['create', 'x'], /TAG is missing/],
    [['create', 'x', 'a', 'b'], /"b" is one argument too many/],
    [['list', 'x', 'a'], /one argument too many/],
    [['create', 'x', 'a', '--discard'], /snapshot create has no option --discard/],
    [['revert', 'x', 'a', '--id', '1'], /one argument too many/],
    [['delete', 'x', 'a', '--older-than', '3d'], /not both/],
    [['delete', 'x', '--older-than', '3'], /an age such as/],
    [['-l', '-c', 'a', 'x'], /exclude each other/],
  ]
  for (const [args, says] of cases) {
    t.match(await here(...args), { code: 2, stderr: says }, args.join(' '))
  }
})

t.test('as a library', async t => {
  const image = imageIn(t)
  await put(image, 1)
  await createSnapshot(image, 'one')
  await put(image, 2)
  t.match(await revertToSnapshot(image, { tag: 'one' }), /^before-revert-/)
  t.equal(await firstByte(image), 1)
  t.equal(await revertToSnapshot(image, { id: '2' }, { discard: true }), undefined)
  t.equal(await firstByte(image), 2)
  await deleteSnapshots(image, [{ tag: 'one' }, { id: '2' }])
  t.same(namesIn(image), [])
})

t.test('space is given back, and used again', async t => {
  const image = imageIn(t)
  const copy = `${image}.copy`
  copyFileSync(image, copy)
  const sizes: number[] = []
  for (let i = 0; i < 6; i++) {
    await createSnapshot(image, 'x')
    await deleteSnapshots(image, [{ tag: 'x' }])
    sizes.push(statSync(image).size)
  }
  t.equal(sizes.at(-1), sizes.at(1), 'the file does not grow each time')
  t.ok(statSync(image).blocks <= statSync(copy).blocks + 16)
})
