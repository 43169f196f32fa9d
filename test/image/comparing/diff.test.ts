/** What has changed between two states of a disk. */
import { statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { run as diff } from '../../../src/cli/diff.js'
import { changesOf, type Range } from '../../../src/image/comparing/diff.js'
import { openSource, SourceImage } from '../../../src/image/reading/source.js'
import { noise, prose } from '../../fixtures/model.js'
import { deflated } from '../../fixtures/packers.js'
import { buildImage, type Cluster } from '../../fixtures/qcow2-builder.js'
import { randomChain, writeChain } from '../../fixtures/random-chain.js'
import { makeEncrypted } from '../../peers/encrypted.js'
import { qemuImg, qemuIo } from '../../peers/qemu.js'
import { runHere } from '../../support/command.js'
import { holds } from '../../support/property.js'
import { needs, run, tempFolder } from '../../support/run.js'

const K = 1024
const M = K * K
const tools = needs('qemu-img', 'qemu-io')

function inRanges(ranges: readonly Range[], at: number): boolean {
  return ranges.some(({ start, length }) => start <= at && at < start + length)
}

t.test(
  'random chains: all changed bytes are in the ranges; --exact gives their sectors',
  async t => {
    const folder = tempFolder(t)
    await holds(randomChain, 60, async chain => {
      const { image, all } = writeChain(chain, folder)
      const opened = await SourceImage.open(image, { format: chain[0]?.format ?? 'raw' })
      try {
        const [top] = all
        for (const [i, snapshot] of (top?.snapshots ?? []).entries()) {
          const [before, after] = [opened.disk(`snapshot ${i + 1}`), opened.disk()]
          const [a, b] = [snapshot.disk, top?.disk as Buffer]
          const rough = [...changesOf(before, after)]
          const exact = [...changesOf(before, after, { isExact: true })]
          for (let at = 0; at < Math.max(a.length, b.length); at++) {
            const differs = a[at] !== b[at]
            if (differs && !inRanges(rough, at)) throw new Error(`${at} is missing`)
            if (differs && !inRanges(exact, at))
              throw new Error(`${at} is missing from the exact ones`)
          }
          for (const { start, length } of exact) {
            for (let at = start; at < start + length; at += 512) {
              const end = Math.min(at + 512, start + length)
              if (a.subarray(at, end).equals(b.subarray(at, end))) {
                throw new Error(`${at} is as it was`)
              }
            }
          }
        }
      } finally {
        opened.close()
      }
    })
  },
)

const clusters = new Map<number, Cluster>([
  [0, { kind: 'data', bytes: noise(4 * K, 1) }],
  [1, deflated(prose(4 * K, 2))],
  [3, { kind: 'zero' }],
])

t.test('the tables decide, without a read of data', tools, async t => {
  const cwd = tempFolder(t)
  const image = join(cwd, 'disk.qcow2')
  await qemuImg('create', '-q', '-f', 'qcow2', image, '64M')
  await qemuIo(image, ['write -P 1 0 1M', 'write -P 2 10M 200k', 'write -c -P 5 30M 64k'])
  await qemuImg('snapshot', '-c', 'one', image)
  await qemuIo(image, ['write -P 1 64k 64k', 'write -P 3 20M 64k', 'write -z 10M 64k'])
  await qemuImg('snapshot', '-c', 'two', image)
  await qemuImg('resize', '-q', image, '65M')
  await qemuIo(image, ['write -P 9 0 1'])
  const here = async (...args: string[]) => runHere(diff, args, cwd)
  const json = async (...args: string[]) =>
    JSON.parse((await here('--output=json', ...args)).stdout)
  const changed = [
    { start: 64 * K, length: 64 * K },
    { start: 10 * M, length: 64 * K },
    { start: 20 * M, length: 64 * K },
  ]
  t.same(await json('disk.qcow2', 'one', 'two'), changed)
  t.same(await json('disk.qcow2@one', 'disk.qcow2@two'), changed)
  t.same(await json('--exact', 'disk.qcow2', 'one', 'two'), [
    { start: 10 * M, length: 64 * K },
    { start: 20 * M, length: 64 * K },
  ])
  const grown = [
    { start: 0, length: 64 * K },
    { start: 64 * M, length: M },
  ]
  t.same(await json('disk.qcow2', 'two'), grown, 'growth counts')
  t.same(await json('disk.qcow2@two', 'disk.qcow2'), grown)
  t.same(await json('disk.qcow2', 'disk.qcow2'), [])
  t.same((await here('disk.qcow2', 'disk.qcow2')).stdout, 'nothing changed\n')
  t.same(
    (await here('disk.qcow2', 'two')).stdout,
    `Offset          Length
0x0             0x10000
0x4000000       0x100000
1.06 MiB (1114112 bytes) changed, in 2 ranges
`,
  )
  t.match(
    (await here('--output', 'ddrescue', 'disk.qcow2', 'two')).stdout,
    /^# Mapfile\. Created by vimgfs .*\n# current_pos {2}current_status {2}current_pass\n0x00000000 {5}\? {15}1\n# {6}pos {8}size {2}status\n0x00000000 {2}0x00010000 {2}\+\n0x00010000 {2}0x03FF0000 {2}\?\n0x04000000 {2}0x00100000 {2}\+\n$/,
  )
  t.match(await here('disk.qcow2', 'none'), { code: 1, stderr: /no snapshot "none"/ })
  t.match(await here('disk.qcow2@one', 'two'), { code: 1, stderr: /two/ })
  t.match(await here('disk.qcow2@one', 'one', 'two'), {
    code: 2,
    stderr: /names a snapshot already/,
  })
  t.match(await here('disk.qcow2'), { code: 2, stderr: /TAG is missing/ })
  writeFileSync(join(cwd, 'two'), noise(70 * M, 1))
  t.same(await json('disk.qcow2', 'two'), grown, 'a tag comes before a file')
  t.not((await json('disk.qcow2', './two')).length, grown.length)
})

t.test('overlays of one backing file', tools, async t => {
  const cwd = tempFolder(t)
  buildImage({ clusterBits: 12, sizeBytes: 64 * K, clusters }).write(join(cwd, 'base'))
  for (const name of ['a', 'b']) {
    const args = ['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4096', '-b', 'base', '-F']
    await run('qemu-img', [...args, 'qcow2', name], { cwd })
  }
  await qemuIo(join(cwd, 'b'), ['write -P 7 20k 4k'])
  const { stdout } = await runHere(diff, ['--output=json', 'a', 'b'], cwd)
  t.same(JSON.parse(stdout), [{ start: 20 * K, length: 4 * K }])
})

t.test('the same place in a file does not mean the same bytes in another format', async t => {
  const cwd = tempFolder(t)
  const image = join(cwd, 'disk')
  // The compressed cluster of the one is plain data of the other.
  buildImage({ clusterBits: 12, sizeBytes: 64 * K, clusters }).write(image)
  const [a, b] = await Promise.all([
    openSource(image, { format: 'qcow2' }),
    openSource(image, { format: 'raw' }),
  ])
  t.teardown(() => a.close())
  t.teardown(() => b.close())
  const [first] = [...changesOf(a, b)]
  t.same(first?.start, 0)
})

t.test('the same place in two files is not the same', async t => {
  const cwd = tempFolder(t)
  for (const [i, name] of ['a', 'b'].entries()) writeFileSync(join(cwd, name), noise(64 * K, i))
  const args = ['-f', 'raw', '-F', 'raw', '--output=json', 'a', './b']
  const { stdout } = await runHere(diff, args, cwd)
  t.same(JSON.parse(stdout), [{ start: 0, length: 64 * K }])
})

t.test('encrypted data and the same bytes of the file as they are', tools, async t => {
  const cwd = tempFolder(t)
  const file = join(cwd, 'disk')
  const image = { file, format: 'qcow2', passphrase: 'secret' } as const
  await makeEncrypted(image, 16 * M, { format: 'luks' })
  // The next cluster of the file becomes an L2 table, and the one after it is at its own place on the disk.
  const at = Math.ceil(statSync(file).size / (64 * K) + 1) * 64 * K
  const opened = `driver=qcow2,file.filename=${file},encrypt.key-secret=s`
  const secret = ['--object', 'secret,id=s,data=secret', '--image-opts']
  await run('qemu-io', [...secret, '-c', `write -P 1 ${at} 64k`, opened])
  const [a, b] = [
    await openSource(file, { format: 'qcow2' }),
    await openSource(file, { format: 'raw' }),
  ]
  t.teardown(() => a.close())
  t.teardown(() => b.close())
  const part = [...a.parts()].find(({ kind }) => kind === 'data')
  t.same([part?.offset, part?.origin?.at], [at, at])
  t.ok(inRanges([...changesOf(a, b)], at))
})
