/** Disks and files of 8 PiB or more: too large, and not damaged. */
import { truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { oneLine } from '../../src/errors.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { buildCow } from '../fixtures/cow-builder.js'
import { buildQcow } from '../fixtures/qcow-builder.js'
import { buildImage } from '../fixtures/qcow2-builder.js'
import { buildExtent, descriptorText, HEADER_AT } from '../fixtures/vmdk-builder.js'
import { openedImage, readAll } from '../support/image.js'
import { attempt, needs, tempFolder } from '../support/run.js'

const SIZES = [2n ** 53n, 2n ** 60n, 2n ** 64n - 512n]
const vmdk = () => {
  const descriptor = descriptorText('monolithicSparse', 128, 'disk.vmdk')
  return buildExtent({ capacitySectors: 128, descriptor }).bytes
}
const formats: { name: string; file: () => Buffer; put: (file: Buffer, size: bigint) => void }[] = [
  {
    name: 'qcow2',
    file: () => buildImage({ clusterBits: 16, sizeBytes: 65536 }).bytes(),
    put: (file, size) => file.writeBigUInt64BE(size, 24),
  },
  {
    name: 'qcow',
    file: () => buildQcow({ sizeBytes: 65536 }).bytes,
    put: (file, size) => file.writeBigUInt64BE(size, 24),
  },
  {
    name: 'cow',
    file: () => buildCow({ layout: 'qemu-x86-64', sizeBytes: 65536 }).bytes,
    put: (file, size) => file.writeBigUInt64BE(size, 1040),
  },
  {
    name: 'vmdk',
    file: vmdk,
    put: (file, size) => file.writeBigUInt64LE(size / 512n, HEADER_AT.capacity),
  },
]
for (const { name, file, put } of formats) {
  t.test(name, async t => {
    const image = join(tempFolder(t), `disk.${name}`)
    for (const size of SIZES) {
      const bytes = file()
      put(bytes, size)
      writeFileSync(image, bytes)
      try {
        openChain(image)
        t.fail('opened')
      } catch (error) {
        t.match(error, { code: 'UNSUPPORTED', context: { path: image } })
        t.match(oneLine(error as Error), /the disk is too large: .* 8 PiB/)
        t.notMatch(oneLine(error as Error), /damage|restore/)
        const isResizable = /qemu-img resize/.test(oneLine(error as Error))
        t.equal(isResizable, name === 'qcow2', 'QEMU resizes no other of these')
      }
    }
  })
}

t.test('a descriptor', async t => {
  const image = join(tempFolder(t), 'disk.vmdk')
  writeFileSync(image, `# Disk DescriptorFile\nversion=1\nCID=1\nRW ${2 ** 44} ZERO\n`)
  t.throws(() => openChain(image), { code: 'UNSUPPORTED', message: /the disk is too large/ })
})

t.test('a raw file', async t => {
  const image = join(tempFolder(t), 'disk.raw')
  writeFileSync(image, '')
  try {
    truncateSync(image, 2 ** 53)
  } catch {
    // Not every file system has files of this size.
    return
  }
  t.throws(() => openChain(image, { format: 'raw' }), {
    code: 'UNSUPPORTED',
    message: /the file is too large/,
  })
})

t.test(
  'after "file:" a backing file name is a path, colons included',
  needs('qemu-img'),
  async t => {
    const folder = tempFolder(t)
    const below = Buffer.alloc(65536, 7)
    writeFileSync(join(folder, 'x:y.raw'), below)
    const image = join(folder, 'top.qcow2')
    const create = [
      'create',
      '-q',
      '-f',
      'qcow2',
      '-u',
      '-b',
      'file:x:y.raw',
      '-F',
      'raw',
      image,
      '64K',
    ]
    t.equal((await attempt('qemu-img', create)).code, 0)
    t.ok(readAll(openedImage(t, image).view()).equals(below))
    const other = ['rebase', '-u', '-f', 'qcow2', '-F', 'raw', '-b', 'nbd:x:y.raw', image]
    t.equal((await attempt('qemu-img', other)).code, 0)
    t.throws(() => openChain(image), { message: /is not a plain path but a protocol/ })
  },
)
