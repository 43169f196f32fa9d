/** Conversions, and what qemu-img reads in their sources and targets. */
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { run as convert } from '../../src/cli/convert.js'
import { runHere } from '../support/command.js'
import { attempt, needs, run, tempFolder } from '../support/run.js'
import { rawDisk, SIZE, SOURCES } from './convert-kinds.js'
import { qemuImg, qemuIo, randomWrites } from './qemu.js'

const K = 1024
const tools = needs('qemu-img', 'qemu-io')

/** Converts, which must succeed without a word. */
async function converted(t: Test, ...args: string[]): Promise<void> {
  const done = await runHere(convert, args, '/')
  t.strictSame(done, { code: 0, stdout: '', stderr: '' }, args.join(' '))
}

const compare = (a: string, format: string, b: string, other: string) =>
  attempt('qemu-img', ['compare', '-f', format, '-F', other, a, b])

for (const { title, make } of SOURCES) {
  t.test(`from ${title}`, tools, async t => {
    const folder = tempFolder(t)
    const { name, options = [], qemu } = await make(folder)
    const theirs = join(folder, 'theirs.raw')
    await run('qemu-img', ['convert', ...qemu, '-O', 'raw', theirs], { cwd: folder })
    const before = readdirSync(folder)
    const ours = join(folder, 'ours.raw')
    await converted(t, ...options, name, ours)
    t.ok(readFileSync(ours).equals(readFileSync(theirs)), 'raw: the same bytes')
    t.ok(statSync(ours).blocks <= statSync(theirs).blocks, 'and no more space')
    const packed = join(folder, 'ours.qcow2')
    await converted(t, ...options, '-O', 'qcow2', '-c', '--verify', name, packed)
    t.match(await compare(packed, 'qcow2', theirs, 'raw'), { code: 0 })
    t.match(await attempt('qemu-img', ['check', '-f', 'qcow2', packed]), { code: 0 })
    const made = ['ours.raw', 'ours.qcow2']
    t.strictSame(readdirSync(folder), [...before, ...made].sort(), 'nothing else is left')
  })
}

interface TargetKind {
  readonly format: string
  readonly args?: readonly string[]
  /** Whether our file may not be larger than QEMU's. */
  readonly isSmall?: boolean
  /** Whether QEMU fails to make it of this disk. */
  readonly isOursAlone?: boolean
}

const TARGETS: TargetKind[] = [
  { format: 'raw' },
  { format: 'raw', args: ['-S', '0'] },
  { format: 'raw', args: ['-S', '64k'] },
  { format: 'qcow2', isSmall: true },
  { format: 'qcow2', args: ['-o', 'cluster_size=512'] },
  { format: 'qcow2', args: ['-o', 'cluster_size=4k'] },
  { format: 'qcow2', args: ['-o', 'cluster_size=2M'] },
  { format: 'qcow2', args: ['-o', 'compat=0.10'] },
  { format: 'qcow2', args: ['-o', 'extended_l2=on,cluster_size=32k'] },
  { format: 'qcow2', args: ['-o', 'preallocation=metadata'] },
  { format: 'qcow2', args: ['-o', 'refcount_bits=1'] },
  { format: 'qcow2', args: ['-S', '0'] },
  { format: 'qcow2', args: ['-c'], isSmall: true },
  { format: 'qcow2', args: ['-c', '-o', 'cluster_size=4k'] },
  { format: 'qcow2', args: ['-c', '-o', 'cluster_size=2M'], isSmall: true },
  { format: 'qcow2', args: ['-c', '-o', 'compat=0.10'], isSmall: true },
  { format: 'qcow2', args: ['-c', '-o', 'compression_type=zstd'], isSmall: true },
  { format: 'qcow2', args: ['-c', '-o', 'refcount_bits=1'] },
  { format: 'vmdk', isSmall: true },
  { format: 'vmdk', args: ['-o', 'subformat=monolithicFlat'] },
  { format: 'vmdk', args: ['-o', 'subformat=twoGbMaxExtentSparse'] },
  { format: 'vmdk', args: ['-o', 'subformat=twoGbMaxExtentFlat'] },
  { format: 'vmdk', args: ['-o', 'subformat=streamOptimized'], isSmall: true },
  { format: 'qcow' },
  { format: 'qcow', args: ['-c'], isOursAlone: true },
]

for (const { format, args = [], isSmall, isOursAlone } of TARGETS) {
  t.test(`to ${format} ${args.join(' ')}`, tools, async t => {
    const folder = tempFolder(t)
    // QEMU compresses whole clusters of qcow only.
    const raw = rawDisk(folder, format === 'qcow' ? SIZE : SIZE + 512)
    const ours = join(folder, `ours.${format}`)
    await converted(t, '-f', 'raw', '-O', format, ...args, raw, ours)
    t.match(await compare(ours, format, raw, 'raw'), { code: 0 })
    if (format !== 'raw' && format !== 'qcow') {
      t.match(await attempt('qemu-img', ['check', '-f', format, ours]), { code: 0 })
    }
    if (isOursAlone) return
    const theirs = join(folder, `theirs.${format}`)
    await qemuImg('convert', '-f', 'raw', '-O', format, ...args, raw, theirs)
    const info = async (file: string) => {
      const text = await qemuImg('info', '--output=json', '-f', format, file)
      // Names, content IDs and the space that is taken are each image's own.
      const own = ['filename', 'cid', 'actual-size', 'dirty-flag']
      return JSON.parse(text, (key, value) => (own.includes(key) ? undefined : value))
    }
    t.strictSame(await info(ours), await info(theirs), 'qemu-img info')
    if (isSmall) t.ok(statSync(ours).size <= statSync(theirs).size, 'not larger')
    if (args.join() === '-S,0') {
      t.ok(statSync(ours).blocks * 512 >= SIZE, 'all is allocated')
    }
  })
}

t.test('encrypted', tools, async t => {
  const folder = tempFolder(t)
  const raw = rawDisk(folder)
  const secret = join(folder, 'secret')
  writeFileSync(secret, 'to')
  const image = join(folder, 'luks.qcow2')
  const target = ['--target-passphrase-file', secret]
  const luks = 'encrypt.format=luks,encrypt.iter-time=10'
  await converted(t, '-O', 'qcow2', '-o', luks, ...target, '--verify', raw, image)
  const opened = `driver=qcow2,encrypt.key-secret=s,file.filename=${image}`
  const object = ['--object', 'secret,id=s,data=to']
  const theirs = join(folder, 'theirs.raw')
  await qemuImg('convert', ...object, '--image-opts', opened, '-O', 'raw', theirs)
  t.ok(readFileSync(theirs).equals(readFileSync(raw)))
  const again = join(folder, 'again.qcow2')
  const source = ['--passphrase-file', secret]
  await converted(t, ...source, '-O', 'qcow2', '-o', luks, ...target, image, again)
  await converted(t, ...source, again, join(folder, 'again.raw'))
  t.ok(readFileSync(join(folder, 'again.raw')).equals(readFileSync(raw)), 'and from it to another')
})

t.test('onto a base', tools, async t => {
  const folder = tempFolder(t)
  const raw = rawDisk(folder)
  const base = join(folder, 'base.qcow2')
  await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', raw, base)
  const top = join(folder, 'top.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', top], {
    cwd: folder,
  })
  await qemuIo(top, [...randomWrites(4, SIZE, { cluster: 64 * K, count: 6 }), 'write -z 0 128k'])
  const flat = join(folder, 'flat.raw')
  await converted(t, top, flat)
  for (const source of [top, flat]) {
    for (const compat of ['1.1', '0.10']) {
      const ours = join(folder, 'ours.qcow2')
      const options = ['-O', 'qcow2', '-o', `compat=${compat}`, '-B', 'base.qcow2', '-F', 'qcow2']
      await converted(t, '--force', '--verify', ...options, source, ours)
      t.match(await compare(ours, 'qcow2', flat, 'raw'), { code: 0 })
      t.match(await attempt('qemu-img', ['check', '-f', 'qcow2', ours]), { code: 0 })
      const info = JSON.parse(await qemuImg('info', '--output=json', ours))
      t.match(info, { 'backing-filename': 'base.qcow2', 'backing-filename-format': 'qcow2' })
      t.ok(statSync(ours).size < statSync(base).size, 'only what differs is stored')
    }
  }
})

t.test('into an image that is there', tools, async t => {
  const folder = tempFolder(t)
  const raw = rawDisk(folder)
  for (const format of ['raw', 'qcow2', 'vmdk']) {
    const image = join(folder, `there.${format}`)
    await qemuImg('create', '-q', '-f', format, image, String(SIZE + 64 * K))
    await qemuIo(image, ['write -P 7 0 6M', 'write -P 8 6M 64k'], ['-f', format])
    await converted(t, '-n', '-O', format, '--verify', raw, image)
    const theirs = join(folder, `${format}.theirs`)
    await qemuImg('convert', '-f', format, '-O', 'raw', image, theirs)
    const bytes = readFileSync(theirs)
    t.ok(bytes.subarray(0, SIZE + 512).equals(readFileSync(raw)), format)
    t.ok(
      bytes.subarray(SIZE + 512).every(byte => byte === 8),
      'what comes after stays',
    )
  }
  const small = join(folder, 'small.raw')
  writeFileSync(small, Buffer.alloc(K))
  const refused = await runHere(convert, ['-n', '-O', 'raw', raw, small], '/')
  t.match(refused, {
    code: 1,
    stderr: /its disk has 1024 bytes, and the source's has \d+; make it larger/,
  })
})

t.test('sizes', tools, async t => {
  const folder = tempFolder(t)
  for (const size of [0, 512, 1000, 65_535, 65_536, 65_537, 2 ** 21 - 1]) {
    const raw = join(folder, `${size}.raw`)
    writeFileSync(raw, Buffer.alloc(size, 3))
    for (const [format, args] of [
      ['raw', []],
      ['qcow2', []],
      ['qcow2', ['-c']],
    ] as const) {
      const ours = join(folder, `${size}.${args.length}.${format}.out`)
      await converted(t, '-f', 'raw', '-O', format, ...args, raw, ours)
      const theirs = join(folder, 'theirs')
      await qemuImg('convert', '-f', format, '-O', 'raw', ours, theirs)
      const bytes = readFileSync(theirs)
      t.equal(bytes.length, Math.ceil(size / 512) * 512, `${size} bytes as ${format}`)
      t.ok(bytes.subarray(0, size).every(byte => byte === 3))
      t.ok(bytes.subarray(size).every(byte => byte === 0))
    }
  }
})
