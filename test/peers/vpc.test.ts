/** VHD images that QEMU makes, as vimgfs and QEMU read them. */
import { closeSync, ftruncateSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { describe } from '../../src/image/info.js'
import { noise } from '../fixtures/model.js'
import { openedImage, readAll } from '../support/image.js'
import { needs, tempFolder } from '../support/run.js'
import { qemuImg } from './qemu.js'

const tools = needs('qemu-img')
const M = 2 ** 20
const SUBFORMATS = ['dynamic', 'fixed', 'dynamic,force_size=on', 'fixed,force_size=on']

for (const subformat of SUBFORMATS) {
  t.test(`${subformat}: bytes, sizes and holes`, tools, async t => {
    const folder = tempFolder(t)
    const raw = join(folder, 'disk.raw')
    const fd = openSync(raw, 'w')
    writeSync(fd, noise(3 * M, 1), 0, 3 * M, 0)
    writeSync(fd, noise(5000, 2), 0, 5000, 9 * M + 700)
    ftruncateSync(fd, 21 * M)
    closeSync(fd)
    const image = join(folder, 'disk.vhd')
    await qemuImg('convert', '-f', 'raw', '-O', 'vpc', '-o', `subformat=${subformat}`, raw, image)
    const theirs = join(folder, 'theirs.raw')
    await qemuImg('convert', '-f', 'vpc', '-O', 'raw', image, theirs)
    const { view, warnings } = openedImage(t, image)
    t.same(warnings, [])
    t.ok(readAll(view()).equals(readFileSync(theirs)))
  })
}

t.test('the sizes that info says', tools, async t => {
  const folder = tempFolder(t)
  const sizes = ['1M', '10M', '100M', '511M', '1G', '9000M', '127G', '200G', '2000G']
  for (const [i, size] of sizes.entries()) {
    for (const more of ['', ',force_size=on']) {
      const image = join(folder, `${i}${more}.vhd`)
      await qemuImg('create', '-q', '-f', 'vpc', '-o', `subformat=dynamic${more}`, image, size)
      const theirs = JSON.parse(await qemuImg('info', '--output=json', '-f', 'vpc', image))
      const [ours] = describe(image, {}, false)
      t.match(JSON.parse(JSON.stringify(ours)), theirs, `${size}${more}`)
    }
  }
})

t.test('a fixed image is recognised by its footer, if its name is that of one', tools, async t => {
  const folder = tempFolder(t)
  const image = join(folder, 'disk.vhd')
  await qemuImg('create', '-q', '-f', 'vpc', '-o', 'subformat=fixed', image, '2M')
  const bytes = readFileSync(image)
  const formatOf = (name: string, content: Buffer) => {
    writeFileSync(join(folder, name), content)
    return describe(join(folder, name), {}, false)[0]?.format
  }
  t.equal(formatOf('a.vhd', bytes), 'vpc')
  t.equal(formatOf('a.VPC', bytes), 'vpc')
  t.equal(formatOf('a.img', bytes), 'raw')
  const wrong = Buffer.from(bytes)
  wrong.writeUInt8(wrong.readUInt8(wrong.length - 400) ^ 1, wrong.length - 400)
  t.throws(() => formatOf('b.vhd', wrong), { code: 'NOT_AN_IMAGE' }, 'the checksum is wrong')
})

t.test('they are not written', tools, async t => {
  const image = join(tempFolder(t), 'disk.vhd')
  await qemuImg('create', '-q', '-f', 'vpc', image, '2M')
  t.throws(() => openedImage(t, image, { access: 'write' }), { code: 'READ_ONLY' })
  const { chain } = openedImage(t, image, { access: 'write if possible' })
  t.equal(chain.isWritable, false)
  t.match(chain.warnings, [/vpc \(VHD\) images are read only, mounted read-only/])
})
