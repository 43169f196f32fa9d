/** Which images are found to need a file as it is, beside which anything may lie. */
import fs from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { SHAPES } from '../../src/formats/cow/header.js'
import { foreignMounts, statLiving } from '../../src/image/opening/living-paths.js'
import { overlaysOf } from '../../src/image/opening/overlays.js'
import { buildImage } from '../fixtures/qcow2-builder.js'
import { descriptor } from './vmdk/hostile-images.js'
import { foldersOf, holding } from '../support/folders.js'
import { needs, run, tempFolder } from '../support/run.js'

/** A folder with an image in it; what stands on the image, by what there is besides. */
function place(t: Test, name = 'base.raw') {
  const folder = tempFolder(t)
  const image = join(folder, name)
  fs.writeFileSync(image, Buffer.alloc(1024, 1))
  const overlays = (path = image): string[] => {
    const fd = fs.openSync(path, 'r')
    try {
      return holding(foldersOf(path), folders => overlaysOf(path, [{ fd }], folders))
    } finally {
      fs.closeSync(fd)
    }
  }
  const put = (file: string | Buffer, content: string | Buffer) => {
    const path = Buffer.concat([Buffer.from(`${folder}/`), Buffer.from(file)])
    fs.writeFileSync(path, content)
  }
  return { folder, image, overlays, put }
}

/** The start of a qcow2 header, or of one of qcow, and a name at its end. */
function qcow(name: string | Buffer, { version = 3, at = 400, bytes = -1 } = {}): Buffer {
  const text = Buffer.from(name)
  const header = Buffer.alloc(at + text.length)
  header.write('QFI\xfb', 'latin1')
  header.writeUInt32BE(version, 4)
  header.writeBigUInt64BE(BigInt(at), 8)
  header.writeUInt32BE(bytes < 0 ? text.length : bytes, 16)
  if (version >= 3) header.writeUInt32BE(104, 100)
  text.copy(header, at)
  return header
}

const json = (options: unknown): string => `json:${JSON.stringify(options)}`

const names: { title: string; name: string | Buffer; isOverlay: boolean }[] = [
  { title: 'by its name', name: 'base.raw', isOverlay: true },
  { title: 'by a path', name: './sub/../base.raw', isOverlay: true },
  { title: 'by a path that leaves the folder', name: 'sub/back/base.raw', isOverlay: true },
  { title: 'as a file', name: 'file:base.raw', isOverlay: true },
  { title: 'by its other name', name: 'hard', isOverlay: true },
  { title: 'by a link', name: 'sub/link', isOverlay: true },
  { title: 'up to a NUL', name: 'base.raw\0more', isOverlay: true },
  {
    title: 'in JSON',
    name: json({ driver: 'raw', file: { driver: 'file', filename: 'base.raw' } }),
    isOverlay: true,
  },
  { title: 'in flat JSON', name: json({ 'file.filename': 'base.raw' }), isOverlay: true },
  {
    title: 'in JSON, by another key',
    name: json({ filename: 'other.raw', 'node-name': 'base.raw' }),
    isOverlay: false,
  },
  { title: 'in JSON that is cut off', name: 'json:{"filename":"base.raw"', isOverlay: false },
  { title: 'in JSON that is deep', name: `json:${'['.repeat(1000)}`, isOverlay: false },
  { title: 'by the name of a file elsewhere', name: 'sub/base.raw', isOverlay: false },
  { title: 'by a missing path', name: '/vms/web/base.raw', isOverlay: false },
  { title: 'by another name', name: 'based.raw', isOverlay: false },
  { title: 'by another case', name: 'Base.raw', isOverlay: false },
  { title: 'by no name', name: '', isOverlay: false },
  { title: 'as an empty path', name: 'file:', isOverlay: false },
  { title: 'by the folder', name: '.', isOverlay: false },
  { title: 'by itself', name: 'overlay.qcow2', isOverlay: false },
  { title: 'by a protocol', name: 'nbd://localhost/base.raw', isOverlay: false },
  { title: 'by a name that is too long', name: 'x'.repeat(1023), isOverlay: false },
]
for (const { title, name, isOverlay } of names) {
  t.test(`named ${title}`, async t => {
    const { folder, image, overlays, put } = place(t)
    fs.mkdirSync(join(folder, 'sub'))
    fs.symlinkSync('..', join(folder, 'sub/back'))
    fs.linkSync(image, join(folder, 'hard'))
    fs.symlinkSync('../base.raw', join(folder, 'sub/link'))
    put('sub/base.raw', 'another')
    t.strictSame(overlays(), [], 'its other names do not count')
    put('overlay.qcow2', qcow(name))
    t.strictSame(overlays(), isOverlay ? ['overlay.qcow2'] : [])
    put('overlay.qcow2', qcow(name, { version: 1, at: 48 }))
    t.strictSame(overlays(), isOverlay ? ['overlay.qcow2'] : [], 'qcow')
  })
}

t.test('an absolute path, and names in no encoding', async t => {
  const { folder, image, overlays, put } = place(t)
  put('absolute.qcow2', qcow(image))
  put('file.qcow2', qcow(`file:${image}`))
  const odd = Buffer.from('gr\xf6\xdfe', 'latin1')
  fs.symlinkSync('base.raw', Buffer.concat([Buffer.from(`${folder}/`), odd]))
  put(Buffer.concat([odd, Buffer.from('.qcow2')]), qcow(odd))
  t.strictSame(overlays(), ['absolute.qcow2', 'file.qcow2', 'gr\ufffd\ufffde.qcow2'])
})

t.test('an image that names itself', async t => {
  const { overlays, put, image } = place(t, 'self.qcow2')
  fs.writeFileSync(image, qcow('self.qcow2'))
  put('other.qcow2', qcow('other.qcow2'))
  t.strictSame(overlays(), [])
})

t.test('damaged headers and other versions', async t => {
  const { overlays, put } = place(t)
  const damaged = qcow('base.raw')
  damaged.fill(0xff, 20, 100)
  put('damaged.qcow2', damaged)
  put('version.qcow2', qcow('base.raw', { version: 4 }))
  put('encrypted.qcow2', qcow('base.raw').fill(2, 35, 36))
  put('far.qcow2', qcow('base.raw', { at: 100_000 }))
  put('end.qcow2', qcow('base.raw', { bytes: 9 }))
  put('long.qcow2', Buffer.concat([qcow('base.raw', { bytes: 2 ** 32 - 1 }), Buffer.alloc(9)]))
  const found = ['damaged', 'encrypted', 'end', 'far', 'long', 'version'].map(n => `${n}.qcow2`)
  t.strictSame(overlays(), found)
  for (const at of [2n ** 64n - 1n, 2n ** 53n, 408n]) {
    const bytes = qcow('base.raw')
    bytes.writeBigUInt64BE(at, 8)
    put(`at-${at}.qcow2`, bytes)
  }
  for (const length of [0, 3, 4, 19, 20, 72, 103]) {
    put(`cut-${length}.qcow2`, qcow('base.raw').subarray(0, length))
  }
  t.strictSame(overlays(), found)
})

t.test('data files', async t => {
  const { folder, image, overlays, put } = place(t)
  const spec = { clusterBits: 16, sizeBytes: 1 << 20 }
  buildImage({ ...spec, dataFile: 'base.raw' }).write(join(folder, 'i.qcow2'))
  fs.writeFileSync(image, Buffer.alloc(1024, 1))
  const bytes = fs.readFileSync(join(folder, 'i.qcow2'))
  const at = bytes.indexOf('DATA')
  t.ok(at > 0 && overlays().length === 1)
  t.strictSame(overlays(join(folder, 'i.qcow2')), [])
  // The extensions before it are passed; one that is too long ends them.
  bytes.writeUInt32BE(2 ** 32 - 1, at + 4)
  put('cut.qcow2', bytes.subarray(0, at + 8 + 'base.raw'.length))
  put('header.qcow2', bytes.fill(0xff, 100, 104))
  t.strictSame(overlays(), ['cut.qcow2', 'i.qcow2'])
})

t.test('the image and its own data file are written together', async t => {
  const folder = tempFolder(t)
  const image = join(folder, 'i.qcow2')
  buildImage({ clusterBits: 16, sizeBytes: 1 << 20, dataFile: 'd.raw' }).write(image)
  fs.writeFileSync(join(folder, 'd.raw'), Buffer.alloc(1 << 20))
  const write = () => closeChain(openChain(image, { access: 'write' }))
  write()
  fs.copyFileSync(image, join(folder, 'copy.qcow2'))
  t.throws(write, { message: /^the disk "copy\.qcow2" would be broken by writing it/ })
})

t.test('cow and qed', async t => {
  const { overlays, put } = place(t)
  for (const [layout, { version, nameAt, bytes }] of Object.entries(SHAPES)) {
    const header = Buffer.alloc(bytes + 512)
    header.write('OOOM')
    header.writeUInt32BE(version, 4)
    header.write('base.raw', nameAt)
    put(`${layout}.cow`, header)
  }
  const first = Buffer.alloc(2000)
  first.write('MOOO')
  first.write('base.raw', 8)
  put('uml-1.cow', first)
  put('cut.cow', first.subarray(0, 8))
  const qed = Buffer.alloc(72)
  qed.write('QED\0')
  qed.writeUInt32LE(64, 56)
  qed.writeUInt32LE(8, 60)
  qed.write('base.raw', 64)
  put('overlay.qed', qed)
  put('cut.qed', qed.subarray(0, 63))
  const cows = [...Object.keys(SHAPES), 'uml-1'].map(name => `${name}.cow`)
  t.strictSame(overlays(), [...cows, 'overlay.qed'].sort())
})

t.test('an image that was given by a link', async t => {
  const { folder, image, overlays, put } = place(t)
  const links = tempFolder(t)
  const link = join(links, 'link.raw')
  fs.symlinkSync(image, link)
  put('beside.qcow2', qcow('base.raw'))
  fs.writeFileSync(join(links, 'link.qcow2'), qcow('link.raw'))
  fs.writeFileSync(join(links, 'wrong.qcow2'), qcow('base.raw'))
  t.strictSame(overlays(link), ['beside.qcow2', 'link.qcow2'])
  t.strictSame(overlays(), ['beside.qcow2'])
  holding([folder], folders => {
    const moved = `${folder}-moved`
    t.teardown(() => fs.rmSync(moved, { recursive: true, force: true }))
    const fd = fs.openSync(image, 'r')
    fs.renameSync(folder, moved)
    t.strictSame(overlaysOf(image, [{ fd }], folders), ['beside.qcow2'], 'its folder has moved')
    fs.rmSync(moved, { recursive: true })
    t.strictSame(overlaysOf(image, [{ fd }], folders), [], 'its folder has gone')
    fs.closeSync(fd)
  })
})

t.test('a raw file that a vmdk descriptor names as its extent', async t => {
  const { overlays, put, image } = place(t)
  put('disk.vmdk', descriptor({ extents: ['RW 1 ZERO', 'RW 2 FLAT "base.raw" 0'] }))
  put('other.vmdk', descriptor({ extents: ['RW 2 FLAT "other.raw" 0'] }))
  t.same(overlays(), ['disk.vmdk'])
  const warnings = (force: boolean) => {
    const chain = openChain(image, { access: 'write if possible', format: 'raw', force })
    closeChain(chain)
    return { isWritable: chain.isWritable, warnings: chain.warnings.join() }
  }
  t.match(warnings(false), { isWritable: false, warnings: /the disk "disk.vmdk" would be broken/ })
  t.match(warnings(true), { isWritable: true })
})

t.test('a copy of a descriptor does not keep its disk from being written', async t => {
  const { folder, put } = place(t)
  for (const name of ['disk.vmdk', 'copy.vmdk']) {
    put(name, descriptor({ extents: ['RW 2 FLAT "base.raw" 0'] }))
  }
  const chain = openChain(join(folder, 'disk.vmdk'), { access: 'write' })
  closeChain(chain)
  t.ok(chain.isWritable)
})

t.test('what may hang is not looked at', async t => {
  const { folder, image } = place(t)
  const own = [fs.statSync(image, { bigint: true })]
  const real = fs.realpathSync(folder)
  fs.mkdirSync(join(folder, 'dead/sub'), { recursive: true })
  fs.linkSync(image, join(folder, 'dead/sub/base.raw'))
  fs.symlinkSync(join(real, 'dead'), join(folder, 'link'))
  fs.symlinkSync('loop', join(folder, 'loop'))
  const fd = fs.openSync(folder, 'r')
  const mounts = [{ mountpoint: join(real, 'dead'), type: 'nfs4', device: '0:9999' }]
  const found = (name: string, list = mounts) =>
    statLiving(Buffer.from(name), fd, foreignMounts(own, list))?.ino === own[0]?.ino
  try {
    for (const name of ['dead/sub/base.raw', 'link/sub/base.raw', `${real}/dead/sub/base.raw`]) {
      t.notOk(found(name), name)
      t.ok(found(name, []), `${name}, without such a mount`)
    }
    for (const name of ['base.raw', './base.raw', `${real}/base.raw`]) t.ok(found(name), name)
    t.notOk(found('loop'), 'links without an end')
    const stat = own[0] as fs.BigIntStats
    const device = `${(stat.dev >> 8n) & 0xfffn}:${stat.dev & 0xffn}`
    const alive = [...mounts, { mountpoint: join(real, 'dead/sub'), type: 'nfs4', device }]
    t.ok(found('dead/sub/base.raw', alive), 'on the way to what is alive')
  } finally {
    fs.closeSync(fd)
  }
})

t.test('obstacles', async t => {
  const { folder, overlays, put } = place(t)
  const elsewhere = tempFolder(t)
  fs.writeFileSync(join(elsewhere, 'overlay'), qcow('base.raw'))
  await run('mkfifo', [join(folder, 'fifo.qcow2')])
  fs.symlinkSync('fifo.qcow2', join(folder, 'link-to-fifo.qcow2'))
  fs.symlinkSync(join(elsewhere, 'overlay'), join(folder, 'link-out.qcow2'))
  fs.symlinkSync('nowhere', join(folder, 'dangling.qcow2'))
  fs.symlinkSync('loop.qcow2', join(folder, 'loop.qcow2'))
  fs.mkdirSync(join(folder, 'folder.qcow2'))
  put('empty.qcow2', '')
  put('noise.qcow2', Buffer.alloc(5000, 0xa5))
  put('zeros', Buffer.alloc(2 ** 20))
  put('fifo-name.qcow2', qcow('fifo.qcow2'))
  put('endless.qcow2', qcow('/dev/zero'))
  put('loop-name.qcow2', qcow('loop.qcow2'))
  t.strictSame(overlays(), [])
  put('no suffix', qcow('base.raw'))
  t.strictSame(overlays(), ['no suffix'])
})

t.test('many files: likely names are read first', async t => {
  const { folder, overlays, put } = place(t, 'disk.raw')
  for (let i = 0; i < 3000; i++) fs.writeFileSync(join(folder, `note-${i}`), '')
  put('a.qcow2', qcow('disk.raw'))
  put('disk.before-upgrade', qcow('disk.raw'))
  t.strictSame(overlays(), ['a.qcow2', 'disk.before-upgrade'])
  for (let i = 0; i < 3000; i++) {
    fs.renameSync(join(folder, `note-${i}`), join(folder, `${i}.img`))
  }
  t.ok(overlays().includes('disk.before-upgrade'))
})

t.test('what is opened for writing', async t => {
  const folder = tempFolder(t)
  const [base, overlay] = [join(folder, 'base.qcow2'), join(folder, 'overlay.qcow2')]
  const spec = { clusterBits: 16, sizeBytes: 1 << 20 }
  buildImage(spec).write(base)
  const backing = { name: 'base.qcow2', format: 'qcow2' }
  buildImage({ ...spec, backing }).write(overlay)
  const before = fs.readFileSync(base)
  const open = (image: string, options: Parameters<typeof openChain>[1]) => {
    const chain = openChain(image, options)
    closeChain(chain)
    return chain
  }
  t.throws(() => open(base, { access: 'write' }), { code: 'READ_ONLY' })
  const fallback = open(base, { access: 'write if possible' })
  t.equal(fallback.isWritable, false)
  t.strictSame(fallback.warnings, [
    `${base}: the disk "overlay.qcow2" would be broken by writing it (--force writes it), mounted read-only`,
  ])
  t.equal(open(base, { access: 'write', force: true }).isWritable, true)
  t.equal(open(base, { access: 'write', describe: 'image' }).isWritable, true, 'for repairs')
  t.strictSame(open(base, { access: 'read' }).warnings, [])
  t.strictSame(open(overlay, { access: 'write' }).warnings, [], 'the overlay itself')
  t.ok(fs.readFileSync(base).equals(before))
})

t.test('qemu-img', needs('qemu-img'), async t => {
  const { folder, overlays } = place(t)
  const create = (name: string, format: string, base: string, ...rest: string[]) =>
    run('qemu-img', ['create', '-q', '-f', format, '-F', 'raw', '-b', base, ...rest, name], {
      cwd: folder,
    })
  await create('a.qcow2', 'qcow2', 'base.raw')
  await create('b.qcow', 'qcow', join(folder, 'base.raw'))
  await create('c.qed', 'qed', 'base.raw')
  await create('d.qcow2', 'qcow2', 'base.raw', '-o', 'compat=0.10,cluster_size=512')
  const nested = json({
    driver: 'raw',
    file: { driver: 'file', filename: join(folder, 'base.raw') },
  })
  await create('e.qcow2', 'qcow2', nested)
  await run(
    'qemu-img',
    ['create', '-q', '-f', 'qcow2', '-o', 'data_file=data.raw', 'f.qcow2', '1M'],
    { cwd: folder },
  )
  t.strictSame(overlays(), ['a.qcow2', 'b.qcow', 'c.qed', 'd.qcow2', 'e.qcow2'])
  t.strictSame(overlays(join(folder, 'data.raw')), ['f.qcow2'])
  for (const name of ['a.qcow2', 'f.qcow2']) t.strictSame(overlays(join(folder, name)), [])
})
