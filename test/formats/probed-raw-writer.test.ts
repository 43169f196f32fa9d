/** A raw image that was found by probing never gets the header of another format. */
import fs from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { ImageError } from '../../src/errors.js'
import { type OpenOptions, closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { createDiskMemory } from '../../src/image/writing/disk-memory.js'
import { storeOf } from '../../src/image/layer.js'
import { ViewSet } from '../../src/image/reading/view-set.js'
import { probedName } from '../../src/formats/probe.js'
import type { WritableDisk } from '../../src/formats/writable.js'
import { noise } from '../fixtures/model.js'
import { needs, run, tempFolder } from '../support/run.js'

const K = 1024
const SIZE = 64 * K
const CACHES = { metadataBytes: K * K, clusterBytes: K * K }

/** A disk with a partition table, opened for writing by probing. */
function rawDisk(t: Test, options: OpenOptions = {}) {
  const image = join(tempFolder(t), 'disk.img')
  const content = noise(SIZE, 7)
  content.fill(0, 446, 510)
  content.writeUInt16LE(0xaa55, 510)
  fs.writeFileSync(image, content)
  const chain = openChain(image, { access: 'write', ...options })
  const [top] = chain.layers
  const memory = createDiskMemory(top, 2, storeOf(top))
  const disks = [0, 1].map(
    thread => new ViewSet(chain.layers, CACHES, undefined, { memory, thread }).disk as WritableDisk,
  )
  t.teardown(() => closeChain(chain))
  const write = (bytes: Buffer | string, offset: number, thread = 0) => {
    const source = Buffer.from(bytes)
    disks[thread]?.write(source, 0, source.length, offset)
  }
  const file = () => fs.readFileSync(image)
  return { image, content, file, write, disk: disks[0] as WritableDisk }
}

const vdi = Buffer.alloc(512)
vdi.writeUInt32LE(0xbeda107f, 64)
const HEADS: Record<string, Buffer> = {
  qcow2: Buffer.from('514649fb00000003', 'hex'),
  qcow: Buffer.from('514649fb00000001', 'hex'),
  cow: Buffer.from('OOOM'),
  'cow, backwards': Buffer.from('MOOO'),
  'vmdk, sparse': Buffer.from('KDMV'),
  'vmdk, COWD': Buffer.from('COWD'),
  'vmdk, seSparse': Buffer.from('bebafeca00000000', 'hex'),
  'vmdk, descriptor': Buffer.from('# Disk DescriptorFile\nversion=1\n'.padEnd(512, '\0')),
  vhdx: Buffer.from('vhdxfile'),
  vhd: Buffer.from('conectix'),
  parallels: Buffer.from('WithoutFreeSpace'),
  qed: Buffer.from('QED\0'),
  vdi,
}
const REFUSED = { code: 'NOT_PERMITTED', message: /sector 0 .*--format raw/ }

for (const [name, head] of Object.entries(HEADS)) {
  t.test(name, async t => {
    const { content, file, write, disk } = rawDisk(t)
    t.not(probedName(head), 'raw')
    t.throws(() => write(head, 0), REFUSED, 'as it is')
    t.throws(() => write(Buffer.concat([head, noise(20 * K, 3)]), 0), REFUSED, 'of a large write')
    t.ok(file().equals(content), 'nothing of it is written')

    let refused = 0
    for (let at = head.length - 1; at >= 0; at--) {
      try {
        write(head.subarray(at, at + 1), at)
      } catch (error) {
        t.match(error, REFUSED)
        refused++
      }
    }
    t.ok(refused > 0, 'put together of bytes')
    t.equal(probedName(file().subarray(0, 512)), 'raw')
    t.equal(disk.failure, '', 'the disk is written on')
  })
}

t.test('all other writes are done', async t => {
  const { content, file, write, disk } = rawDisk(t)
  const expected = Buffer.from(content)
  const put = (bytes: Buffer, offset: number) => {
    bytes.copy(expected, offset)
    write(bytes, offset)
  }
  for (const [offset, length] of [
    [0, 512],
    [0, 1],
    [1, 3],
    [5, 507],
    [100, 5000],
    [511, 2],
    [0, 20 * K],
    [512, 512],
    [4096, 4096],
  ] as const) {
    put(noise(length, offset + length), offset)
    t.ok(file().equals(expected), `${length} bytes at ${offset}`)
  }
  for (const [offset, length] of [
    [0, 3],
    [10, 502],
    [0, 512],
    [500, 5000],
    [0, 8192],
  ] as const) {
    put(noise(10 * K, offset), 0)
    expected.fill(0, offset, offset + length)
    disk.zero(offset, length)
    t.ok(file().equals(expected), `${length} zeros at ${offset}`)
  }
})

t.test('room that is taken changes nothing', async t => {
  const { content, file, disk } = rawDisk(t)
  for (const [offset, length] of [
    [0, 1],
    [100, 5000],
    [0, SIZE],
  ] as const) {
    disk.reserve(offset, length)
    t.ok(file().equals(content), `${length} bytes at ${offset}`)
  }
})

t.test('zeros that would uncover a header', async t => {
  const { file, write, disk } = rawDisk(t)
  const text = HEADS['vmdk, descriptor']!
  // Nothing but the one byte keeps it from being a descriptor.
  const before = Buffer.from(text)
  before[400] = 1
  write(before, 0)
  t.throws(() => disk.zero(400, 1), REFUSED)
  t.throws(() => disk.zero(300, 200), REFUSED)
  t.ok(file().subarray(0, 512).equals(before))
  disk.zero(0, 512)
  t.ok(file().subarray(0, 512).equals(Buffer.alloc(512)), 'zeros are no header')
})

t.test('threads report it once', async t => {
  const { write } = rawDisk(t)
  const contexts = [0, 1, 0].map(thread => {
    try {
      write(HEADS.qcow2 as Buffer, 0, thread)
    } catch (error) {
      return (error as ImageError).context.isRepeated
    }
    return undefined
  })
  t.strictSame(contexts, [false, true, true])
})

t.test('a format that the user names', async t => {
  const { file, write } = rawDisk(t, { format: 'raw' })
  write(HEADS.qcow2 as Buffer, 0)
  t.equal(probedName(file()), 'qcow2', 'is the user’s word')
})

t.test('a name that says raw, and bytes that name other files', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const create = (...args: string[]) => run('qemu-img', ['create', '-q', ...args], { cwd: folder })
  await create('-f', 'raw', 'base.raw', '1M')
  const overlay = (name: string, format: string) =>
    create('-f', format, '-b', 'base.raw', '-F', 'raw', name)
  await overlay('a.img', 'qcow2')
  await overlay('a.RAW', 'qcow')
  await overlay('a.qcow2', 'qcow2')
  await overlay('a-flat.vmdk', 'qcow2')
  await create('-f', 'qcow2', 'alone.img', '1M')
  await create('-f', 'qcow2', '-o', 'data_file=data.raw', 'data.img', '1M')
  await create('-f', 'vmdk', '-o', 'subformat=monolithicFlat', 'flat.dd', '1M')
  const warnings = (name: string, options: OpenOptions = {}) => {
    const chain = openChain(join(folder, name), options)
    closeChain(chain)
    return chain.warnings.filter(text => text.includes('its name says raw'))
  }
  t.match(warnings('a.img'), [
    /a\.img: .* first bytes say qcow2 with the backing file "base\.raw"; .*--format raw/,
  ])
  t.match(warnings('a.RAW'), [/qcow with the backing file/])
  t.match(warnings('a-flat.vmdk'), [/says raw/])
  t.match(warnings('data.img'), [/with the data file "data\.raw"/])
  t.match(warnings('flat.dd'), [/vmdk with the extent/])
  t.strictSame(warnings('a.qcow2'), [])
  t.strictSame(warnings('alone.img'), [])
  t.strictSame(warnings('a.img', { format: 'qcow2' }), [], 'the user says so')
})
