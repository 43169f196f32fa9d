/** The library: images opened, written, checked and described in this process. */
import { execFileSync } from 'node:child_process'
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { FORMAT_NAMES, checkImage, describeImage, openImage, repairImage } from '../../src/index.js'
import { buildCow } from '../fixtures/cow-builder.js'
import { noise } from '../fixtures/model.js'
import { creating } from '../peers/encrypted.js'
import { qemuImg } from '../peers/qemu.js'
import { needs, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'

const tools = needs('qemu-img', 'qemu-io')
const M = 2 ** 20
const SAMPLE = new URL('../../samples/disk.qcow2', import.meta.url).pathname

for (const format of ['raw', 'qcow2', 'qcow', 'vmdk']) {
  t.test(`${format}: written, flushed, closed, and as QEMU reads it`, tools, async t => {
    const image = join(tempFolder(t), `disk.${format}`)
    await qemuImg('create', '-q', '-f', format, image, '8M')
    const model = Buffer.alloc(8 * M)
    const open = await openImage(image, { format, access: 'write' })
    t.equal(open.format, format)
    t.equal(open.disk.sizeBytes, 8 * M)
    for (const [offset, length] of [
      [0, 512],
      [70_000, 300_000],
      [5 * M + 1, 3 * M - 1],
    ] as const) {
      const bytes = noise(length, offset)
      open.disk.write(bytes, offset)
      bytes.copy(model, offset)
    }
    open.disk.zero(6 * M, M)
    model.fill(0, 6 * M, 7 * M)
    open.disk.flush()
    const found = Buffer.alloc(model.length)
    open.disk.read(found, 0)
    t.ok(found.equals(model))
    t.same(open.close(), [])
    t.same(open.close(), [], 'again')
    const raw = `${image}.out`
    await qemuImg('convert', '-f', format, '-O', 'raw', image, raw)
    t.ok(readFileSync(raw).equals(model))
    if (format === 'qcow2' || format === 'vmdk') await qemuImg('check', '-f', format, image)
  })
}

t.test('snapshots, layers and extents', tools, async t => {
  const folder = tempFolder(t)
  const base = join(folder, 'base.qcow2')
  copyFileSync(SAMPLE, base)
  const top = join(folder, 'top.qcow2')
  await qemuImg('create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', top)
  const open = await openImage(top)
  t.teardown(() => open.close())
  t.equal(open.isWritable, false)
  t.same(
    open.layers.map(({ name }) => name),
    ['top@base.raw'],
  )
  t.ok(open.snapshots.length >= 2)
  const [disk, layer] = [open.disk, open.layers[0]].map(each => {
    const bytes = Buffer.alloc(each?.sizeBytes ?? 0)
    each?.read(bytes, 0)
    return bytes
  }) as [Buffer, Buffer]
  t.ok(disk.equals(layer))
  let end = 0
  for (const { offset, length, kind } of open.disk.extents()) {
    t.equal(offset, end)
    end += length
    if (kind === 'zero') t.ok(disk.subarray(offset, end).every(byte => byte === 0))
  }
  t.equal(end, open.disk.sizeBytes)
  t.same([...open.disk.extents(open.disk.sizeBytes)], [])
  t.throws(() => open.disk.read(Buffer.alloc(1), open.disk.sizeBytes), RangeError)
  t.throws(() => open.disk.read(Buffer.alloc(1), -1), RangeError)
  t.throws(() => open.disk.write(Buffer.alloc(1), 0), { code: 'READ_ONLY' })
})

t.test('a passphrase', tools, async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  const secret = ['--object', 'secret,id=s,data=hush']
  const options = ['-o', 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10']
  await creating(['create', '-q', ...secret, '-f', 'qcow2', ...options, image, '4M'])
  await t.rejects(openImage(image), { code: 'REFUSED', message: /no passphrase was given/ })
  await t.rejects(openImage(image, { passphrase: 'no' }), { message: /passphrase is wrong/ })
  const asked: string[] = []
  const passphrase = async (path: string, method: string) => {
    asked.push(`${path} ${method}`)
    return 'hush'
  }
  const open = await openImage(image, { access: 'write', passphrase })
  open.disk.write(Buffer.from('secret'), 1000)
  open.close()
  t.same(asked, [`${image} LUKS`])
  t.notOk(readFileSync(image).includes('secret'))
  const again = await openImage(image, { passphrase: 'hush' })
  const bytes = Buffer.alloc(6)
  again.disk.read(bytes, 1000)
  again.close()
  t.equal(String(bytes), 'secret')
})

t.test('locks: two may read, one may write', async t => {
  const image = join(tempFolder(t), 'disk.raw')
  writeFileSync(image, Buffer.alloc(M))
  const writer = await openImage(image, { access: 'write', format: 'raw' })
  const code = `import { openImage } from ${JSON.stringify(new URL('../../dist/index.js', import.meta.url).pathname)}
    try { (await openImage(process.argv[1], { format: 'raw' })).close(); console.log('open') } catch (e) { console.log(e.message) }`
  const ask = () =>
    String(execFileSync(process.execPath, ['--input-type=module', '-e', code, image]))
  t.match(ask(), 'it is in use')
  writer.close()
  t.match(ask(), 'open')
})

t.test('stores instead of files', async t => {
  const parent = noise(3 * M, 1)
  const spec = { layout: 'qemu-x86-64', sizeBytes: 3 * M, backing: 'base.raw' } as const
  const store = new MemoryStore('disk.cow', buildCow(spec).bytes)
  const files = { 'base.raw': new MemoryStore('base.raw', parent) }
  const open = await openImage({ image: store, files }, { access: 'write' })
  open.disk.write(Buffer.from('top'), M)
  const bytes = Buffer.alloc(8)
  open.disk.read(bytes, M - 2)
  t.equal(String(bytes.subarray(2, 5)), 'top')
  t.ok(bytes.subarray(5).equals(parent.subarray(M + 3, M + 6)))
  open.close()
  const again = await openImage({ image: store, files })
  again.disk.read(bytes, M)
  t.equal(String(bytes.subarray(0, 3)), 'top')
  again.close()
  await t.rejects(openImage({ image: store }), {
    code: 'MISSING',
    message: /"base.raw" is not among/,
  })
})

t.test('checkImage, repairImage and describeImage', tools, async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  copyFileSync(SAMPLE, image)
  t.match(await checkImage(image), { corruptions: 0, leaks: 0, checkErrors: 0 })
  await qemuImg('snapshot', '-c', 'third', image)
  t.match(await repairImage(image, 'all'), {
    before: { corruptions: 0 },
    after: { corruptions: 0 },
  })
  const [info] = describeImage(image)
  t.match(info, { format: 'qcow2', snapshots: { length: 3 } })
  const raw = join(tempFolder(t), 'disk.raw')
  writeFileSync(raw, Buffer.alloc(M))
  t.equal(await checkImage(raw), undefined)
  t.ok(FORMAT_NAMES.includes('qcow2'))
})
