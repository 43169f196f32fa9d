/** What a descriptor says of its parent. */
import t from 'tap'
import { NO_PARENT_CID, type Descriptor } from '../../../src/formats/vmdk/descriptor.js'
import type { VmdkSpec } from '../../../src/formats/vmdk/image.js'
import { checkCid, parentLink } from '../../../src/formats/vmdk/parent.js'

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
