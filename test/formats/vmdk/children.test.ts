/** Finds the images whose parent an image is, in a folder that may hold anything. */
import fs from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { MAX_VMDK_DESCRIPTOR_BYTES } from '../../../src/formats/limits.js'
import { childrenOf } from '../../../src/formats/vmdk/children.js'
import { parseDescriptor } from '../../../src/formats/vmdk/descriptor.js'
import { HEADER_AT, buildExtent } from '../../fixtures/vmdk-builder.js'
import { foldersOf, holding } from '../../support/folders.js'
import { needs, run, tempFolder } from '../../support/run.js'
import { cpuMs } from '../../support/cpu.js'

const BASE = `# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="monolithicFlat"
RW 2048 FLAT "base-flat.vmdk" 0
`
const IMAGE_UUID = 'b2a6ad3d-6bbd-4a5e-8c39-9a3e0e6d9b07'
const NO_UUID = '00000000-0000-0000-0000-000000000000'
const childText = (hint: string, cid = '12345678'): string =>
  `# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=${cid}\nparentFileNameHint="${hint}"\nRW 2048 SPARSE "x-s001.vmdk"\n`

/** Makes a folder with an image and other files; returns the children that are found. */
function machine(t: Test, text = BASE, name = 'base.vmdk') {
  const folder = tempFolder(t)
  const image = join(folder, name)
  fs.writeFileSync(image, text)
  const children = (path = image): string[] => {
    const fd = fs.openSync(path, 'r')
    try {
      const isText = text.startsWith('#')
      const descriptor = isText ? parseDescriptor(Buffer.from(text), path) : undefined
      return holding(foldersOf(path), folders => childrenOf({ path, fd }, { descriptor }, folders))
    } finally {
      fs.closeSync(fd)
    }
  }
  const put = (file: string | Buffer, content: string | Buffer) => {
    const path = Buffer.concat([Buffer.from(`${folder}/`), Buffer.from(file)])
    fs.writeFileSync(path, content)
  }
  return { folder, image, children, put }
}

const hints: { title: string; text: string; isChild: boolean }[] = [
  { title: 'by its name', text: childText('base.vmdk'), isChild: true },
  { title: 'by a path of another machine', text: childText('/vms/web/base.vmdk'), isChild: true },
  { title: 'by a path of Windows', text: childText('C:\\VMs\\web\\base.vmdk'), isChild: true },
  { title: 'by a path to it', text: childText('./sub/../base.vmdk'), isChild: true },
  { title: 'by its other name', text: childText('hard.vmdk'), isChild: true },
  { title: 'by a link to it', text: childText('sub/link.vmdk'), isChild: true },
  {
    title: 'by a link, and another folder',
    text: childText('D:\\old\\sub\\link.vmdk'),
    isChild: false,
  },
  {
    title: 'with a parentCID that is stale',
    text: childText('base.vmdk', '87654321'),
    isChild: true,
  },
  { title: 'with a parentCID of one digit', text: childText('base.vmdk', '1'), isChild: true },
  { title: 'with a parentCID that is none', text: childText('base.vmdk', 'xyz'), isChild: true },
  {
    title: 'with a parentCID for no parent',
    text: childText('base.vmdk', 'FFFFFFFF'),
    isChild: true,
  },
  {
    title: 'without a parentCID',
    text: childText('base.vmdk').replace(/^parentCID.*\n/m, ''),
    isChild: true,
  },
  { title: 'by another name', text: childText('based.vmdk'), isChild: false },
  { title: 'by another case', text: childText('Base.vmdk'), isChild: false },
  { title: 'by no name', text: childText(''), isChild: false },
  { title: 'by a folder', text: childText('.'), isChild: false },
  { title: 'by a name that is too long', text: childText('x'.repeat(9000)), isChild: false },
  {
    title: 'in lines of other kinds',
    text: childText('base.vmdk')
      .replaceAll('\n', '\r\n')
      .replace('parentCID=', '  PARENTCID = ')
      .replace('parentFileNameHint=', 'parentfilenamehint\t=\t'),
    isChild: true,
  },
  { title: 'after a byte order mark', text: `\ufeff${childText('base.vmdk')}`, isChild: true },
  {
    title: 'in the second of two lines',
    text: childText('a.vmdk"\nparentFileNameHint="base.vmdk'),
    isChild: false,
  },
  {
    title: 'in a comment',
    text: childText('a.vmdk"\n#parentFileNameHint="base.vmdk'),
    isChild: false,
  },
  {
    title: 'with extents of a kind that is not known',
    text: childText('base.vmdk').replace('SPARSE', 'VSANSPARSE'),
    isChild: true,
  },
  { title: 'as an extent', text: BASE.replace('base-flat', 'base'), isChild: false },
]
for (const { title, text, isChild } of hints) {
  t.test(`named ${title}`, async t => {
    const { folder, image, children, put } = machine(t)
    fs.mkdirSync(join(folder, 'sub'))
    fs.linkSync(image, join(folder, 'hard.vmdk'))
    fs.symlinkSync('../base.vmdk', join(folder, 'sub/link.vmdk'))
    t.strictSame(children(), [], 'not its own, by no name')
    put('child.vmdk', text)
    t.strictSame(children(), isChild ? ['child.vmdk'] : [])
  })
}

t.test('a descriptor in a sparse extent', async t => {
  const { children, put } = machine(t)
  const extent = (descriptor: string) => buildExtent({ capacitySectors: 2048, descriptor }).bytes
  const child = extent(childText('base.vmdk'))
  put('child.vmdk', child)
  put('other.vmdk', extent(BASE))
  put('Upper.VMDK', child)
  put('child.vmdk.bak', child)
  put(Buffer.from('gr\xf6\xdfe.vmdk', 'latin1'), child)
  const found = ['Upper.VMDK', 'child.vmdk', 'child.vmdk.bak', 'gr\ufffd\ufffde.vmdk']
  t.strictSame(children(), found)

  const damaged = (name: string, at: number, sectors: bigint) => {
    const bytes = Buffer.from(child)
    bytes.writeBigUInt64LE(sectors, at)
    put(name, bytes)
  }
  damaged('far.vmdk', HEADER_AT.descriptorOffset, 2n ** 63n)
  damaged('behind.vmdk', HEADER_AT.descriptorOffset, BigInt(Math.ceil(child.length / 512)))
  damaged('none.vmdk', HEADER_AT.descriptorOffset, 0n)
  damaged('empty.vmdk', HEADER_AT.descriptorSize, 0n)
  put('cut.vmdk', child.subarray(0, 511))
  put('cut-off.vmdk', child.subarray(0, 512))
  t.strictSame(children(), found)
  // These are still theirs: the text is whole.
  damaged('huge.vmdk', HEADER_AT.descriptorSize, 2n ** 64n - 1n)
  damaged('no-disk.vmdk', HEADER_AT.capacity, 0n)
  t.strictSame(children(), [...found, 'huge.vmdk', 'no-disk.vmdk'].sort())
  const long = `${'\n'.repeat(MAX_VMDK_DESCRIPTOR_BYTES)}${childText('base.vmdk')}`
  put('long.vmdk', extent(long.slice(200)))
  put('too-long.vmdk', extent(long))
  t.strictSame(children(), [...found, 'huge.vmdk', 'long.vmdk', 'no-disk.vmdk'].sort())
})

t.test('VirtualBox', async t => {
  const text = `${BASE}ddb.uuid.image="${IMAGE_UUID}"\nddb.uuid.parent="${NO_UUID}"\n`
  const { children, put } = machine(t, text)
  const linked = (uuid: string) => `${BASE}ddb.uuid.parent=${uuid}\n`
  put('{child}.vmdk', linked(`"${IMAGE_UUID}"`))
  put('upper.vmdk', linked(`"{${IMAGE_UUID.toUpperCase()}}"`))
  put('other.vmdk', linked(`"${IMAGE_UUID.replace('b', 'c')}"`))
  put('none.vmdk', linked(`"${NO_UUID}"`))
  t.strictSame(children(), ['upper.vmdk', '{child}.vmdk'])
  // An image without a UUID has none of them, nor has one that was copied without its own.
  for (const uuid of ['', `ddb.uuid.image="${NO_UUID}"\n`, 'ddb.uuid.image=""\n']) {
    const { children, put } = machine(t, `${BASE}${uuid}`)
    put('child.vmdk', linked(`"${IMAGE_UUID}"`))
    put('none.vmdk', linked(`"${NO_UUID}"`))
    put('empty.vmdk', linked('""'))
    t.strictSame(children(), [])
  }
})

t.test('a name in an encoding of its own', async t => {
  const { children, put } = machine(t, BASE, '中文.vmdk')
  // 中文 in GBK; in windows-1252 they are other letters.
  const text = childText('\xd6\xd0\xce\xc4.vmdk')
  const encoded = (name: string) =>
    Buffer.from(text.replace('CID=1', `encoding="${name}"\nCID=1`), 'latin1')
  put('gbk.vmdk', encoded('GBK'))
  put('other.vmdk', encoded('windows-1252'))
  put('utf8.vmdk', childText('中文.vmdk'))
  t.strictSame(children(), ['gbk.vmdk', 'utf8.vmdk'])
})

t.test('an image without a descriptor', async t => {
  const { children, put } = machine(t, 'KDMV')
  put('child.vmdk', childText('base.vmdk'))
  t.strictSame(children(), ['child.vmdk'])
})

t.test('an image that was given by a link', async t => {
  const { folder, children, put } = machine(t)
  const links = tempFolder(t)
  const link = join(links, 'link.vmdk')
  fs.symlinkSync(join(folder, 'base.vmdk'), link)
  put('beside.vmdk', childText('base.vmdk'))
  put('a-side.vmdk', childText('link.vmdk'))
  fs.writeFileSync(join(links, 'b-side.vmdk'), childText('link.vmdk'))
  fs.writeFileSync(join(links, 'beside.vmdk'), childText('base.vmdk'))
  t.strictSame(children(link), ['a-side.vmdk', 'b-side.vmdk', 'beside.vmdk'])
  t.strictSame(children(), ['beside.vmdk'])
  const before = process.cwd()
  process.chdir(links)
  t.teardown(() => process.chdir(before))
  t.strictSame(children('link.vmdk'), ['a-side.vmdk', 'b-side.vmdk', 'beside.vmdk'], 'relative')
})

t.test('obstacles', async t => {
  const { folder, children, put } = machine(t)
  const elsewhere = tempFolder(t)
  fs.writeFileSync(join(elsewhere, 'child'), childText('base.vmdk'))
  await run('mkfifo', [join(folder, 'fifo.vmdk')])
  fs.symlinkSync('fifo.vmdk', join(folder, 'link-to-fifo.vmdk'))
  fs.symlinkSync(join(elsewhere, 'child'), join(folder, 'link-out.vmdk'))
  fs.symlinkSync('nowhere', join(folder, 'dangling.vmdk'))
  fs.symlinkSync('loop.vmdk', join(folder, 'loop.vmdk'))
  fs.mkdirSync(join(folder, 'folder.vmdk'))
  put('empty.vmdk', '')
  put('noise.vmdk', Buffer.alloc(5000, 0xa5))
  put('zeros.vmdk', Buffer.alloc(2 ** 21))
  put('nul.vmdk', `${childText('a.vmdk')}\0parentFileNameHint="base.vmdk"`)
  put('long.vmdk', `${childText('base.vmdk')}${'\n'.repeat(MAX_VMDK_DESCRIPTOR_BYTES)}`)
  const { bytes: extent } = buildExtent({
    capacitySectors: 2048,
    descriptor: childText('base.vmdk'),
  })
  put('cowd.vmdk', Buffer.concat([Buffer.from('COWD'), extent.subarray(4)]))
  put('notes.txt.vmdk', childText('base.vmdk').replace(/^.*\n.*\n/, ''))
  put('magic.vmdk', 'KDMV')
  put('fifo-hint.vmdk', childText('fifo.vmdk'))
  put('endless.vmdk', childText('/dev/zero'))
  t.strictSame(children(), [])
  put('child.vmdk', `${childText('base.vmdk')}${'\n'.repeat(MAX_VMDK_DESCRIPTOR_BYTES / 2)}`)
  t.strictSame(children(), ['child.vmdk'])
  if (process.getuid?.() !== 0) {
    fs.chmodSync(join(folder, 'child.vmdk'), 0)
    t.strictSame(children(), [])
  }
})

t.test('an image that is gone', async t => {
  const { folder, image, children } = machine(t)
  const fd = fs.openSync(image, 'r')
  holding([folder], folders => {
    fs.rmSync(folder, { recursive: true })
    t.strictSame(childrenOf({ path: image, fd }, { descriptor: undefined }, folders), [])
  })
  fs.closeSync(fd)
  t.throws(() => children(), { code: 'ENOENT' })
})

t.test('texts that take long where a search goes back', async t => {
  const K = 1024
  const texts = [
    `${' '.repeat(K * K - 50)}x`,
    `${' '.repeat(16 * K)}\n`.repeat(63),
    `parentCID${' '.repeat(16 * K)}x\n`.repeat(63),
    `parentFileNameHint="${'" #'.repeat(5 * K)}x\n`.repeat(63),
    'parentCID=\n'.repeat(90 * K),
    'encoding=GBK\n'.repeat(75 * K),
    '\n'.repeat(K * K - 50),
  ]
  for (const text of texts) {
    const { children, put } = machine(t)
    put('child.vmdk', `# Disk DescriptorFile\n${text}`)
    const start = cpuMs()
    t.strictSame(children(), [])
    const took = cpuMs() - start
    t.ok(took < 1000, `${JSON.stringify(text.slice(0, 20))}: ${Math.round(took)} ms`)
  }
})

t.test('many files', async t => {
  const { folder, children, put } = machine(t)
  const text = childText('base.vmdk')
  for (let i = 0; i < 4200; i++) fs.writeFileSync(join(folder, `c${10_000 + i}.vmdk`), text)
  put('a.txt', text)
  put('z.vmdk', text)
  const start = cpuMs()
  const found = children()
  const took = cpuMs() - start
  // base.vmdk is one of those that are looked at.
  t.equal(found.length, 4095)
  t.equal(found.at(-1), 'c14094.vmdk')
  t.ok(took < 10_000, `${Math.round(took)} ms`)
})

t.test('qemu-img', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const create = (name: string, ...rest: string[]) =>
    run('qemu-img', ['create', '-q', '-f', 'vmdk', ...rest, join(folder, name)], { cwd: folder })
  await run('qemu-img', ['create', '-q', '-f', 'vmdk', join(folder, 'base.vmdk'), '3G'])
  await create('sparse.vmdk', '-F', 'vmdk', '-b', 'base.vmdk')
  await create('absolute.vmdk', '-F', 'vmdk', '-b', join(folder, 'base.vmdk'))
  const split = ['-o', 'subformat=twoGbMaxExtentSparse', '-F', 'vmdk', '-b', 'base.vmdk']
  await create('split.vmdk', ...split)
  await create('grandchild.vmdk', '-F', 'vmdk', '-b', 'sparse.vmdk')
  const children = (name: string) => {
    const path = join(folder, name)
    const fd = fs.openSync(path, 'r')
    const found = holding([folder], folders =>
      childrenOf({ path, fd }, { descriptor: undefined }, folders),
    )
    fs.closeSync(fd)
    return found
  }
  t.strictSame(children('base.vmdk'), ['absolute.vmdk', 'sparse.vmdk', 'split.vmdk'])
  t.strictSame(children('sparse.vmdk'), ['grandchild.vmdk'])
  for (const leaf of ['absolute.vmdk', 'split.vmdk', 'grandchild.vmdk']) {
    t.strictSame(children(leaf), [])
  }
})

t.test('a redo log, and disks in the folder of snapshots', async t => {
  const uuid = 'ddb.uuid.image="11111111-2222-3333-4444-555555555555"\n'
  const { folder, children } = machine(t, `${BASE}${uuid}`)
  fs.writeFileSync(join(folder, 'base.vmdk.REDO_TkLU1V'), childText('base.vmdk'))
  const snapshots = join(folder, 'Snapshots')
  fs.mkdirSync(snapshots)
  const by = BASE + uuid.replace('image', 'parent')
  fs.writeFileSync(join(snapshots, '{child}.vmdk'), by)
  t.strictSame(children(), ['Snapshots/{child}.vmdk', 'base.vmdk.REDO_TkLU1V'])
  fs.renameSync(snapshots, join(folder, 'elsewhere'))
  fs.symlinkSync('elsewhere', snapshots)
  t.strictSame(children(), ['base.vmdk.REDO_TkLU1V'], 'links are not followed')
})
