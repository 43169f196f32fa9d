/** VMDK images as QEMU makes and writes them: every kind, chains of them, and what must be refused. */
import {
  closeSync,
  copyFileSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { ImageError } from '../../src/errors.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { noise } from '../fixtures/model.js'
import { vmsdOf } from '../fixtures/vmsd.js'
import { firstDifference, openedImage, readAll, readAt } from '../support/image.js'
import { needs, run, tempFolder } from '../support/run.js'
import { convertedBy, qemuImg, qemuIo, randomWrites } from './qemu.js'

const K = 1024
const M = K * K
const tools = needs('qemu-img', 'qemu-io')

const KINDS = [
  'monolithicSparse',
  'monolithicFlat',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentFlat',
] as const
const GRAIN = 64 * K

/** Compares every file of `image` with QEMU's reading of it. */
async function agrees(t: Test, image: string, name?: string, peer = image): Promise<void> {
  const { view } = openedImage(t, image)
  const expected = await convertedBy(peer, undefined, 'vmdk')
  t.equal(firstDifference(readAll(view(name)), expected), -1, `${name ?? 'the disk'} agrees`)
}

for (const kind of KINDS) {
  for (const zeroed of kind.endsWith('Flat') ? [''] : ['', ',zeroed_grain=on', ',compat6']) {
    t.test(`${kind}${zeroed}`, tools, async t => {
      const image = join(tempFolder(t), 'disk.vmdk')
      const size = 5 * M + 512
      await qemuImg(
        'create',
        '-q',
        '-f',
        'vmdk',
        '-o',
        `subformat=${kind}${zeroed}`,
        image,
        String(size),
      )
      const writes = randomWrites(7, size, { cluster: GRAIN, kinds: ['write', 'partial', 'zero'] })
      await qemuIo(image, writes, ['-f', 'vmdk'])
      await agrees(t, image)
    })
  }
}

t.test('extents of 2 GiB each', tools, async t => {
  for (const kind of ['twoGbMaxExtentSparse', 'twoGbMaxExtentFlat']) {
    const image = join(tempFolder(t), 'disk.vmdk')
    await qemuImg('create', '-q', '-f', 'vmdk', '-o', `subformat=${kind}`, image, '5G')
    const borders = [0, 2 ** 31 - 70000, 2 ** 32 - 100, 5 * 2 ** 30 - 4096]
    await qemuIo(
      image,
      borders.map((at, i) => `write -P ${i + 1} ${at} ${i === 3 ? 4096 : 140_000}`),
      ['-f', 'vmdk'],
    )
    const { view } = openedImage(t, image)
    const raw = join(tempFolder(t), 'raw')
    await qemuImg('convert', '-f', 'vmdk', '-O', 'raw', image, raw)
    const fd = openSync(raw, 'r')
    t.teardown(() => closeSync(fd))
    for (const at of borders) {
      const from = Math.max(0, at - 5000)
      const length = Math.min(200_000, 5 * 2 ** 30 - from)
      const expected = Buffer.alloc(length)
      readSync(fd, expected, 0, length, from)
      t.equal(firstDifference(readAt(view(), from, length), expected), -1, `${kind} at ${at}`)
    }
  }
})

t.test('streamOptimized', tools, async t => {
  const folder = tempFolder(t)
  const raw = join(folder, 'raw')
  const content = Buffer.concat([noise(300 * K, 1), Buffer.alloc(900 * K), noise(70 * K, 2)])
  content.fill('text ', 10 * K, 200 * K)
  writeFileSync(raw, content)
  const image = join(folder, 'disk.vmdk')
  await qemuImg('convert', '-f', 'raw', '-O', 'vmdk', '-o', 'subformat=streamOptimized', raw, image)
  t.equal(firstDifference(readAll(openedImage(t, image).view()), content), -1)
})

/** A base and `children` above it, each with writes of its own; their paths, the base first. */
async function makeChain(folder: string, base: string, children: number): Promise<string[]> {
  const size = 3 * M
  const create = (...args: string[]) =>
    run('qemu-img', ['create', '-q', '-f', 'vmdk', ...args], { cwd: folder })
  await create('-o', `subformat=${base}`, 'disk.vmdk', String(size))
  const names = ['disk.vmdk']
  for (let i = 1; ; i++) {
    const image = join(folder, names.at(-1) as string)
    const kinds = ['write', 'partial'] as const
    await qemuIo(image, randomWrites(i, size, { cluster: GRAIN, count: 12, kinds }), ['-f', 'vmdk'])
    if (i > children) return names.map(name => join(folder, name))
    const name = `disk-00000${i}.vmdk`
    await create('-b', names.at(-1) as string, '-F', 'vmdk', name)
    names.push(name)
  }
}

for (const base of ['monolithicSparse', 'twoGbMaxExtentSparse']) {
  t.test(`three children of a ${base} disk`, tools, async t => {
    const images = await makeChain(tempFolder(t), base, 3)
    const top = images.at(-1) as string
    await agrees(t, top)
    const { entries } = openedImage(t, top)
    t.strictSame(
      entries.map(({ name, kind }) => [name, kind]),
      [
        ['disk-000003.raw', 'disk'],
        ['disk-000003@disk-000002.raw', 'layer'],
        ['disk-000003@disk-000001.raw', 'layer'],
        ['disk-000003@disk.raw', 'layer'],
      ],
    )
    for (const [index, peer] of images.slice(0, -1).entries()) {
      await agrees(t, top, entries[images.length - 1 - index]?.name, peer)
    }
  })
}

function problem(image: string, options: Parameters<typeof openChain>[1] = {}): string {
  try {
    openChain(image, options)
    return ''
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    return `${error.context.path} ${error.message} ${error.context.hint}`
  }
}

t.test('a parent that was written after its child was made', tools, async t => {
  const [base, child] = (await makeChain(tempFolder(t), 'monolithicSparse', 1)) as [string, string]
  await qemuIo(base, ['write -P 1 0 512'], ['-f', 'vmdk'])
  t.match(problem(child), /its parent .*disk\.vmdk has been changed since/)
  t.match(problem(child), /--ignore-cid/)
  const { warnings } = openedImage(t, child, { ignoreCid: true })
  t.match(warnings.join('\n'), /has been changed since/)
})

t.test('a chain that was moved', tools, async t => {
  const folder = tempFolder(t)
  const [, child] = (await makeChain(folder, 'monolithicSparse', 1)) as [string, string]
  const expected = await convertedBy(child, undefined, 'vmdk')
  for (const hint of ['/vmfs/volumes/old/vm/disk.vmdk', 'C:\\Machines\\vm\\disk.vmdk']) {
    const image = join(folder, 'moved.vmdk')
    const bytes = readFileSync(child)
    const line = 'parentFileNameHint="disk.vmdk"'
    const at = bytes.indexOf(line)
    const text = bytes.subarray(at + line.length, bytes.indexOf(0, at))
    const changed = Buffer.concat([Buffer.from(`parentFileNameHint="${hint}"`), text])
    changed.copy(bytes, at)
    writeFileSync(image, bytes)
    t.equal(firstDifference(readAll(openedImage(t, image).view()), expected), -1, hint)
  }
})

t.test('files that are not there, or elsewhere', tools, async t => {
  const folder = tempFolder(t)
  const elsewhere = tempFolder(t)
  const [base, child] = (await makeChain(folder, 'monolithicSparse', 1)) as [string, string]
  renameSync(base, join(elsewhere, 'disk.vmdk'))
  t.match(problem(child), /its parent "disk\.vmdk" cannot be opened: no such file/)
  const image = join(elsewhere, 'flat.vmdk')
  await qemuImg('create', '-q', '-f', 'vmdk', '-o', 'subformat=monolithicFlat', image, '1M')
  const text = readFileSync(image, 'utf8')
  const outside = join(folder, 'outside.vmdk')
  writeFileSync(outside, text.replace('flat-flat.vmdk', join(elsewhere, 'flat-flat.vmdk')))
  t.match(problem(outside), /its extent ".*" lies outside the image's folder/)
  t.equal(problem(outside, { allowPaths: [elsewhere] }), '')
  copyFileSync(join(elsewhere, 'flat-flat.vmdk'), join(folder, 'flat-flat.vmdk'))
  t.match(problem(outside), /lies outside the image's folder/, 'another one lies beside it')
  writeFileSync(outside, text.replace('flat-flat.vmdk', '/vmfs/volumes/gone/flat-flat.vmdk'))
  t.match(
    openedImage(t, outside).warnings.join('\n'),
    /for its extent "\/vmfs.*" "flat-flat\.vmdk" is used/,
  )
  writeFileSync(outside, text.replace('RW ', 'NOACCESS '))
  t.match(problem(outside), /may not be accessed: NOACCESS 2048 FLAT/)
  writeFileSync(outside, text.replace('FLAT', 'VMFSRDM'))
  t.match(problem(outside), /raw device of an ESX host/)
})

t.test('a parent that stands above its child', tools, async t => {
  const folder = tempFolder(t)
  const [base, child] = (await makeChain(folder, 'monolithicSparse', 1)) as [string, string]
  const bytes = readFileSync(child)
  writeFileSync(base, bytes)
  t.match(problem(child), /(the chain is a loop|has been changed since)/)
})

t.test('a VirtualBox disk that only holds differences', tools, async t => {
  const image = join(tempFolder(t), 'disk.vmdk')
  await qemuImg('create', '-q', '-f', 'vmdk', '-o', 'subformat=monolithicFlat', image, '1M')
  const uuid = 'ddb.uuid.parent="f1b0cd43-2a55-4a61-9a77-0c0000000001"\n'
  writeFileSync(image, `${readFileSync(image, 'utf8')}${uuid}`)
  t.match(problem(image), /VirtualBox disk that only holds what differs/)
})

t.test('one extent of a split disk, without its descriptor', tools, async t => {
  const folder = tempFolder(t)
  const image = join(folder, 'disk.vmdk')
  await qemuImg('create', '-q', '-f', 'vmdk', '-o', 'subformat=twoGbMaxExtentSparse', image, '3M')
  await qemuIo(image, randomWrites(3, 3 * M, { cluster: GRAIN }), ['-f', 'vmdk'])
  const { view, warnings } = openedImage(t, join(folder, 'disk-s001.vmdk'))
  t.match(warnings.join('\n'), /it has no descriptor/)
  const expected = await convertedBy(image, undefined, 'vmdk')
  t.equal(firstDifference(readAll(view()), expected), -1)
})

t.test('snapshots that stand on each other', tools, async t => {
  const folder = tempFolder(t)
  const image = join(folder, 'disk.vmdk')
  await qemuImg('create', '-q', '-f', 'vmdk', '-o', 'subformat=monolithicFlat', image, '1M')
  const text = readFileSync(image, 'utf8').replace(/CID=.*\nparentCID=.*\n/, 'CID=1\nparentCID=1\n')
  for (const [name, parent] of [
    ['a.vmdk', 'b.vmdk'],
    ['b.vmdk', 'a.vmdk'],
  ] as const) {
    writeFileSync(join(folder, name), `${text}parentFileNameHint="${parent}"\n`)
  }
  const entries = [
    { uid: 1, name: 'own', disks: { 'scsi0:0': 'disk.vmdk' } },
    { uid: 2, name: 'a', disks: { 'scsi0:0': 'a.vmdk' } },
  ]
  writeFileSync(join(folder, 'machine.vmsd'), vmsdOf(entries, 1))
  const opened = openedImage(t, image)
  t.match(opened.warnings.join('\n'), /the snapshot "a" is not shown: .* the chain is a loop/)
  t.strictSame(
    opened.entries.map(({ name }) => name),
    ['disk.raw', 'disk@own.raw'],
  )
})
