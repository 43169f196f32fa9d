/** `vimgfs info` beside `qemu-img info`: the same fields and numbers, for people and for programs. */
import {
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { buildCow } from '../fixtures/cow-builder.js'
import { buildImage } from '../fixtures/qcow2-builder.js'
import { vmsdOf } from '../fixtures/vmsd.js'
import { creating } from '../peers/encrypted.js'
import { run as info } from '../../src/cli/info.js'
import { runHere } from '../support/command.js'
import { attempt, needs, run, tempFolder } from '../support/run.js'

const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))

const vimgfs = (cwd: string, ...args: string[]) => runHere(info, args, cwd)
const qemuImg = (cwd: string, ...args: string[]) => run('qemu-img', args, { cwd })
/** A qcow2 image of this size, or of its backing file's. */
const create = (cwd: string, name: string, size: string | undefined, ...args: string[]) =>
  qemuImg(cwd, 'create', '-q', '-f', 'qcow2', ...args, name, ...(size === undefined ? [] : [size]))

/** Numbers of 64 bits as text, and without what newer versions of QEMU add. */
const parsed = (json: string): unknown =>
  JSON.parse(json.replace(/: (-?\d{16,})/g, ': "$1"'), (key, value) =>
    key === 'children' ? undefined : value,
  )

/** Without what newer versions of QEMU add; and without the snapshots, which they show otherwise. */
function lines(human: string, withTable: boolean): string[] {
  const all = human.replace(/^Child node .*\n(?: {4}.*\n)*/gm, '').split('\n')
  return withTable ? all : all.filter(line => !/\d\d:\d\d\.\d\d\d|^ID /.test(line))
}

/** Both outputs of both programs; resolves to what ours said to programs. */
async function compare(t: Test, cwd: string, image: string, ...args: string[]): Promise<unknown> {
  const theirArgs = args.map(arg => (arg === '--format' ? '-f' : arg))
  const json = await qemuImg(cwd, 'info', '--output=json', ...theirArgs, image)
  const ourJson = await vimgfs(cwd, '--output=json', ...args, image)
  t.strictSame(ourJson, { code: 0, stdout: ourJson.stdout, stderr: '' })
  t.match(ourJson.stdout, /^[\n -~]+$/, 'a terminal shows it as it is')
  t.strictSame(parsed(ourJson.stdout), parsed(json))
  const human = await qemuImg(cwd, 'info', ...theirArgs, image)
  const ourHuman = await vimgfs(cwd, ...args, image)
  const withTable = !human.includes('VM_SIZE')
  t.strictSame(lines(ourHuman.stdout, withTable), lines(human, withTable))
  return parsed(ourJson.stdout)
}

function poke(file: string, at: number, bytes: Buffer): void {
  const fd = openSync(file, 'r+')
  writeSync(fd, bytes, 0, bytes.length, at)
  closeSync(fd)
}

const INCOMPATIBLE_AT = 79
const AUTOCLEAR_AT = 95

interface Case {
  readonly title: string
  /** The options of qemu-img create -o. */
  readonly options?: string
  readonly size?: string
  /** Changes the file afterwards. */
  readonly change?: (file: string) => void
}

const cases: Case[] = [
  { title: 'an image as it comes', size: '1G' },
  { title: 'no bytes', size: '0' },
  { title: '16 TiB', size: '16T' },
  { title: 'version 2', options: 'compat=0.10' },
  ...['512', '4k', '2M'].map(size => ({
    title: `clusters of ${size}`,
    options: `cluster_size=${size}`,
  })),
  ...[1, 2, 4, 8, 32, 64].map(bits => ({
    title: `reference counts of ${bits} bits`,
    options: `refcount_bits=${bits}`,
  })),
  { title: 'lazy reference counts', options: 'lazy_refcounts=on' },
  { title: 'extended L2 entries', options: 'extended_l2=on' },
  { title: 'zstd', options: 'compression_type=zstd' },
  { title: 'preallocated tables', options: 'preallocation=metadata' },
  { title: 'a data file', options: 'data_file=data.bin' },
  { title: 'a raw data file', options: 'data_file=data.bin,data_file_raw=on' },
  {
    title: 'a data file that is gone',
    options: 'data_file=data.bin',
    change: file => rmSync(join(file, '../data.bin')),
  },
  {
    title: 'the name of a data file that is not used',
    options: 'data_file=data.bin',
    change: file => poke(file, INCOMPATIBLE_AT, Buffer.from([0])),
  },
  { title: 'dirty', change: file => poke(file, INCOMPATIBLE_AT, Buffer.from([1])) },
  { title: 'corrupt', change: file => poke(file, INCOMPATIBLE_AT, Buffer.from([2])) },
  // 999936 bytes are 976.5 KiB, a tie that goes to the even side.
  {
    title: 'a size between two sectors',
    size: '1M',
    change: file => poke(file, 24, Buffer.from('00000000000f4241', 'hex')),
  },
]

t.test('qcow2', needs('qemu-img'), async t => {
  for (const { title, options, size = '100M', change } of cases) {
    t.test(title, async t => {
      const folder = tempFolder(t)
      await create(folder, 'disk.qcow2', size, ...(options === undefined ? [] : ['-o', options]))
      change?.(join(folder, 'disk.qcow2'))
      await compare(t, folder, 'disk.qcow2')
    })
  }
})

t.test('raw', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  writeFileSync(join(folder, 'disk.raw'), Buffer.alloc(70_000, 1))
  await t.test('bytes', async t => compare(t, folder, 'disk.raw'))
  truncateSync(join(folder, 'disk.raw'), 10_000_001)
  await t.test('a hole and an odd end', async t => compare(t, folder, 'disk.raw'))
  await t.test('as a chain', async t => compare(t, folder, 'disk.raw', '--backing-chain'))
  await create(folder, 'disk.qcow2', '1M')
  await t.test('because it is said', async t => compare(t, folder, 'disk.qcow2', '--format', 'raw'))
})

t.test('snapshots', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  for (const compat of ['0.10', '1.1']) {
    const name = `disk-${compat}.qcow2`
    await create(folder, name, '10M', '-o', `compat=${compat}`)
    await qemuImg(folder, 'snapshot', '-c', 'first', name)
    await qemuImg(folder, 'snapshot', '-c', 'the 2nd', name)
    const info = (await compare(t, folder, name)) as { snapshots: { name: string }[] }
    t.strictSame(
      info.snapshots.map(snapshot => snapshot.name),
      ['first', 'the 2nd'],
    )
  }
})

t.test('snapshots of running machines', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const running = {
    seconds: 1_700_000_000,
    nanoseconds: 999_999_999,
    guestNanoseconds: 3_661_005_000_000n,
    vmStateBytes: 77 * 2 ** 20,
  }
  for (const extraBytes of [0, 16, 24, 40]) {
    const name = `extra-${extraBytes}.qcow2`
    const snapshots = [
      { ...running, name: 'running', extraBytes },
      { name: '', extraBytes, seconds: 2 ** 32 - 1 },
    ]
    buildImage({ sizeBytes: 2 ** 20, snapshots }).write(join(folder, name))
    await compare(t, folder, name)
  }
  const image = buildImage({ sizeBytes: 2 ** 20, snapshots: [{ name: 'wide', extraBytes: 24 }] })
  for (const [title, icount] of [
    ['2^53 + 1', 2n ** 53n + 1n],
    ['negative', -(2n ** 62n)],
    ['none', -1n],
  ] as const) {
    await t.test(`an instruction count: ${title}`, async t => {
      const file = join(folder, 'counting.qcow2')
      image.write(file)
      const bytes = Buffer.alloc(24)
      bytes.writeBigUInt64BE(2n ** 42n)
      bytes.writeBigUInt64BE(2n ** 20n, 8)
      bytes.writeBigInt64BE(icount, 16)
      poke(file, image.snapshotsAt + 40, bytes)
      const json = (await vimgfs(folder, '--output=json', file)).stdout
      t.strictSame(parsed(json), parsed(await qemuImg(folder, 'info', '--output=json', file)))
      t.equal(json.includes('icount'), icount !== -1n)
    })
  }
})

t.test('names of any bytes', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const names = [
    'a/b%c',
    'two\nlines',
    '\x1b[31mred\x7f',
    'wide 😀 é\x85\u2028',
    '\xff\xfe(',
    'x\0y',
  ]
  const snapshots = names.map(name => ({
    name: Buffer.from(name, name.startsWith('\xff') ? 'latin1' : 'utf8'),
  }))
  const long = [{ name: 'n'.repeat(300), id: 'i'.repeat(200) }]
  buildImage({ sizeBytes: 2 ** 20, snapshots: [...snapshots, ...long] }).write(
    join(folder, 'a.qcow2'),
  )
  const { stdout } = await vimgfs(folder, '--output=json', 'a.qcow2')
  t.strictSame(parsed(stdout), parsed(await qemuImg(folder, 'info', '--output=json', 'a.qcow2')))
  t.match(stdout, /^[\n -~]+$/)
  const human = (await vimgfs(folder, 'a.qcow2')).stdout
  t.match(human, 'two\\x0alines')
  t.match(human, '\\x1b[31mred\\x7f')
  t.notMatch(human, /[\x00-\x09\x0b-\x1f\x7f-\x9f]/)

  await create(folder, 'b.qcow2', '1M', '-u', '-F', 'raw', '-b', 'bell\x07')
  t.match((await vimgfs(folder, 'b.qcow2')).stdout, 'backing file: bell\\x07\n')
})

t.test('columns that are too narrow keep a blank', async t => {
  const folder = tempFolder(t)
  const vmStateBytes = 1.25 * 2 ** 30
  const snapshots = [{ name: 'a name that is longer than its column', vmStateBytes }]
  buildImage({ sizeBytes: 2 ** 20, snapshots }).write(join(folder, 'a.qcow2'))
  t.match((await vimgfs(folder, 'a.qcow2')).stdout, 'than its column 1.25 GiB ')
})

t.test('bitmaps', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const file = join(folder, 'disk.qcow2')
  await create(folder, 'disk.qcow2', '10M')
  await qemuImg(folder, 'bitmap', '--add', '-g', '512', 'disk.qcow2', 'fine')
  await qemuImg(folder, 'bitmap', '--add', '-g', '2G', '--disable', 'disk.qcow2', 'coarse, é')
  const { directoryAt, extensionAt } = bitmapDirectory(file)
  await t.test('on and off', async t => compare(t, folder, 'disk.qcow2'))

  poke(file, directoryAt + 15, Buffer.from([3]))
  await t.test('not closed', async t => compare(t, folder, 'disk.qcow2'))

  await t.test('none where an old program wrote', async t => {
    poke(file, AUTOCLEAR_AT, Buffer.from([0]))
    await compare(t, folder, 'disk.qcow2')
    poke(file, AUTOCLEAR_AT, Buffer.from([1]))
  })

  const damages = [
    { title: 'a directory past the end', at: extensionAt + 16, bytes: '0000100000000000' },
    { title: 'more bitmaps than it has', at: extensionAt, bytes: '00000003' },
    { title: '2^32 bitmaps', at: extensionAt, bytes: 'ffffffff' },
    { title: 'a directory of 2^40 bytes', at: extensionAt + 8, bytes: '0000010000000000' },
    { title: 'a name past the end', at: directoryAt + 18, bytes: 'ffff' },
    { title: 'extra data past the end', at: directoryAt + 20, bytes: 'ffffffff' },
    { title: 'an unknown type', at: directoryAt + 16, bytes: '02' },
    { title: 'a granularity of 2^200', at: directoryAt + 17, bytes: 'c8' },
  ]
  const sound = readFileSync(file)
  for (const { title, at, bytes } of damages) {
    await t.test(title, async t => {
      writeFileSync(file, sound)
      poke(file, at, Buffer.from(bytes, 'hex'))
      t.not((await attempt('qemu-img', ['info', file])).code, 0)
      const { code, stdout, stderr } = await vimgfs(folder, '--output=json', 'disk.qcow2')
      t.equal(code, 0)
      t.match(parsed(stdout), { 'virtual-size': 10 * 2 ** 20 })
      t.notMatch(stdout, 'bitmaps')
      t.match(stderr, /^vimgfs: [^\n]+: its bitmaps are not listed: [^\n]+\n$/)
    })
  }
})

/** Where the directory is, and the data of the extension that says it. */
function bitmapDirectory(file: string): { directoryAt: number; extensionAt: number } {
  const head = readFileSync(file)
  let at = head.readUInt32BE(100)
  while (head.readUInt32BE(at) !== 0x23852875)
    at += 8 + Math.ceil(head.readUInt32BE(at + 4) / 8) * 8
  return { directoryAt: Number(head.readBigUInt64BE(at + 24)), extensionAt: at + 8 }
}

t.test('encrypted images', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const secret = ['--object', 'secret,id=key,data=abc', '-o']
  const backing = ['-F', 'raw', '-b', 'base.raw']
  writeFileSync(join(folder, 'base.raw'), Buffer.alloc(65536))
  const cases = [
    { name: 'aes', options: ['encrypt.format=aes'] },
    { name: 'aes-v2', options: ['encrypt.format=aes', 'compat=0.10'] },
    { name: 'luks', options: ['encrypt.format=luks'] },
    {
      name: 'luks-data-file',
      options: [
        'encrypt.format=luks',
        'data_file=data.bin',
        ...[
          'cipher-alg=aes-128',
          'cipher-mode=cbc',
          'ivgen-alg=essiv',
          'ivgen-hash-alg=sha256',
        ].map(option => `encrypt.${option}`),
      ],
    },
  ]
  for (const { name, options } of cases) {
    await t.test(name, async t => {
      const isLuks = options.includes('encrypt.format=luks')
      const time = isLuks ? ['encrypt.iter-time=200'] : []
      const all = [...options, ...time, 'encrypt.key-secret=key'].join(',')
      const more = options.includes('data_file=data.bin') ? [] : backing
      const args = ['create', '-q', '-f', 'qcow2', ...secret, all, ...more, `${name}.qcow2`, '10M']
      await creating(args, { cwd: folder })
      await compare(t, folder, `${name}.qcow2`)
    })
  }

  await t.test('a damaged LUKS header', async t => {
    const file = join(folder, 'luks.qcow2')
    const sound = readFileSync(file)
    const at = sound.indexOf(Buffer.from('LUKS\xba\xbe', 'latin1'))
    const extensionAt = sound.indexOf(Buffer.from('0537be7700000010', 'hex'))
    const damages = [
      { title: 'no magic', at, bytes: '00', says: /no LUKS header/ },
      { title: 'version 2', at: at + 6, bytes: '0002', says: /version 2/ },
      { title: 'no mode', at: at + 40, bytes: '00', says: /cipher mode/ },
      { title: 'a key slot of no kind', at: at + 208, bytes: 'ff', says: /key slot 0/ },
      {
        title: 'no extension that names it',
        at: extensionAt,
        bytes: '41424344',
        says: /says nowhere/,
      },
    ]
    for (const { title, at, bytes, says } of damages) {
      await t.test(title, async t => {
        writeFileSync(file, sound)
        poke(file, at, Buffer.from(bytes, 'hex'))
        t.not((await attempt('qemu-img', ['info', file])).code, 0)
        await refuses(t, folder, ['luks.qcow2'], says)
      })
    }
    await t.test('cut off', async t => {
      writeFileSync(file, sound.subarray(0, at + 300))
      await refuses(t, folder, ['luks.qcow2'], /LUKS header is cut off/)
    })
  })
})

t.test('backing files', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  mkdirSync(join(folder, 'sub'))
  writeFileSync(join(folder, 'base.raw'), Buffer.alloc(100_000, 1))
  const overlay = (name: string, base: string, format: string) =>
    create(folder, name, undefined, '-F', format, '-b', base)
  await overlay('middle.qcow2', 'base.raw', 'raw')
  await qemuImg(folder, 'snapshot', '-c', 'below', 'middle.qcow2')
  await overlay('top.qcow2', join(folder, 'middle.qcow2'), 'qcow2')
  await overlay('sub/top.qcow2', '../middle.qcow2', 'qcow2')
  for (const name of ['top.qcow2', './top.qcow2', 'sub/../top.qcow2', join(folder, 'top.qcow2')]) {
    await t.test(name, async t => {
      await compare(t, folder, name)
      const chain = (await compare(t, folder, name, '--backing-chain')) as unknown[]
      t.equal(chain.length, 3)
    })
  }
  await t.test('above its folder', async t => {
    await compare(t, folder, 'sub/top.qcow2')
    await refuses(t, folder, ['--backing-chain', 'sub/top.qcow2'], /lies outside .*--allow-path/)
    const args = ['--output=json', '--backing-chain']
    const { stdout } = await vimgfs(folder, ...args, '--allow-path', '.', 'sub/top.qcow2')
    t.strictSame(parsed(stdout), parsed(await qemuImg(folder, 'info', ...args, 'sub/top.qcow2')))
  })
  await t.test('through a link', async t => {
    symlinkSync('top.qcow2', join(folder, 'link.qcow2'))
    await compare(t, folder, 'link.qcow2', '--backing-chain')
  })
  await t.test('without its format', async t => {
    await overlay('bare.qcow2', 'middle.qcow2', 'qcow2')
    poke(join(folder, 'bare.qcow2'), 112, Buffer.from('ABCD'))
    await compare(t, folder, 'bare.qcow2', '--backing-chain')
  })
  await t.test('missing', async t => {
    await create(folder, 'orphan.qcow2', '1M', '-u', '-F', 'raw', '-b', 'gone.raw')
    await compare(t, folder, 'orphan.qcow2')
    await refuses(t, folder, ['--backing-chain', 'orphan.qcow2'], /"gone.raw" cannot be opened/)
  })
  for (const name of [
    'json:{"driver":"raw","file":{"filename":"base.raw"}}',
    'nbd://localhost/x',
  ]) {
    await t.test(name, async t => {
      await create(folder, 'odd.qcow2', '1M', '-u', '-F', 'raw', '-b', name)
      await compare(t, folder, 'odd.qcow2')
      await refuses(
        t,
        folder,
        ['--backing-chain', 'odd.qcow2'],
        /not a plain path|not on this machine/,
      )
    })
  }
  await t.test('a loop', async t => {
    await create(folder, 'one.qcow2', '1M', '-u', '-F', 'qcow2', '-b', 'two.qcow2')
    await create(folder, 'two.qcow2', '1M', '-u', '-F', 'qcow2', '-b', 'one.qcow2')
    await compare(t, folder, 'one.qcow2')
    await refuses(t, folder, ['--backing-chain', 'one.qcow2'], /the chain is a loop/)
  })
})

async function refuses(
  t: Test,
  cwd: string,
  args: string[],
  says: RegExp,
  code = 1,
): Promise<void> {
  for (const output of ['--output=human', '--output=json']) {
    const result = await vimgfs(cwd, output, ...args)
    t.equal(result.code, code)
    t.equal(result.stdout, '')
    t.match(result.stderr, says)
    t.match(result.stderr, /^vimgfs: [^\n]+\n$/, 'one line')
  }
}

t.test('what is no image', async t => {
  const folder = tempFolder(t)
  const sound = buildImage({ sizeBytes: 2 ** 20, snapshots: [{ name: 'one' }] }).bytes()
  const files = {
    'empty.qcow2': Buffer.alloc(0),
    'text.qcow2': Buffer.from('hello '.repeat(200)),
    'short.raw': Buffer.from('hello'),
    'cut.qcow2': sound.subarray(0, 60),
    'halved.qcow2': sound.subarray(0, 65536 + 100),
    'disk.vmdk': Buffer.concat([Buffer.from('KDMV'), Buffer.alloc(1020)]),
    'disk.vhdx': Buffer.concat([Buffer.from('vhdxfile'), Buffer.alloc(1016)]),
    'future.qcow2': Buffer.from(sound),
  }
  files['future.qcow2'].writeUInt8(0x80, 72)
  for (const [name, bytes] of Object.entries(files)) writeFileSync(join(folder, name), bytes)
  mkdirSync(join(folder, 'folder'))
  const refusals: [string, RegExp][] = [
    ['gone.qcow2', /no such file/],
    ['folder', /this is a folder/],
    ['/dev/null', /this is a character device/],
    ['empty.qcow2', /this is no qcow2 image/],
    ['text.qcow2', /this is no qcow2 image/],
    ['short.raw', /no disk image/],
    ['cut.qcow2', /the qcow2 header is cut off after 60 bytes/],
    ['halved.qcow2', /lies beyond the end of the file/],
    ['disk.vmdk', /version 0/],
    ['disk.vhdx', /vhdx images are not read yet/],
    ['future.qcow2', /incompatible features .*bit 63/],
  ]
  for (const [name, says] of refusals) {
    await t.test(name, async t => refuses(t, folder, [name], says))
  }
  await t.test('unless it is said what it is', async t => {
    const { code, stdout } = await vimgfs(folder, '--format', 'raw', 'text.qcow2')
    t.equal(code, 0)
    t.match(stdout, 'virtual size: 1.5 KiB (1536 bytes)')
  })
})

t.test('wrong usage', async t => {
  const usages: [string[], RegExp][] = [
    [[], /IMAGE is missing/],
    [['a', 'b'], /"b" is one argument too many/],
    [['--no-such-option', 'a'], /--no-such-option/],
    [['--format', 'vdi', 'a'], /--format takes raw, cow, qcow, qcow2, vmdk, .*not "vdi"/],
    [['--output=xml', 'a'], /--output takes human, json, not "xml"/],
  ]
  for (const [args, says] of usages) {
    const { code, stdout, stderr } = await vimgfs('/', ...args)
    t.strictSame([code, stdout], [2, ''], args.join(' '))
    t.match(stderr, says)
    t.match(stderr, /^vimgfs: [^\n]+\n$/)
  }
})

t.test('qcow', needs('qemu-img'), async t => {
  const cwd = tempFolder(t)
  const create = (...args: string[]) => qemuImg(cwd, 'create', '-q', '-f', 'qcow', ...args)
  await create('disk.qcow', '10M')
  await create('-b', 'disk.qcow', '-F', 'qcow', 'over.qcow', '20M')
  const secret = ['--object', 'secret,id=key,data=abc']
  await create(...secret, '-o', 'encrypt.format=aes,encrypt.key-secret=key', 'aes.qcow', '1G')
  for (const image of ['disk.qcow', 'over.qcow', 'aes.qcow']) await compare(t, cwd, image)
  const { stdout } = await vimgfs(cwd, '--backing-chain', '--output=json', 'over.qcow')
  t.match(parsed(stdout), [{ filename: 'over.qcow' }, { filename: 'disk.qcow' }])
})

t.test('cow, which QEMU has forgotten', async t => {
  const cwd = tempFolder(t)
  const spec = { layout: 'uml-3', sizeBytes: 2 ** 20, backing: '/disks/base', seconds: 7 } as const
  writeFileSync(join(cwd, 'disk.cow'), buildCow(spec).bytes)
  const { code, stdout } = await vimgfs(cwd, '--output=json', 'disk.cow')
  t.equal(code, 0)
  t.match(parsed(stdout), {
    format: 'cow',
    'virtual-size': 2 ** 20,
    'cluster-size': 512,
    'backing-filename': '/disks/base',
    'format-specific': { type: 'cow', data: { layout: 'uml-3', 'backing-mtime': 7 } },
  })
})

t.test('vmdk', needs('qemu-img'), async t => {
  const cwd = tempFolder(t)
  const create = (...args: string[]) => qemuImg(cwd, 'create', '-q', '-f', 'vmdk', ...args)
  const kinds = ['monolithicSparse', 'monolithicFlat', 'twoGbMaxExtentSparse', 'twoGbMaxExtentFlat']
  for (const kind of [...kinds, 'streamOptimized']) {
    await create('-o', `subformat=${kind}`, `${kind}.vmdk`, '3G')
    await compare(t, cwd, `${kind}.vmdk`)
  }
  mkdirSync(join(cwd, 'folder'))
  await create('-o', 'subformat=twoGbMaxExtentSparse', 'folder/split.vmdk', '3G')
  await compare(t, cwd, 'folder/split.vmdk')
  await create('-b', 'monolithicSparse.vmdk', '-F', 'vmdk', 'child.vmdk')
  await create('-b', 'child.vmdk', '-F', 'vmdk', 'grandchild.vmdk')
  await compare(t, cwd, 'grandchild.vmdk')
  await compare(t, cwd, 'grandchild.vmdk', '--backing-chain')
  const disks = { 'scsi0:0': 'child.vmdk' }
  const created = 1_600_000_000_123_456
  const list = vmsdOf([{ uid: 7, name: 'one', created, disks }], 7)
  writeFileSync(join(cwd, 'machine.vmsd'), list)
  const { stdout } = await vimgfs(cwd, '--output=json', 'child.vmdk')
  const { snapshots } = JSON.parse(stdout)
  t.match(snapshots, [{ name: 'one', id: '7', 'date-sec': 1_600_000_000, 'vm-state-size': 0 }])
  t.match((await vimgfs(cwd, 'child.vmdk')).stdout, /^7 +one +0 B 2020-09-13/m)
})

t.test('a raw image that is a LUKS container', async t => {
  const cwd = tempFolder(t)
  for (const version of [1, 2]) {
    const bytes = Buffer.alloc(2 ** 20)
    bytes.write('LUKS\xba\xbe', 'latin1')
    bytes.writeUInt16BE(version, 6)
    writeFileSync(join(cwd, 'disk'), bytes)
    const specific = `Format specific information:\n    content: LUKS container\n    luks version: ${version}\n`
    t.ok((await vimgfs(cwd, 'disk')).stdout.endsWith(specific))
    const { 'format-specific': found } = JSON.parse(
      (await vimgfs(cwd, '--output=json', 'disk')).stdout,
    )
    t.same(found, { type: 'raw', data: { content: 'LUKS container', 'luks-version': version } })
  }
  for (const content of ['', 'LUKS', 'LUKS\xba\xbf\0\x01']) {
    writeFileSync(join(cwd, 'disk'), Buffer.from(content, 'latin1'))
    const { stdout } = await vimgfs(cwd, '--format', 'raw', 'disk')
    t.notMatch(stdout, /LUKS container/)
  }
})

t.test('launched: a result, and a refusal', async t => {
  const cwd = tempFolder(t)
  writeFileSync(
    join(cwd, 'disk.qcow2'),
    buildImage({ clusterBits: 16, sizeBytes: 2 ** 20 }).bytes(),
  )
  for (const args of [['--output=json', 'disk.qcow2'], ['missing.qcow2']]) {
    const launched = await attempt(process.execPath, [MAIN, 'info', ...args], { cwd })
    t.strictSame(launched, await vimgfs(cwd, ...args))
    t.equal(launched.code, args.length === 2 ? 0 : 1)
  }
})

t.test('a size below one of its unit has three digits, too', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  writeFileSync(join(folder, 'disk'), Buffer.alloc(1_032_192, 1))
  await compare(t, folder, 'disk', '--format', 'raw')
})
