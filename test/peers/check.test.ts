/** What a check finds, compared with `qemu-img check`, on sound images and on damaged ones. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { CheckResult } from '../../src/formats/check/report.js'
import { checkQcow2 } from '../../src/formats/qcow2/check.js'
import { damaged, damagedBytes } from '../formats/qcow2/damage.js'
import { holds } from '../support/property.js'
import { attempt, needs, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'
import { creating } from './encrypted.js'
import { qemuImg, qemuIo, randomWrites, type WriteKind } from './qemu.js'

const K = 1024

/** The totals as qemu-img has them; undefined where it gives up. */
async function checkedByQemu(image: string): Promise<Record<string, number> | undefined> {
  const { stdout } = await attempt('qemu-img', ['check', '-f', 'qcow2', '--output=json', image])
  if (!stdout.startsWith('{')) return undefined
  const found = JSON.parse(stdout)
  return {
    corruptions: found.corruptions ?? 0,
    leaks: found.leaks ?? 0,
    checkErrors: found['check-errors'],
    totalClusters: found['total-clusters'] ?? 0,
    allocatedClusters: found['allocated-clusters'] ?? 0,
    fragmentedClusters: found['fragmented-clusters'] ?? 0,
    compressedClusters: found['compressed-clusters'] ?? 0,
    imageEndOffset: found['image-end-offset'] ?? 0,
  }
}

const totals = ({ findings, findingsLeftOut, ...rest }: CheckResult) => {
  const { corruptions, leaks, checkErrors, totalClusters, allocatedClusters } = rest
  const { fragmentedClusters, compressedClusters, imageEndOffset } = rest
  return {
    ...{ corruptions, leaks, checkErrors, totalClusters, allocatedClusters },
    ...{ fragmentedClusters, compressedClusters, imageEndOffset },
  }
}

const PACKED: readonly WriteKind[] = ['compressed', 'compressed', 'partial', 'zero']

interface Case {
  title: string
  options: string
  cluster: number
  kinds?: readonly WriteKind[]
  snapshots?: boolean
  bitmap?: boolean
}

const CASES: Case[] = [
  ...[512, 4 * K, 64 * K, 2 * K * K].map(cluster => ({
    title: `clusters of ${cluster} bytes, with snapshots`,
    options: `cluster_size=${cluster}`,
    cluster,
    snapshots: true,
  })),
  ...[1, 2, 4, 8, 32, 64].map(bits => ({
    title: `counts of ${bits} bits`,
    options: `refcount_bits=${bits},cluster_size=4096`,
    cluster: 4 * K,
    snapshots: bits > 1,
  })),
  { title: 'version 2', options: 'compat=0.10', cluster: 64 * K, snapshots: true },
  { title: 'compressed', options: 'cluster_size=4096', cluster: 4 * K, kinds: PACKED },
  { title: 'zstd', options: 'compression_type=zstd', cluster: 64 * K, kinds: PACKED },
  { title: 'subclusters', options: 'extended_l2=on', cluster: 64 * K, snapshots: true },
  { title: 'an external data file', options: 'data_file=disk.data', cluster: 64 * K },
  { title: 'bitmaps', options: 'cluster_size=4096', cluster: 4 * K, bitmap: true },
  { title: 'preallocated', options: 'preallocation=metadata', cluster: 64 * K, kinds: ['partial'] },
  { title: 'lazy counts', options: 'lazy_refcounts=on', cluster: 64 * K },
]

for (const [seed, { title, options, cluster, kinds, ...extra }] of CASES.entries()) {
  t.test(title, needs('qemu-img', 'qemu-io'), async t => {
    const folder = tempFolder(t)
    const image = join(folder, 'disk.qcow2')
    const created = options.replace('disk.data', join(folder, 'disk.data'))
    // No whole number of sectors, so the last of the disk is left out.
    const sizeBytes = Math.min(64 * cluster + 3 * 512 + 100, 24 * K * K)
    await qemuImg('create', '-q', '-f', 'qcow2', '-o', created, image, String(sizeBytes))
    const usable = Math.floor(sizeBytes / 512) * 512
    const write = (more: number) =>
      qemuIo(image, randomWrites(seed + more, usable, { cluster, ...(kinds && { kinds }) }))
    if (extra.bitmap) await qemuImg('bitmap', '--add', '-g', '4096', image, 'changes')
    await write(0)
    if (extra.snapshots) {
      await qemuImg('snapshot', '-c', 'one', image)
      await write(100)
    }
    t.same(
      totals(checkQcow2(new MemoryStore(image, readFileSync(image)))),
      await checkedByQemu(image),
    )
  })
}

t.test('an encryption header', needs('qemu-img'), async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  const secret = ['--object', 'secret,id=s,data=x']
  const options = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10'
  await creating(['create', '-q', ...secret, '-f', 'qcow2', '-o', options, image, '1M'])
  const { corruptions, leaks } = checkQcow2(new MemoryStore(image, readFileSync(image)))
  t.same({ corruptions, leaks }, { corruptions: 0, leaks: 0 })
})

/** The findings that QEMU has not, or counts otherwise: the exceptions in check.ts. */
const EXCEPTIONS =
  /maps \d+ of the data file|version 2 does not know|names no L2 table|bits of subclusters|share no cluster|snapshot table is damaged|cut off by the end|its (\d+ )?snapshots|refcount (table|order)|the L1 table has/

t.test('damaged images', needs('qemu-img'), async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  let compared = 0
  await holds(damaged, 60, async sample => {
    const bytes = damagedBytes(sample)
    const ours = checked(bytes)
    if (!ours || ours.findingsLeftOut > 0) return
    if (ours.findings.some(({ message }) => EXCEPTIONS.test(message))) return
    writeFileSync(image, bytes)
    const theirs = await checkedByQemu(image)
    // It gives up at tables at places above 2^63.
    if (!theirs) return
    compared++
    const [a, b] = [JSON.stringify(totals(ours)), JSON.stringify(theirs)]
    if (a !== b) throw new Error(`ours ${a}, QEMU's ${b}`)
  })
  t.ok(compared > 10, `${compared} images`)
})

/** Undefined where the header is refused. */
function checked(bytes: Buffer): CheckResult | undefined {
  try {
    return checkQcow2(new MemoryStore('', bytes))
  } catch (error) {
    if ((error as Error).name === 'ImageError') return undefined
    throw error
  }
}
