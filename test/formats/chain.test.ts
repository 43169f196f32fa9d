/** Opening an image with all that it stands on, and refusing what it must not stand on. */
import { mkdirSync, readdirSync, readlinkSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { oneLine } from '../../src/errors.js'
import { closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { noise } from '../fixtures/model.js'
import { buildImage, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { openedImage, readAt } from '../support/image.js'
import { run, tempFolder } from '../support/run.js'

const K = 1024

const write = (path: string, spec: Partial<ImageSpec> = {}) =>
  buildImage({ clusterBits: 9, sizeBytes: 8 * K, ...spec }).write(path)

/** How many files below `folder` this process has open. */
function openIn(folder: string): number {
  return readdirSync('/proc/self/fd').filter(fd => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).startsWith(folder)
    } catch {
      return false
    }
  }).length
}

const refused: { title: string; name: string; format?: string; code: string; says: RegExp }[] = [
  { title: 'itself', name: 'top.qcow2', code: 'CORRUPT', says: /the chain is a loop/ },
  { title: 'itself by a link', name: 'link.qcow2', code: 'CORRUPT', says: /the chain is a loop/ },
  {
    title: 'one that stands on it',
    name: 'circle.qcow2',
    code: 'CORRUPT',
    says: /the chain is a loop/,
  },
  { title: 'a file that is missing', name: 'nowhere.qcow2', code: 'MISSING', says: /no such file/ },
  { title: 'a FIFO', name: 'fifo', code: 'REFUSED', says: /a FIFO/ },
  { title: '/etc/shadow', name: '/etc/shadow', format: 'raw', code: 'REFUSED', says: /outside/ },
  { title: 'a device', name: '/dev/zero', format: 'raw', code: 'REFUSED', says: /outside|device/ },
  { title: 'JSON', name: 'json:{"driver":"null-co"}', code: 'UNSUPPORTED', says: /protocol/ },
  { title: 'NBD', name: 'nbd://localhost:10809/x', code: 'REFUSED', says: /not on this machine/ },
  {
    title: 'a format that is not read',
    name: 'base.raw',
    format: 'vdi',
    code: 'UNSUPPORTED',
    says: /has the format "vdi"/,
  },
  {
    title: 'a format that is a screen code',
    name: 'base.raw',
    format: '\x1b[2J',
    code: 'UNSUPPORTED',
    says: /"\\x1b\[2J"/,
  },
  {
    title: 'raw called qcow2',
    name: 'base.raw',
    format: 'qcow2',
    code: 'NOT_AN_IMAGE',
    says: /base\.raw: this is no qcow2/,
  },
]
for (const { title, name, format = 'qcow2', code, says } of refused) {
  t.test(`on ${title}`, async t => {
    const folder = tempFolder(t)
    const image = join(folder, 'top.qcow2')
    write(image, { backing: { name, format } })
    write(join(folder, 'circle.qcow2'), { backing: { name: 'top.qcow2', format: 'qcow2' } })
    writeFileSync(join(folder, 'base.raw'), noise(K, 1))
    symlinkSync('top.qcow2', join(folder, 'link.qcow2'))
    await run('mkfifo', [join(folder, 'fifo')])
    try {
      openChain(image)
      t.fail('it was opened')
    } catch (error) {
      t.match(error, { name: 'ImageError', code, context: { hint: /\w/ } })
      t.match(oneLine(error as Error), says)
    }
    t.equal(openIn(folder), 0, 'nothing stays open')
  })
}

const formats: { title: string; format?: string; base: string; warns?: boolean }[] = [
  { title: 'stated', format: 'qcow2', base: 'base.qcow2' },
  { title: 'raw', format: 'raw', base: 'base.raw' },
  { title: 'raw by the name of its protocol', format: 'file', base: 'base.raw' },
  { title: 'not stated', base: 'base.qcow2', warns: true },
  { title: 'not stated, raw', base: 'base.raw', warns: true },
  { title: 'stated as nothing', format: '', base: 'base.raw', warns: true },
]
for (const { title, format, base, warns = false } of formats) {
  t.test(`a format ${title}`, async t => {
    const folder = tempFolder(t)
    const image = join(folder, 'top.qcow2')
    const content = noise(512, 1)
    write(join(folder, 'base.qcow2'), {
      clusters: new Map([[0, { kind: 'data', bytes: content }]]),
    })
    writeFileSync(join(folder, 'base.raw'), content)
    write(image, { backing: { name: base, ...(format !== undefined && { format }) } })
    const { view, warnings, chain } = openedImage(t, image)
    t.equal(chain.layers.length, 2)
    t.ok(readAt(view(), 0, 512).equals(content))
    t.equal(warnings.length, warns ? 1 : 0)
  })
}

t.test('a raw parent that looks like qcow2 is raw where that is stated', async t => {
  const folder = tempFolder(t)
  write(join(folder, 'forged'), { backing: { name: '/etc/shadow', format: 'raw' } })
  write(join(folder, 'top.qcow2'), { backing: { name: 'forged', format: 'raw' } })
  t.equal(openedImage(t, join(folder, 'top.qcow2')).chain.layers[1]?.format, 'raw')
})

t.test('names are relative to the layer that names', async t => {
  const folder = tempFolder(t)
  for (const name of ['sub', 'sub/deep']) mkdirSync(join(folder, name))
  writeFileSync(join(folder, 'sub', 'base.raw'), noise(512, 3))
  write(join(folder, 'sub', 'deep', 'middle.qcow2'), {
    backing: { name: '../base.raw', format: 'raw' },
  })
  write(join(folder, 'top.qcow2'), { backing: { name: 'sub/deep/middle.qcow2', format: 'qcow2' } })
  const { view } = openedImage(t, join(folder, 'top.qcow2'))
  t.ok(readAt(view(), 0, 512).equals(noise(512, 3)))
})

t.test('a layer in an allowed folder', async t => {
  const [folder, other] = [tempFolder(t), tempFolder(t)]
  write(join(other, 'base.qcow2'))
  const image = join(folder, 'top.qcow2')
  write(image, { backing: { name: join(other, 'base.qcow2'), format: 'qcow2' } })
  t.throws(() => openChain(image), {
    code: 'REFUSED',
    context: { hint: `allow it with --allow-path ${other}` },
  })
  t.equal(openedImage(t, image, { allowPaths: [other] }).chain.layers.length, 2)
})

t.test('depth', async t => {
  const folder = tempFolder(t)
  const name = (index: number) => join(folder, `${index}.qcow2`)
  for (let i = 0; i < 201; i++) {
    write(name(i), i === 0 ? {} : { backing: { name: `${i - 1}.qcow2`, format: 'qcow2' } })
  }
  t.equal(openedImage(t, name(199)).chain.layers.length, 200)
  t.throws(() => openChain(name(200)), { code: 'UNSUPPORTED', context: { hint: /--max-chain/ } })
  const { view, entries } = openedImage(t, name(200), { maxDepth: 201 })
  t.ok(readAt(view(), 0, 8 * K).equals(Buffer.alloc(8 * K)), 'read down to the ground')
  t.equal(entries.length, 201)
})

t.test('a data file', async t => {
  const folder = tempFolder(t)
  const image = join(folder, 'top.qcow2')
  const dataFiles = [
    { dataFile: 'nowhere', code: 'MISSING' },
    { dataFile: '/etc/shadow', code: 'REFUSED' },
    { dataFile: 'nbd:localhost:1', code: 'UNSUPPORTED' },
  ]
  for (const { dataFile, code } of dataFiles) {
    write(image, { dataFile })
    t.throws(() => openChain(image), { code, message: /data file/ })
    t.equal(openIn(folder), 0)
  }
  writeFileSync(join(folder, 'disk.data'), noise(512, 1))
  write(image, { dataFile: 'disk.data' })
  const chain = openChain(image)
  t.equal(openIn(folder), 2)
  closeChain(chain)
  t.equal(openIn(folder), 0)
})
