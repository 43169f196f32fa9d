/** Encrypted disks are refused by name, and other filters are no encryption. */
import t from 'tap'
import { parseDescriptor } from '../../../src/formats/vmdk/descriptor.js'

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
