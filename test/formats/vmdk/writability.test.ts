/** Which images are read-only, and the reason given; most can still be read. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { ImageError, oneLine } from '../../../src/errors.js'
import { closeChain, type OpenOptions } from '../../../src/image/opening/chain.js'
import { openChain } from '../../../src/image/opening/open-chain.js'
import { createDiskMemory } from '../../../src/image/writing/disk-memory.js'
import { ViewSet } from '../../../src/image/reading/view-set.js'
import { storeOf } from '../../../src/image/layer.js'
import { buildSesparse } from '../../fixtures/sesparse-builder.js'
import { buildExtent, descriptorText, HEADER_AT, packed } from '../../fixtures/vmdk-builder.js'
import { tempFolder } from '../../support/run.js'

const SECTOR = 512
const SECTORS = 1024
const CACHES = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 20 }

const text = (...extents: string[]): string =>
  descriptorText('monolithicSparse', SECTORS, 'x').replace(/^RW .*$/m, extents.join('\n'))

interface Image {
  readonly [file: string]: string | Buffer
}

function write(t: Test, files: Image): string {
  const folder = tempFolder(t)
  for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), content)
  return join(folder, 'disk.vmdk')
}

/** An image in one file, with a descriptor of so many lines more. */
const sparse = (more = '', change: (image: Buffer) => void = () => {}): Image => {
  const descriptor = `${descriptorText('monolithicSparse', SECTORS, 'disk.vmdk')}${more}`
  const { bytes } = buildExtent({ capacitySectors: SECTORS, descriptor })
  change(bytes)
  return { 'disk.vmdk': bytes }
}

const flat = Buffer.alloc(SECTORS * SECTOR)
const TRACKED = 'changeTrackPath="disk-ctk.vmdk"\n'

const REFUSED: Record<string, { files: Image; says: RegExp; hint?: RegExp }> = {
  'a stream': {
    files: {
      'disk.vmdk': buildExtent({
        capacitySectors: SECTORS,
        isCompressed: true,
        version: 3,
        grains: new Map([[0, packed(Buffer.alloc(65536, 7))]]),
        descriptor: descriptorText('streamOptimized', SECTORS, 'disk.vmdk'),
      }).bytes,
    },
    says: /stream-optimized: what is compressed cannot be written in place/,
  },
  seSparse: {
    files: {
      'disk.vmdk': text(`RW ${SECTORS} SESPARSE "delta"`),
      delta: buildSesparse({ sectors: SECTORS }).bytes,
    },
    says: /seSparse extents are read only/,
  },
  'an extent without its descriptor': {
    files: { 'disk.vmdk': buildExtent({ capacitySectors: SECTORS }).bytes },
    says: /an extent without its descriptor is not written/,
    hint: /mount the disk that it is a part of/,
  },
  'changes that are tracked': {
    files: sparse(TRACKED),
    says: /its changes are tracked in "disk-ctk\.vmdk", which is not kept up/,
    hint: /--drop-change-tracking/,
  },
  'tracked, of version 3': {
    files: sparse(TRACKED, image => image.writeUInt32LE(3, HEADER_AT.version)),
    says: /its changes are tracked/,
  },
  'one of two directories is damaged': {
    files: sparse('', image => image.writeBigUInt64LE(2n ** 30n, HEADER_AT.redundantDirectory)),
    says: /one of its two grain directories is damaged/,
  },
  'extents that may only be read': {
    files: { 'disk.vmdk': text(`RDONLY ${SECTORS} FLAT "flat" 0`), flat },
    says: /none of its extents may be written/,
  },
  'a flat file that is too short': {
    files: {
      'disk.vmdk': text(`RW ${SECTORS} FLAT "flat" 0`),
      flat: flat.subarray(SECTOR),
    },
    says: /its end is missing/,
  },
  'two parts that share bytes': {
    files: {
      'disk.vmdk': text(`RW ${SECTORS / 2} FLAT "flat" 0`, `RW ${SECTORS / 2} FLAT "flat" 511`),
      flat,
    },
    says: /parts of the disk share bytes of this file/,
  },
  'the same extent twice': {
    files: {
      'disk.vmdk': text(`RW ${SECTORS} SPARSE "sparse"`, `RW ${SECTORS} SPARSE "sparse"`),
      sparse: buildExtent({ capacitySectors: SECTORS }).bytes,
    },
    says: /parts of the disk share bytes of this file/,
  },
  'a descriptor within its own disk': {
    files: { 'disk.vmdk': text('RW 1 FLAT "disk.vmdk" 0').padEnd(SECTOR * 2, '\n') },
    says: /the descriptor lies within the disk that it describes/,
  },
}

for (const [name, { files, says, hint = /-o ro/ }] of Object.entries(REFUSED)) {
  t.test(name, async t => {
    const image = write(t, files)
    const before = readFileSync(image)
    try {
      closeChain(openChain(image, { access: 'write' }))
      t.fail('it is opened for writing')
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      t.equal(error.code, 'READ_ONLY')
      t.match(oneLine(error), says)
      t.match(error.context.hint, hint)
      t.notMatch(oneLine(error), /\n/)
    }
    const chain = openChain(image, { access: 'write if possible' })
    t.teardown(() => closeChain(chain))
    t.notOk(chain.isWritable)
    t.match(chain.warnings[0], says)
    t.match(chain.warnings[0], /, mounted read-only$/)
    t.ok(readFileSync(image).equals(before), 'nothing of it has changed')
  })
}

function writeOnce(image: string, options: OpenOptions): readonly string[] {
  const chain = openChain(image, { access: 'write', ...options })
  try {
    const [top] = chain.layers
    const memory = createDiskMemory(top, 1, storeOf(top))
    const { disk } = new ViewSet(chain.layers, CACHES, undefined, { memory, thread: 0 })
    disk?.write(Buffer.alloc(SECTOR, 9), 0, SECTOR, 0)
    return disk?.close() ?? []
  } finally {
    closeChain(chain)
  }
}

t.test('tracking is given up on request, with the first write', async t => {
  const image = write(t, sparse(TRACKED))
  const before = readFileSync(image, 'latin1')
  closeChain(openChain(image, { access: 'write', dropsChangeTracking: true }))
  t.equal(readFileSync(image, 'latin1'), before, 'not before')
  writeOnce(image, { dropsChangeTracking: true })
  const after = readFileSync(image, 'latin1')
  t.match(after, '#hangeTrackPath="disk-ctk.vmdk"\n')
  t.notMatch(after, /^changeTrackPath/m)
  writeOnce(image, {})
  t.pass('and is gone then')
})

t.test('a child whose extent is a file of its parent', async t => {
  const parent = text(`RW ${SECTORS} FLAT "flat" 0`)
  const child = parent
    .replace('parentCID=ffffffff', 'parentCID=1234abcd')
    .replace('CID=1234abcd\n', 'CID=12345678\n')
    .replace('# Extent', 'parentFileNameHint="parent.vmdk"\n# Extent')
  const image = write(t, { 'disk.vmdk': child, 'parent.vmdk': parent, flat })
  t.throws(() => openChain(image, { access: 'write' }), {
    code: 'CORRUPT',
    message: /its extent "flat" is one of the disk above it, too/,
  })
  closeChain(openChain(image))
  t.pass('it is read')
})

t.test('growing is refused before anything of the image changes', async t => {
  const image = write(t, sparse())
  const before = readFileSync(image)
  const chain = openChain(image, { access: 'write' })
  t.teardown(() => closeChain(chain))
  const [top] = chain.layers
  const memory = createDiskMemory(top, 1, storeOf(top))
  const { disk } = new ViewSet(chain.layers, CACHES, undefined, { memory, thread: 0 })
  t.throws(() => disk?.grow(2 ** 30), { code: 'REFUSED', message: /cannot grow/ })
  t.same(disk?.close(), [])
  t.ok(readFileSync(image).equals(before))
})

t.test('a part of the disk that may not be written', async t => {
  const half = SECTORS / 2
  const files = { flat, other: flat }
  const lines = [`RW ${half} FLAT "flat" 0`, `RDONLY ${half} FLAT "other" 0`, `RW 8 ZERO`]
  const image = write(t, { 'disk.vmdk': text(...lines), ...files })
  const chain = openChain(image, { access: 'write' })
  t.teardown(() => closeChain(chain))
  const [top] = chain.layers
  const memory = createDiskMemory(top, 1, storeOf(top))
  const { disk } = new ViewSet(chain.layers, CACHES, undefined, { memory, thread: 0 })
  const data = Buffer.alloc(4 * SECTOR, 3)
  disk?.write(data, 0, data.length, 0)
  for (const at of [half, SECTORS]) {
    const act = () => disk?.write(data, 0, data.length, at * SECTOR)
    t.throws(act, { code: 'READ_ONLY', message: /an extent that may not be written/ })
    t.equal(disk?.failure, '', 'the rest is written on')
  }
  disk?.write(data, 0, data.length, 16 * SECTOR)
  disk?.close()
  const written = readFileSync(join(image, '..', 'flat'))
  t.ok(written.subarray(16 * SECTOR, 20 * SECTOR).equals(data))
  t.ok(readFileSync(join(image, '..', 'other')).equals(flat))
})
