/** Descriptors and headers that other programs write and read, though the specification has them otherwise. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { closeChain } from '../../../src/image/opening/chain.js'
import { openChain } from '../../../src/image/opening/open-chain.js'
import { descriptorEdits } from '../../../src/formats/vmdk/descriptor-edit.js'
import { noise } from '../../fixtures/model.js'
import {
  buildExtent,
  descriptorText,
  type ExtentSpec,
  extentModel,
  HEADER_AT,
  packed,
} from '../../fixtures/vmdk-builder.js'
import { vmsdOf } from '../../fixtures/vmsd.js'
import { openedImage, readAll } from '../../support/image.js'
import { attempt, needs, tempFolder } from '../../support/run.js'
import { MemoryStore } from '../../support/stores.js'
import { checkVmdk } from '../../../src/formats/vmdk/check.js'
import { readSparseHeader } from '../../../src/formats/vmdk/sparse-header.js'

const SECTORS = 128 * 40
const GRAIN = noise(64 * 1024, 1)
const TEXT = descriptorText('monolithicSparse', SECTORS, 'disk.vmdk')
const LINE = `RW ${SECTORS} SPARSE "disk.vmdk"`
const PLAIN: ExtentSpec = {
  capacitySectors: SECTORS,
  grains: new Map([[3, { kind: 'data', bytes: GRAIN }]]),
  descriptor: TEXT,
}
const STREAM: ExtentSpec = {
  capacitySectors: SECTORS,
  version: 3,
  isCompressed: true,
  isStream: true,
  grains: new Map([[3, packed(GRAIN)]]),
  descriptor: TEXT,
}

const lines: { title: string; line: string; isWritable: boolean }[] = [
  { title: 'RO', line: `RO ${SECTORS} SPARSE "disk.vmdk"`, isWritable: false },
  { title: 'no quotes', line: `RW ${SECTORS} SPARSE disk.vmdk`, isWritable: true },
  { title: 'no name', line: `RW ${SECTORS} SPARSE`, isWritable: true },
  { title: 'an unknown type', line: `RW ${SECTORS} THIN "disk.vmdk"`, isWritable: true },
  { title: 'a size of letters', line: 'RW many SPARSE "disk.vmdk"', isWritable: true },
  { title: 'no line', line: '', isWritable: true },
]
for (const { title, line, isWritable } of lines) {
  t.test(`the only extent line of an embedded descriptor: ${title}`, async t => {
    const image = join(tempFolder(t), 'disk.vmdk')
    writeFileSync(image, buildExtent({ ...PLAIN, descriptor: TEXT.replace(LINE, line) }).bytes)
    t.ok(readAll(openedImage(t, image).view()).equals(extentModel(PLAIN)))
    const chain = openChain(image, { access: 'write if possible' })
    closeChain(chain)
    t.equal(chain.isWritable, isWritable)
  })
}

t.test('an odd line among others, or in a file of its own, is refused', async t => {
  const image = join(tempFolder(t), 'disk.vmdk')
  const odd = `RO ${SECTORS} SPARSE "disk.vmdk"`
  writeFileSync(
    image,
    buildExtent({ ...PLAIN, descriptor: TEXT.replace(LINE, `${LINE}\n${odd}`) }).bytes,
  )
  t.throws(() => openChain(image), { code: 'CORRUPT', message: /access is not known/ })
  writeFileSync(image, TEXT.replace(LINE, odd))
  t.throws(() => openChain(image), { code: 'CORRUPT', message: /access is not known/ })
})

t.test('a CID of ten digits gets another one of as many that all programs read alike', async t => {
  for (const [cid, written] of [
    ['3029384756', /^00[0-9a-f]{8}$/],
    ['123456789', /^0[0-9a-f]{8}$/],
    ['0x1234abcd', /^[0-9a-f]{8}$/],
  ] as const) {
    const text = Buffer.from(`CID=${cid}\nRW 1 ZERO\n`)
    const [edit] = descriptorEdits(text, { dropsChangeTracking: false })
    t.match(String(edit?.bytes), written)
    const prefix = cid.startsWith('0x') ? 2 : 0
    t.equal(edit?.at, 4 + prefix)
    t.equal(edit?.bytes.length, cid.length - prefix)
  }
})

t.test('a child that QEMU makes of such a disk finds its parent', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const image = join(folder, 'disk.vmdk')
  writeFileSync(
    image,
    buildExtent({ ...PLAIN, descriptor: TEXT.replace('1234abcd', '3029384756') }).bytes,
  )
  const child = join(folder, 'child.vmdk')
  const create = ['create', '-q', '-f', 'vmdk', '-F', 'vmdk', '-b', image, child]
  t.equal((await attempt('qemu-img', create)).code, 0)
  t.ok(readAll(openedImage(t, child).view()).equals(extentModel(PLAIN)))
})

t.test('a stream whose flag promises a redundant directory that it has not', async t => {
  const built = buildExtent(STREAM)
  for (const at of [0, built.footerAt]) {
    built.bytes.writeUInt32LE(
      built.bytes.readUInt32LE(at + HEADER_AT.flags) | 2,
      at + HEADER_AT.flags,
    )
    built.bytes.writeBigUInt64LE(0n, at + HEADER_AT.redundantDirectory)
  }
  const image = join(tempFolder(t), 'disk.vmdk')
  writeFileSync(image, built.bytes)
  const open = openedImage(t, image)
  t.same(open.warnings, [])
  t.ok(readAll(open.view()).equals(extentModel(STREAM)))
  const store = new MemoryStore(image, readFileSync(image))
  const layout = { kind: 'sparse' as const, header: readSparseHeader(store) }
  const found = checkVmdk([{ sizeBytes: SECTORS * 512, store, layout }])
  t.match(found, { corruptions: 0, leaks: 0, checkErrors: 0, findings: [] })
})

t.test("a linked clone's snapshot, by the path of another machine", async t => {
  const folder = tempFolder(t)
  const [original, clone] = ['Original', 'Clone'].map(name => join(folder, name)) as [
    string,
    string,
  ]
  mkdirSync(original)
  mkdirSync(clone)
  writeFileSync(join(original, 'disk.vmdk'), buildExtent(PLAIN).bytes)
  const hint = 'D:\\Machines\\Original\\disk.vmdk'
  const text = TEXT.replace(
    'CID=1234abcd\nparentCID=ffffffff',
    'CID=5\nparentCID=1234abcd',
  ).replace('\n# Extent', `\nparentFileNameHint="${hint}"\n# Extent`)
  const image = join(clone, 'clone.vmdk')
  writeFileSync(image, buildExtent({ capacitySectors: SECTORS, descriptor: text }).bytes)
  const snapshot = { uid: 1, name: 'before', disks: { 'scsi0:0': hint } }
  writeFileSync(join(clone, 'clone.vmsd'), vmsdOf([snapshot], 1))
  const open = openedImage(t, image, { allowPaths: [original] })
  t.same(open.warnings, [])
  t.same(
    open.entries.map(({ name }) => name),
    ['clone.raw', 'clone@before.raw'],
  )
  t.ok(readAll(open.view('clone@before.raw')).equals(extentModel(PLAIN)))
})
