/** info --partitions: of a disk, of its snapshots, and what it refuses. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { run as info } from '../../src/cli/info.js'
import { buildImage, type Cluster } from '../fixtures/qcow2-builder.js'
import { runHere } from '../support/command.js'
import { tempFolder } from '../support/run.js'

const K = 1024

/** Returns a cluster with a boot record of one partition. */
function record(start: number, sectors: number): Cluster {
  const bytes = Buffer.alloc(4 * K)
  bytes.writeUInt8(0x83, 450)
  bytes.writeUInt32LE(start, 454)
  bytes.writeUInt32LE(sectors, 458)
  bytes.writeUInt32LE(0xabcd, 440)
  bytes.writeUInt16LE(0xaa55, 510)
  return { kind: 'data', bytes }
}

const IMAGE = buildImage({
  clusterBits: 12,
  sizeBytes: 64 * K,
  clusters: new Map([[0, record(8, 16)]]),
  snapshots: [
    { name: 'old', clusters: new Map([[0, record(16, 2000)]]) },
    { name: 'none', clusters: new Map() },
  ],
})

t.test('partitions of a disk and of its snapshots', async t => {
  const cwd = tempFolder(t)
  IMAGE.write(join(cwd, 'disk.qcow2'))
  const here = (...args: string[]) => runHere(info, ['--partitions', ...args], cwd)
  const partition = { number: 1, start: 8 * 512, size: 16 * 512, type: '83', label: null }
  const { code, stdout, stderr } = await here('--output=json', 'disk.qcow2')
  t.match({ code, stderr }, { code: 0, stderr: '' })
  t.same(JSON.parse(stdout), {
    disks: [
      {
        file: 'disk.raw',
        table: 'dos',
        sectorSize: 512,
        partitions: [{ ...partition, uuid: '0000abcd-01' }],
      },
    ],
  })
  const human = await here('disk.qcow2')
  t.match(human, {
    code: 0,
    stdout: /^disk\.raw: MBR, sectors of 512 bytes\nNUMBER.*\n1 +4096 +8 KiB +83 +0000abcd-01\n$/,
  })
  const old = await here('--output=json', 'disk.qcow2@old')
  t.match(old, { code: 0, stderr: /disk\.qcow2@old: partition 1 ends past the end of the disk/ })
  t.match(JSON.parse(old.stdout), { disks: [{ file: 'disk@old.raw', partitions: [] }] })
  const none = await here('disk.qcow2@none')
  t.match(none, { code: 0, stdout: 'disk@none.raw: no partition table\n', stderr: '' })
})

t.test('what it refuses', async t => {
  const cwd = tempFolder(t)
  IMAGE.write(join(cwd, 'disk.qcow2'))
  writeFileSync(join(cwd, 'cut.qcow2'), IMAGE.bytes().subarray(0, 5 * K))
  const here = (...args: string[]) => runHere(info, ['--partitions', ...args], cwd)
  t.match(await here('disk.qcow2@gone'), { code: 1, stdout: '', stderr: /^vimgfs: .*gone.*\n$/ })
  t.match(await here('cut.qcow2'), { code: 1, stdout: '', stderr: /^vimgfs: .*cut\.qcow2.*\n$/ })
  t.match(await here('--backing-chain', 'disk.qcow2'), { code: 2, stderr: /exclude each other/ })
})
