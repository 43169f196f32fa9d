/** Encrypted disks are refused by name, and other filters are no encryption. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { parseDescriptor } from '../../../src/formats/vmdk/descriptor.js'
import { checkImage, describeImage, openImage, repairImage } from '../../../src/index.js'
import { tempFolder } from '../../support/run.js'

const parsed = (lines: string, extents = 'RW 256 VMFS "e-flat.vmdk"') =>
  parseDescriptor(
    Buffer.from(`# Disk DescriptorFile\nversion=1\nCID=1\n${lines}\n${extents}\n`),
    '/x/e.vmdk',
  )

for (const lines of [
  'encryptionKeys="vmware:key/fqid/a%2db/server/key%2d1"',
  'KeyID = 1a2b3c4d',
  'ddb.iofilters = "vmwarevmcrypt"',
  'ddb.iofilters = "vmwarelwd,VMwareVMCrypt"',
  'encryption.keySafe = "vmware:key/list/(x)"',
]) {
  t.test(lines, async t => {
    const refusal = { code: 'UNSUPPORTED', message: /encrypted/ }
    t.throws(() => parsed(lines), refusal)
    t.throws(() => parsed(lines, ''), refusal, 'whatever its extents are')
  })
}

t.test('no encryption', async t => {
  for (const lines of ['ddb.iofilters = "vmwarelwd"', 'ddb.comment = "vmwarevmcrypt"', 'keyID=""'])
    t.equal(parsed(lines).extents.length, 1)
})

const SECTORS = 256
const KEYS = 'encryptionKeys="vmware:key/fqid/a/server/key"'

/** Makes a disk of one flat extent, full of `fill`; returns the path of its descriptor. */
function flatDisk(folder: string, name: string, lines: readonly string[], fill = 'x'): string {
  const extent = `${name}-flat.vmdk`
  writeFileSync(join(folder, extent), Buffer.alloc(SECTORS * 512, fill))
  const text = [
    '# Disk DescriptorFile',
    'version=1',
    ...lines,
    `RW ${SECTORS} VMFS "${extent}"`,
    '',
  ]
  const file = join(folder, `${name}.vmdk`)
  writeFileSync(file, text.join('\n'))
  return file
}

async function refused(t: Test, image: string): Promise<void> {
  const refusal = { code: 'UNSUPPORTED', message: /encrypted/ }
  for (const access of ['read', 'write'] as const) {
    await t.rejects(openImage(image, { access }), refusal)
  }
  t.throws(() => describeImage(image), refusal)
  await t.rejects(checkImage(image), refusal)
  await t.rejects(repairImage(image, 'all'), refusal)
}

t.test('the disk: mount, info, check and repair refuse it, and change nothing', async t => {
  const folder = tempFolder(t)
  const image = flatDisk(folder, 'e', ['CID=1', KEYS])
  const before = readFileSync(join(folder, 'e-flat.vmdk'))
  await refused(t, image)
  t.ok(readFileSync(join(folder, 'e-flat.vmdk')).equals(before))
})

t.test('the parent', async t => {
  const folder = tempFolder(t)
  flatDisk(folder, 'e', ['CID=1', KEYS])
  const child = flatDisk(folder, 'c', [
    'CID=2',
    'parentCID=00000001',
    'parentFileNameHint="e.vmdk"',
  ])
  await t.rejects(openImage(child), { code: 'UNSUPPORTED', message: /encrypted/ })
  t.throws(() => describeImage(child, { isChain: true }), { message: /encrypted/ })
})

t.test('the disk of a snapshot: it is left out, and the others are shown', async t => {
  const folder = join(tempFolder(t), 'vm')
  mkdirSync(folder)
  flatDisk(folder, 'd', ['CID=1', KEYS])
  const top = flatDisk(folder, 'd-000001', ['CID=2'])
  writeFileSync(
    join(folder, 'vm.vmsd'),
    [
      '.encoding = "UTF-8"',
      'snapshot.numSnapshots = "1"',
      'snapshot0.uid = "1"',
      'snapshot0.displayName = "old"',
      'snapshot0.numDisks = "1"',
      'snapshot0.disk0.fileName = "d.vmdk"',
      'snapshot0.disk0.node = "scsi0:0"',
      '',
    ].join('\n'),
  )
  writeFileSync(join(folder, 'vm.vmx'), 'scsi0:0.fileName = "d-000001.vmdk"\n')
  const image = await openImage(top)
  t.teardown(() => image.close())
  t.match(image.warnings.join('\n'), /the snapshot "old" is not shown: .*encrypted/)
  t.same(image.snapshots, [])
})
