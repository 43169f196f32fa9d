/** Formats by their first bytes. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { oneLine } from '../../src/errors.js'
import { closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { probe } from '../../src/formats/probe.js'
import { buildImage } from '../fixtures/qcow2-builder.js'
import { tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'

const sector = (start: string | Buffer, at = 0): Buffer => {
  const b = Buffer.alloc(4096)
  Buffer.from(start as string, 'latin1').copy(b, at)
  return b
}
const qcow2 = buildImage({ clusterBits: 9, sizeBytes: 1024 }).bytes()

const known = [
  { title: 'a qcow2 image', name: 'disk.img', bytes: qcow2, format: 'qcow2' },
  { title: 'a raw disk', name: 'disk.img', bytes: sector(''), format: 'raw' },
  {
    title: 'a raw disk of odd size',
    name: 'disk',
    bytes: sector('x').subarray(0, 1001),
    format: 'raw',
  },
  { title: 'qcow2 shown as raw', name: 'disk.qcow2', bytes: qcow2, as: 'raw', format: 'raw' },
  {
    title: 'an empty file shown as raw',
    name: 'disk',
    bytes: sector('').subarray(0, 0),
    as: 'raw',
    format: 'raw',
  },
  { title: 'a vmdk shown as raw', name: 'disk', bytes: sector('KDMV'), as: 'raw', format: 'raw' },
] as const
for (const { title, name, bytes, format, ...rest } of known) {
  t.test(title, async t => {
    const image = join(tempFolder(t), name)
    writeFileSync(image, bytes)
    const chain = openChain(image, 'as' in rest ? { format: rest.as } : {})
    t.equal(chain.layers[0].format, format)
    if (format === 'raw') t.equal(chain.layers[0].sizeBytes, bytes.length)
    closeChain(chain)
  })
}

const refused = [
  { says: 'qed', bytes: sector('QED\0') },
  { says: 'vdi', bytes: sector('\x7f\x10\xda\xbe', 64) },
  { says: 'vhdx', bytes: sector('vhdxfile') },
  { says: 'parallels', bytes: sector('WithoutFreeSpace') },
]
for (const [index, { says, bytes }] of refused.entries()) {
  t.test(`${says} ${index}`, async t => {
    const image = join(tempFolder(t), 'disk.img')
    writeFileSync(image, bytes)
    try {
      openChain(image)
      t.fail('it was opened')
    } catch (error) {
      t.match(error, { code: 'UNSUPPORTED' })
      t.ok(oneLine(error as Error).startsWith(`${image}: ${says} images are not read yet; `))
    }
  })
}

for (const bytes of [
  sector('KDMV\x01\0\0\0'),
  sector('COWD\x01\0\0\0'),
  sector('\xbe\xba\xfe\xca\0\0\0\0'),
  sector('# Disk DescriptorFile\nversion=1\n'),
  sector('# disk descriptorfile\r\n'),
  sector('version = 1\nCID=1\n'),
]) {
  t.test(`${bytes.toString('latin1', 0, 12)} is vmdk`, async t => {
    t.equal(probe(new MemoryStore('disk.img', bytes)).name, 'vmdk')
  })
}

const noImages = [
  { name: 'disk.qcow2', bytes: sector('') },
  { name: 'disk.QCOW2', bytes: sector('') },
  { name: 'disk.vmdk', bytes: sector('') },
  { name: 'disk.img', bytes: Buffer.alloc(511) },
  { name: 'disk', bytes: Buffer.alloc(0) },
  { name: 'disk', bytes: sector('QFI\xfb').subarray(0, 40) },
]
for (const { name, bytes } of noImages) {
  t.test(`${bytes.length} bytes called ${name}`, async t => {
    const image = join(tempFolder(t), name)
    writeFileSync(image, bytes)
    t.throws(() => openChain(image), { code: 'NOT_AN_IMAGE', context: { path: image, hint: /./ } })
  })
}
