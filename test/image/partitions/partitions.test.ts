/** Partition tables: what sfdisk and libblkid say of them, and what is left out. */
import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import t, { type Test } from 'tap'
import type { Partition, PartitionedDisk } from '../../../src/image/partitions/partition.js'
import { readPartitionTable } from '../../../src/image/partitions/read-table.js'
import { loop } from '../../support/loop.js'
import { needs, needsRoot, run, tempFolder } from '../../support/run.js'

const MIB = 2 ** 20
const SECTOR = 512

/** A disk in memory. Past its end it reads as zeros, as those of images do. */
class Disk implements PartitionedDisk {
  readonly bytes: Buffer

  constructor(bytes: Buffer | number) {
    this.bytes = typeof bytes === 'number' ? Buffer.alloc(bytes) : bytes
  }

  get sizeBytes(): number {
    return this.bytes.length
  }

  read(target: Buffer, start: number, length: number, offset: number): void {
    target.fill(0, start, start + length)
    this.bytes.copy(target, start, offset, offset + length)
  }
}

interface Row {
  boot?: number
  type: number
  start: number
  sectors: number
}

/** Writes a boot record into the sector at `lba`. */
function putRecord(disk: Disk, lba: number, rows: readonly Row[], diskId = 0): void {
  const at = lba * SECTOR
  disk.bytes.writeUInt32LE(diskId, at + 440)
  rows.forEach(({ boot = 0, type, start, sectors }, i) => {
    const entry = at + 446 + i * 16
    disk.bytes.writeUInt8(boot, entry)
    disk.bytes.writeUInt8(type, entry + 4)
    disk.bytes.writeUInt32LE(start, entry + 8)
    disk.bytes.writeUInt32LE(sectors, entry + 12)
  })
  disk.bytes.writeUInt16LE(0xaa55, at + 510)
}

const numbers = (partitions: readonly Partition[]) => partitions.map(({ number }) => number)

/** Partitions a disk with sfdisk, and returns it with what sfdisk and libblkid (partx) say. */
async function partitioned(t: Test, sizeBytes: number, script: string, sectorSize = SECTOR) {
  const file = join(tempFolder(t), 'disk.raw')
  const fd = openSync(file, 'w')
  ftruncateSync(fd, sizeBytes)
  closeSync(fd)
  const path = sectorSize === SECTOR ? file : (await loop(t, file, { sectorSize })).device
  await run('sfdisk', ['--quiet', '--wipe=never', path], { input: script })
  const said = JSON.parse(await run('sfdisk', ['--json', path])).partitiontable
  const words = ['--raw', '--noheadings', '--output=NR,START,SECTORS', path]
  const probed = (await run('partx', words))
    .trim()
    .split('\n')
    .map(line => line.split(' ').map(Number) as [number, number, number])
    .map(([number, start, sectors]) => ({ number, start: start * 512, size: sectors * 512 }))
  return { disk: new Disk(readFileSync(file)), said, probed }
}

interface Said {
  node: string
  start: number
  size: number
  type: string
  uuid?: string
  name?: string
}

for (const { name, sectorSize, script, table } of [
  {
    name: 'GPT',
    sectorSize: 512,
    table: 'gpt',
    script:
      'label: gpt\nsize=3M, type=U, name="EFI — System"\nsize=5M\n7: size=2M, type=S, uuid=01234567-89AB-CDEF-0123-456789ABCDEF\n',
  },
  { name: 'GPT, 4 KiB', sectorSize: 4096, table: 'gpt', script: 'label: gpt\nsize=3M\nsize=5M\n' },
  {
    name: 'MBR with logical partitions',
    sectorSize: 512,
    table: 'dos',
    script:
      'label: dos\nlabel-id: 0x1234abcd\nsize=2M, type=7, bootable\n4: type=5, size=20M\n5: size=2M\n6: size=3M, type=82\n7: size=1M\n',
  },
  { name: 'MBR of a primary partition', sectorSize: 512, table: 'dos', script: 'label: dos\n,\n' },
] as const) {
  t.test(`${name}: as sfdisk and libblkid say`, { ...needs('sfdisk'), ...needsRoot() }, async t => {
    const { disk, said, probed } = await partitioned(t, 40 * MIB, script, sectorSize)
    const found = readPartitionTable(disk)
    t.match(found, { table, sectorSize, warnings: [] })
    const wanted = (said.partitions as Said[])
      .map(({ node, start, size, type, uuid, name: label }) => ({
        number: Number(/(\d+)$/.exec(node)?.[1]),
        start: start * sectorSize,
        size: size * sectorSize,
        type: table === 'dos' ? type.padStart(2, '0') : type,
        label,
        uuid: table === 'dos' ? undefined : uuid,
      }))
      .filter(({ type }) => type !== '05')
    const withoutIds = (partitions: readonly Partition[]) =>
      table === 'dos' ? partitions.map(each => ({ ...each, uuid: undefined })) : partitions
    t.same(withoutIds(found.partitions), wanted)
    const others = probed.filter(({ number }) => table !== 'dos' || number !== 4)
    t.same(
      found.partitions.map(({ number, start, size }) => ({ number, start, size })),
      others,
    )
    if (name.includes('logical')) t.equal(found.partitions[0]?.uuid, '1234abcd-01')
  })
}

t.test('a damaged GPT', needs('sfdisk', 'partx'), async t => {
  const script = 'label: gpt\nsize=3M\nsize=5M\n'
  const { disk } = await partitioned(t, 20 * MIB, script)
  const whole = readPartitionTable(disk)
  const damaged = (...places: number[]) => {
    const bytes = Buffer.from(disk.bytes)
    for (const at of places) bytes.writeUInt8((bytes[at] as number) ^ 1, at)
    return new Disk(bytes)
  }
  const backup = /the one at its end is used/
  t.same(whole.warnings, [])
  for (const at of [SECTOR + 17, SECTOR + 60, 2 * SECTOR + 33]) {
    const found = readPartitionTable(damaged(at))
    t.same(found.partitions, whole.partitions, `byte ${at}`)
    t.match(found.warnings, [backup])
  }
  const grown = damaged(2 * SECTOR + 33)
  const larger = new Disk(Buffer.concat([grown.bytes, Buffer.alloc(MIB)]))
  t.same(readPartitionTable(larger).partitions, whole.partitions, 'the disk has grown since')
  const gone = readPartitionTable(damaged(SECTOR + 17, disk.sizeBytes - SECTOR + 17))
  t.match(gone, { table: undefined, partitions: [], warnings: [/both copies are damaged/] })
  // A header whose own checksum is right, but whose numbers are not.
  const wild = damaged()
  for (const lba of [1, disk.sizeBytes / SECTOR - 1]) {
    const at = lba * SECTOR
    wild.bytes.writeUInt32LE(0x7fffffff, at + 80)
    wild.bytes.writeUInt32LE(0, at + 16)
    wild.bytes.writeUInt32LE(crc32(wild.bytes.subarray(at, at + 92)), at + 16)
  }
  t.equal(readPartitionTable(wild).table, undefined, 'a number of entries that cannot be')
})

t.test('what is left out', async t => {
  t.test('past the end, and overlapping', async t => {
    const disk = new Disk(MIB)
    putRecord(disk, 0, [
      { type: 0x83, start: 100, sectors: 100 },
      { type: 0x83, start: 150, sectors: 100 },
      { type: 0x83, start: 300, sectors: 100 },
      { type: 0x83, start: 2000, sectors: 100 },
    ])
    const { table, partitions, warnings } = readPartitionTable(disk)
    t.equal(table, 'dos')
    t.same(numbers(partitions), [3])
    t.match(warnings, [/^partition 4 ends past the end/, /^partitions 1 and 2 overlap/])
    t.equal(partitions[0]?.uuid, undefined, 'a disk without an ID')
  })

  t.test('on the table itself', async t => {
    const disk = new Disk(MIB)
    putRecord(disk, 0, [{ type: 0x83, start: 0, sectors: 100 }])
    t.match(readPartitionTable(disk), { partitions: [], warnings: [/before the first usable/] })
  })

  t.test('a chain that is a loop, and one that leaves its extended partition', async t => {
    for (const [next, warning] of [
      [0, /loop/],
      [100, /loop/],
      [500, /leaves its extended partition/],
      [200, /no extended boot record in sector 300/],
    ] as const) {
      const disk = new Disk(MIB)
      putRecord(disk, 0, [{ type: 0x0f, start: 100, sectors: 400 }])
      const logical = { type: 0x83, start: 10, sectors: 20 }
      putRecord(disk, 100, [logical, { type: 5, start: 100, sectors: 50 }])
      putRecord(disk, 200, [logical, { type: 5, start: next, sectors: 50 }])
      const { partitions, warnings } = readPartitionTable(disk)
      t.same(numbers(partitions), [5, 6])
      t.match(warnings, [warning])
    }
  })

  t.test('a logical partition outside its extended one', async t => {
    const disk = new Disk(MIB)
    putRecord(disk, 0, [{ type: 0x05, start: 100, sectors: 400 }])
    putRecord(disk, 100, [{ type: 0x83, start: 10, sectors: 1000 }])
    t.match(readPartitionTable(disk), { partitions: [], warnings: [/outside its extended/] })
  })
})

t.test('disks without a table', async t => {
  const none = { table: undefined, partitions: [], warnings: [] }
  t.match(readPartitionTable(new Disk(MIB)), none, 'zeros')
  t.match(readPartitionTable(new Disk(100)), none, 'less than a sector')
  const code = new Disk(MIB)
  putRecord(code, 0, [{ boot: 0x7f, type: 0x83, start: 100, sectors: 10 }])
  t.match(readPartitionTable(code), none, 'a boot sector with code where the entries are')
})

t.test('file systems on the whole disk', needs('mkfs.fat', 'mkfs.ntfs'), async t => {
  const folder = tempFolder(t)
  for (const [command, ...args] of [
    ['mkfs.fat', '-F', '16'],
    ['mkfs.fat', '-F', '32'],
    ['mkfs.ntfs', '-F', '-Q'],
  ] as const) {
    const file = join(folder, 'disk.raw')
    const fd = openSync(file, 'w')
    ftruncateSync(fd, 64 * MIB)
    writeSync(fd, Buffer.alloc(SECTOR))
    closeSync(fd)
    await run(command, [...args, file])
    const disk = new Disk(readFileSync(file))
    t.match(readPartitionTable(disk), { table: undefined, warnings: [] }, `${command} ${args}`)
  }
})
