/** `vimgfs map` prints what `qemu-img map` prints, to the byte. */
import { truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { run as map } from '../../src/cli/map.js'
import { noise } from '../fixtures/model.js'
import { buildQcow } from '../fixtures/qcow-builder.js'
import { buildImage } from '../fixtures/qcow2-builder.js'
import { randomChain, writeChain } from '../fixtures/random-chain.js'
import { runHere } from '../support/command.js'
import { holds } from '../support/property.js'
import { attempt, needs, run, tempFolder } from '../support/run.js'
import { qemuIo, randomWrites } from './qemu.js'

const K = 1024
const M = K * K
const tools = needs('qemu-img', 'qemu-io')
const QEMU_ERROR = /^qemu-img: /

interface Asked {
  readonly image: string
  readonly format?: string
  readonly more?: readonly string[]
}

/** Compares both outputs, in the folder of the image. */
async function agrees(t: Test, cwd: string, asked: Asked, title: string): Promise<void> {
  const problem = await difference(cwd, asked)
  t.equal(problem, undefined, title)
}

async function difference(cwd: string, { image, format, more = [] }: Asked) {
  for (const output of ['json', 'human']) {
    const args = [...(format ? ['-f', format] : []), `--output=${output}`, ...more, image]
    const theirs = await attempt('qemu-img', ['map', ...args], { cwd })
    const ours = await runHere(map, args, cwd)
    const expected = theirs.stdout
    if (ours.stdout !== expected)
      return `${output}:\n${ours.stdout}${ours.stderr}---\n${expected}${theirs.stderr}`
    if (ours.code !== theirs.code)
      return `${output}: exit code ${ours.code}, ${theirs.code}: ${theirs.stderr}`
    if (ours.code !== 0 && !QEMU_ERROR.test(theirs.stderr)) return theirs.stderr
  }
  return undefined
}

interface Kind {
  readonly format: 'qcow2' | 'vmdk' | 'qcow' | 'raw' | 'vpc'
  readonly options?: string
  readonly sizeBytes?: number
  /** The unit for whole writes. */
  readonly unit?: number
}

const KINDS: Record<string, Kind> = {
  qcow2: { format: 'qcow2' },
  'qcow2, version 2': { format: 'qcow2', options: 'compat=0.10' },
  'qcow2, clusters of 512 bytes': { format: 'qcow2', options: 'cluster_size=512', unit: 512 },
  'qcow2, extended L2': { format: 'qcow2', options: 'extended_l2=on,cluster_size=16384' },
  'qcow2, metadata preallocated': { format: 'qcow2', options: 'preallocation=metadata' },
  'qcow2, space preallocated': { format: 'qcow2', options: 'preallocation=falloc' },
  'qcow2, filled': { format: 'qcow2', options: 'preallocation=full' },
  'qcow2, data file': { format: 'qcow2', options: 'data_file=data.raw' },
  'qcow2, raw data file': { format: 'qcow2', options: 'data_file=data.raw,data_file_raw=on' },
  'qcow2, counts of one bit': {
    format: 'qcow2',
    options: 'refcount_bits=1,preallocation=metadata',
  },
  vmdk: { format: 'vmdk' },
  'vmdk, zeroed grains': { format: 'vmdk', options: 'zeroed_grain=on' },
  'vmdk, flat': { format: 'vmdk', options: 'subformat=monolithicFlat' },
  'vmdk, sparse extents': { format: 'vmdk', options: 'subformat=twoGbMaxExtentSparse' },
  'vmdk, flat extents': { format: 'vmdk', options: 'subformat=twoGbMaxExtentFlat' },
  qcow: { format: 'qcow', unit: 4 * K },
  raw: { format: 'raw' },
  vpc: { format: 'vpc', options: 'subformat=dynamic,force_size=on' },
  'vpc, fixed': { format: 'vpc', options: 'subformat=fixed,force_size=on' },
}

async function made(cwd: string, name: string, kind: Kind, backing: string[] = []) {
  const { format, options, sizeBytes = 5 * M + 512, unit = 64 * K } = kind
  const all = options === undefined ? [] : ['-o', options]
  const create = ['create', '-q', '-f', format, ...all, ...backing, name, String(sizeBytes)]
  await run('qemu-img', create, { cwd })
  const kinds = ['write', 'partial', 'zero', 'zero-unmap', 'discard'] as const
  const writes = randomWrites(3, sizeBytes, { cluster: unit, count: 20, kinds })
  await qemuIo(join(cwd, name), writes, ['-f', format])
}

for (const [title, kind] of Object.entries(KINDS)) {
  t.test(title, tools, async t => {
    const cwd = tempFolder(t)
    const { format } = kind
    await made(cwd, 'disk', kind)
    await agrees(t, cwd, { image: 'disk', format }, 'all of it')
    const more = ['--start-offset', '70000', '--max-length=1M']
    // QEMU takes the name of a data file as relative to the current folder, not to that of the image.
    const image = kind.options?.startsWith('data_file') ? 'disk' : join(cwd, 'disk')
    await agrees(t, cwd, { image, format, more }, 'a part, by an absolute name')
    const past = ['--start-offset=20M', '--max-length=1M']
    await agrees(t, cwd, { image: './disk', format, more: past }, 'past its end')
  })
}

t.test('over backing files', tools, async t => {
  for (const [format, options] of [
    ['qcow2', 'cluster_size=4096'],
    ['qcow2', 'extended_l2=on,cluster_size=16384'],
    ['qcow', undefined],
  ] as const) {
    const cwd = tempFolder(t)
    const kind = { format, ...(options && { options }), unit: 4 * K }
    await made(cwd, 'base', { format: 'raw', sizeBytes: 2 * M + 512 })
    await made(cwd, 'middle', { ...kind, sizeBytes: 3 * M }, ['-b', 'base', '-F', 'raw'])
    await made(cwd, 'top', { ...kind, sizeBytes: 4 * M }, ['-b', 'middle', '-F', format])
    await agrees(t, cwd, { image: 'top', format }, `${format} ${options}`)
    const lower = { ...kind, sizeBytes: M }
    await made(cwd, 'short', lower, ['-b', join(cwd, 'middle'), '-F', format])
    await agrees(t, cwd, { image: 'short', format }, `${format} ${options}, shorter`)
  }
})

t.test('a chain of vmdk', tools, async t => {
  const cwd = tempFolder(t)
  await made(cwd, 'base.vmdk', { format: 'vmdk', sizeBytes: 3 * M })
  await made(cwd, 'top.vmdk', { format: 'vmdk', sizeBytes: 3 * M }, [
    '-b',
    'base.vmdk',
    '-F',
    'vmdk',
  ])
  await agrees(t, cwd, { image: 'top.vmdk' }, 'it agrees')
})

t.test('compressed', tools, async t => {
  const cwd = tempFolder(t)
  writeFileSync(join(cwd, 'raw'), Buffer.concat([noise(128 * K, 1), Buffer.alloc(M, 'text')]))
  for (const [format, ...options] of [
    ['qcow2', '-c'],
    ['qcow2', '-c', '-o', 'compression_type=zstd'],
    ['qcow', '-c'],
    ['vmdk', '-o', 'subformat=streamOptimized'],
  ] as [string, ...string[]][]) {
    const image = `${format}${options.length}`
    // QEMU 7.2 says that it failed to make a compressed qcow, and has made it.
    await attempt('qemu-img', ['convert', '-O', format, ...options, 'raw', image], { cwd })
    await agrees(t, cwd, { image }, `${format} ${options.join(' ')}`)
  }
})

t.test('raw files', tools, async t => {
  const cwd = tempFolder(t)
  const image = 'disk.raw'
  const ask = { image, format: 'raw' }
  writeFileSync(join(cwd, image), '')
  await agrees(t, cwd, ask, 'empty')
  for (const [size, end] of [
    [1, 1],
    [1000, 1000],
    [70_000, 200_001],
    [8192, 40_960],
  ] as const) {
    writeFileSync(join(cwd, image), noise(size, 1))
    truncateSync(join(cwd, image), end)
    await agrees(t, cwd, ask, `${size} bytes of ${end}`)
  }
})

t.test('sizes that are no whole sectors, and files that end early', tools, async t => {
  const cwd = tempFolder(t)
  const clusters = new Map([[1, { kind: 'data' as const, bytes: noise(900, 1) }]])
  for (const sizeBytes of [9_000, 8_192, 8_500]) {
    buildImage({ clusterBits: 12, sizeBytes, clusters, isCutShort: true }).write(join(cwd, 'disk'))
    await agrees(t, cwd, { image: 'disk', format: 'qcow2' }, `qcow2 of ${sizeBytes}`)
    writeFileSync(join(cwd, 'base'), noise(5_000, 1))
    const backing = { name: 'base', format: 'raw' }
    buildImage({ clusterBits: 12, sizeBytes, backing }).write(join(cwd, 'disk'))
    await agrees(t, cwd, { image: 'disk', format: 'qcow2' }, `over a base of 5000, ${sizeBytes}`)
  }
  writeFileSync(join(cwd, 'disk'), buildQcow({ sizeBytes: 20_000, clusters }).bytes)
  await agrees(t, cwd, { image: 'disk', format: 'qcow' }, 'qcow')
})

t.test('random chains', tools, async t => {
  const cwd = tempFolder(t)
  await holds(randomChain, 25, async random => {
    // QEMU does not see the last bytes of a qcow2 disk that ends within a sector.
    const chain = random.map(layer => ({ ...layer, sizeBytes: wholeSectors(layer.sizeBytes) }))
    writeChain(chain, cwd)
    const problem = await difference(cwd, {
      image: 'layer0.img',
      format: chain[0]?.format ?? 'raw',
    })
    if (problem !== undefined) throw new Error(problem)
  })
})

const wholeSectors = (bytes: number): number => Math.max(512, bytes - (bytes % 512))
