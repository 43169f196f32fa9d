/** What a descriptor says of its parent. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { NO_PARENT_CID, type Descriptor } from '../../../src/formats/vmdk/descriptor.js'
import type { VmdkSpec } from '../../../src/formats/vmdk/open.js'
import { checkCid, parentLink } from '../../../src/formats/vmdk/parent.js'
import { openImage } from '../../../src/index.js'
import { qemuImg } from '../../peers/qemu.js'
import { needs, tempFolder } from '../../support/run.js'

const specOf = (descriptor: Partial<Descriptor>): VmdkSpec =>
  ({ descriptor: { ddb: {}, parentCid: NO_PARENT_CID, ...descriptor } }) as VmdkSpec

t.test('a hint without a valid parentCID', async t => {
  const link = parentLink(specOf({ parentHint: 'p.vmdk' }), '/x/c.vmdk')
  t.same(link, { hint: 'p.vmdk', cid: NO_PARENT_CID })
  for (const cid of [0x1234, NO_PARENT_CID]) {
    t.throws(() => link && checkCid(link, specOf({ cid }), '/x/c.vmdk', '/x/p.vmdk'), {
      message: /names a parent, .*p\.vmdk, and has no valid parentCID/,
      context: { hint: /--ignore-cid/ },
    })
  }
})

t.test('no parent', async t => {
  t.equal(parentLink(specOf({}), '/x/c.vmdk'), undefined)
  t.equal(parentLink(specOf({ parentHint: '' }), '/x/c.vmdk'), undefined)
})

t.test('a disk of VirtualBox without a hint', async t => {
  const ddb = { 'uuid.parent': '00112233-4455-6677-8899-aabbccddeeff' }
  t.throws(() => parentLink(specOf({ ddb }), '/x/c.vmdk'), { code: 'UNSUPPORTED' })
})

t.test(
  '--ignore-cid reads a delta without a valid parentCID over its parent',
  needs('qemu-img'),
  async t => {
    const folder = tempFolder(t)
    const raw = join(folder, 'raw')
    writeFileSync(raw, Buffer.alloc(2 ** 20, 'parent'))
    const [parent, child] = ['p.vmdk', 'c.vmdk'].map(name => join(folder, name)) as [string, string]
    await qemuImg(
      'convert',
      '-f',
      'raw',
      '-O',
      'vmdk',
      '-o',
      'subformat=monolithicFlat',
      raw,
      parent,
    )
    const lines = ['# Disk DescriptorFile', 'version=1', 'CID=2', 'parentFileNameHint="p.vmdk"']
    for (const cid of [[], ['parentCID=ffffffff']]) {
      const extents = ['RW 1024 ZERO', 'RW 1024 SPARSE "c-s002.vmdk"']
      await qemuImg('create', '-q', '-f', 'vmdk', join(folder, 'c-s002.vmdk'), '512K')
      writeFileSync(child, [...lines, ...cid, ...extents, ''].join('\n'))
      await t.rejects(openImage(child), { message: /has no valid parentCID/ })
      const image = await openImage(child, { ignoreCid: true })
      t.match(image.warnings.join('\n'), /no valid parentCID; what is read may be nonsense/)
      const bytes = Buffer.alloc(6)
      image.disk.read(bytes, 512 * 1024)
      t.equal(String(bytes), String(Buffer.alloc(2 ** 20, 'parent').subarray(2 ** 19, 2 ** 19 + 6)))
      image.close()
    }
  },
)
