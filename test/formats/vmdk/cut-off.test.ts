/** Files that are cut off, within their last sector, too: reading lost bytes is an error, and never gives zeros. */
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { noise } from '../../fixtures/model.js'
import { buildExtent } from '../../fixtures/vmdk-builder.js'
import { openedImage, readAt } from '../../support/image.js'
import { tempFolder } from '../../support/run.js'
import { openForWriting } from '../../peers/writing.js'
import { thrownBy } from './grains.js'

const K = 1024
const SECTORS = 16
const BYTES = SECTORS * 512

const described = (type: string, name: string) => `# Disk DescriptorFile
version=1
CID=11111111
parentCID=ffffffff
createType="custom"
RW ${SECTORS} ${type} "${name}"${type === 'FLAT' ? ' 0' : ''}
`
const disk = noise(BYTES, 7)
const sparse = buildExtent({
  capacitySectors: SECTORS,
  grainSectors: 8,
  tableEntries: 128,
  grains: new Map(
    [0, 1].map(i => [i, { kind: 'data', bytes: disk.subarray(i * 4 * K).subarray(0, 4 * K) }]),
  ),
})

for (const [type, bytes] of [
  ['FLAT', disk],
  ['VMFS', disk],
  ['SPARSE', sparse.bytes],
] as const) {
  for (const missing of [1, 100, 511, 512, 700]) {
    t.test(`${type}, ${missing} bytes are missing`, async t => {
      const folder = tempFolder(t)
      const image = join(folder, 'disk.vmdk')
      const file = join(folder, 'extent.vmdk')
      writeFileSync(image, described(type, 'extent.vmdk'))
      writeFileSync(file, bytes)
      truncateSync(file, bytes.length - missing)
      const view = openedImage(t, image).view()
      const kept = BYTES - missing
      t.ok(readAt(view, 0, kept).equals(disk.subarray(0, kept)), 'what the file has')
      for (const [offset, length] of [
        [kept, 1],
        [BYTES - 1, 1],
        [kept - 1, 2],
        [0, BYTES],
      ] as const) {
        t.equal(
          thrownBy(() => readAt(view, offset, length)).code,
          'CORRUPT',
          `${length} at ${offset}`,
        )
      }
      const write = async () => {
        const written = await openForWriting(image)
        try {
          written.disk.write(Buffer.alloc(10, 'x'), 0, 10, 20)
        } finally {
          written.close()
        }
      }
      await t.rejects(write(), { code: type === 'SPARSE' ? 'CORRUPT' : 'READ_ONLY' })
      t.equal(statSync(file).size, bytes.length - missing)
      t.ok(readFileSync(file).equals(bytes.subarray(0, bytes.length - missing)))
    })
  }
}
