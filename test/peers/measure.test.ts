/** `vimgfs measure` says the same numbers as `qemu-img measure`. */
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import t from 'tap'
import { run as convert } from '../../src/cli/convert.js'
import { run as measure } from '../../src/cli/measure.js'
import { noise } from '../fixtures/model.js'
import { runHere } from '../support/command.js'
import { needs, run, tempFolder } from '../support/run.js'
import { qemuImg, qemuIo } from './qemu.js'

const M = 2 ** 20
const OPTIONS = [
  'compat=1.1',
  'cluster_size=512',
  'cluster_size=2M,compat=0.10',
  'extended_l2=on',
  'refcount_bits=1,cluster_size=4k',
  'refcount_bits=64',
  'preallocation=metadata',
  'preallocation=full,cluster_size=1k',
]

t.test('sizes of disks that are empty', { ...needs('qemu-img') }, async t => {
  for (const options of OPTIONS) {
    for (const size of ['0', '1000001', '1G', '5T']) {
      // Clusters of 512 bytes are too small for it.
      if (size === '5T' && /512|1k/.test(options)) continue
      const args = ['-O', 'qcow2', '-o', options, '--size', size, '--output=json']
      const ours = await runHere(measure, args, '/')
      const theirs = JSON.parse(await run('qemu-img', ['measure', ...args]))
      t.strictSame([ours.code, JSON.parse(ours.stdout)], [0, theirs], `${options} ${size}`)
    }
  }
})

t.test('images', { ...needs('qemu-img', 'qemu-io') }, async t => {
  const folder = tempFolder(t)
  const raw = join(folder, 'disk.raw')
  const content = Buffer.alloc(9 * M + 512)
  noise(3 * M, 1).copy(content, M + 5000)
  writeFileSync(raw, content)
  await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', raw, join(folder, 'disk.qcow2'))
  await qemuImg('convert', '-f', 'raw', '-O', 'vmdk', raw, join(folder, 'disk.vmdk'))
  await qemuImg('create', '-q', '-f', 'qcow2', '-b', raw, '-F', 'raw', join(folder, 'top.qcow2'))
  await qemuIo(join(folder, 'top.qcow2'), ['write -P 7 7M 100k', 'write -z 2M 1M'])
  await qemuImg('bitmap', '--add', join(folder, 'top.qcow2'), 'one')
  await qemuImg('bitmap', '--add', '-g', '512', join(folder, 'top.qcow2'), 'a longer name')
  for (const [name, format] of [
    ['disk.raw', 'raw'],
    ['disk.qcow2', 'qcow2'],
    ['disk.vmdk', 'vmdk'],
    ['top.qcow2', 'qcow2'],
  ] as const) {
    for (const options of OPTIONS) {
      const args = [
        '-f',
        format,
        '-O',
        'qcow2',
        ...(options ? ['-o', options] : []),
        '--output=json',
      ]
      const ours = await runHere(measure, [...args, name], folder)
      const text = await run('qemu-img', ['measure', ...args, name], { cwd: folder })
      const theirs = JSON.parse(text)
      const { required, ...others } = JSON.parse(ours.stdout)
      t.strictSame({ ...others, required: 0 }, { ...theirs, required: 0 }, `${name} ${options}`)
      // QEMU does not look for holes of the file within clusters.
      const most = format === 'qcow2' ? 65536 : 0
      t.ok(required <= theirs.required && required >= theirs.required - most, `${required}`)
    }
  }
  const onBase = ['-O', 'qcow2', '-o', 'backing_file=x', '--output=json', 'disk.vmdk']
  const { required } = JSON.parse((await runHere(measure, onBase, folder)).stdout)
  t.equal(
    required,
    JSON.parse(await run('qemu-img', ['measure', ...onBase], { cwd: folder })).required,
  )
  const args = ['-f', 'raw', 'disk.raw']
  const text = await run('qemu-img', ['measure', ...args], { cwd: folder })
  t.equal((await runHere(measure, args, folder)).stdout, text, 'to raw, for people')
  const human = (await runHere(measure, ['-O', 'qcow2', 'top.qcow2'], folder)).stdout
  t.match(human, /\nbitmaps size: 327680\n$/)
})

t.test('no file that convert makes is larger', async t => {
  const folder = tempFolder(t)
  const disk = join(folder, 'disk.raw')
  writeFileSync(disk, '')
  truncateSync(disk, 70 * M + 512)
  const fd = openSync(disk, 'r+')
  for (const [i, offset] of [0, 5000, 3 * M + 17, 40 * M - 1, 70 * M].entries()) {
    writeSync(fd, noise(i === 1 ? 2 * M : 512, i + 1), 0, null, offset)
  }
  closeSync(fd)
  const kinds = [
    ['qcow2', '-o', 'cluster_size=4k,refcount_bits=64'],
    ['qcow2', '-o', 'extended_l2=on'],
    ['vmdk'],
    ['qcow'],
    ['cow'],
    ...['monolithicFlat', 'twoGbMaxExtentSparse', 'twoGbMaxExtentFlat', 'streamOptimized'].map(
      kind => ['vmdk', '-o', `subformat=${kind}`],
    ),
  ]
  for (const [i, args] of kinds.entries()) {
    const target = join(folder, `${i}`, `disk.${args[0]}`)
    mkdirSync(dirname(target))
    const source = ['-f', 'raw', '-O', ...args]
    const measured = await runHere(measure, [...source, '--output=json', disk], '/')
    const { required, 'fully-allocated': all } = JSON.parse(measured.stdout)
    t.match(await runHere(convert, [...source, '-q', disk, target], '/'), { code: 0 })
    const files = readdirSync(dirname(target)).map(name => statSync(join(dirname(target), name)))
    const bytes = files.reduce((sum, { size }) => sum + size, 0)
    t.ok(bytes <= required && required <= all, `${args}: ${bytes}, ${required}, ${all}`)
    // The last sector of the disk has data.
    const isFlat = args[0] === 'cow' || /Flat/.test(`${args}`)
    t.equal(required === all, isFlat, `${args}: what has no data does not count`)
    // A unit that has data counts whole.
    if (!/stream/.test(`${args}`)) t.ok(required - bytes < M, `${args}: it is close`)
  }
})

t.test('wrong usage', async t => {
  const cases: [string[], RegExp][] = [
    [[], /give either IMAGE or --size/],
    [['--size', '1M', 'disk'], /give either IMAGE or --size/],
    [['-O', 'luks', '--size', '1M'], /no images of the format "luks" can be made/],
    [['-O', 'vpc', '--size', '1M'], /no images of the format "vpc"/],
    [['-O', 'qcow2', '-o', 'cluster_size=3', '--size', '1M'], /cluster_size is a power of two/],
    [['-O', 'qcow2', '-o', 'nonsense=3', '--size', '1M'], /has no option "nonsense"/],
  ]
  for (const [args, says] of cases) {
    const { code, stdout, stderr } = await runHere(measure, args, '/')
    t.strictSame([code, stdout], [2, ''], args.join(' '))
    t.match(stderr, says)
  }
})
