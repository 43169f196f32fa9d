/**
 * `vimgfs usage` against what deleting really gives back: random images with snapshots, from which QEMU and vimgfs delete one or
 * several snapshots. The clusters that count as used before and after say what came back.
 */
import fs from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { RefcountBlocks } from '../../src/formats/qcow2/check/refcount-blocks.js'
import { Qcow2Structure } from '../../src/formats/qcow2/check/structure.js'
import type { ImageUsage } from '../../src/image/usage.js'
import { usageAt } from '../../src/image/usage-run.js'
import { storeOf } from '../../src/image/layer.js'
import { SnapshotImage } from '../../src/image/snapshots/snapshots.js'
import { Random } from '../soundness/steps.js'
import { needs, tempFolder } from '../support/run.js'
import { qemuImg, qemuIo } from './qemu.js'

const IMAGES = process.env.VIMGFS_TEST_LONG === '1' ? 40 : 1
const SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)

const KINDS: Record<string, { options: string; sizeK: number; clusterK: number; most: number }> = {
  'clusters of 512 bytes': { options: 'cluster_size=512', sizeK: 256, clusterK: 0.5, most: 6 },
  'clusters of 64 KiB': { options: 'cluster_size=64k', sizeK: 4096, clusterK: 64, most: 6 },
  'version 2': { options: 'compat=0.10,cluster_size=4k', sizeK: 2048, clusterK: 4, most: 5 },
  'extended entries': {
    options: 'extended_l2=on,cluster_size=16k',
    sizeK: 1024,
    clusterK: 16,
    most: 5,
  },
  'counts of 1 bit': {
    options: 'refcount_bits=1,cluster_size=4k',
    sizeK: 512,
    clusterK: 4,
    most: 0,
  },
  'counts of 2 bits': {
    options: 'refcount_bits=2,cluster_size=4k',
    sizeK: 512,
    clusterK: 4,
    most: 2,
  },
  'counts of 8 bits': {
    options: 'refcount_bits=8,cluster_size=1k',
    sizeK: 512,
    clusterK: 1,
    most: 5,
  },
  'counts of 64 bits': {
    options: 'refcount_bits=64,cluster_size=2k',
    sizeK: 512,
    clusterK: 2,
    most: 5,
  },
}

for (const [title, kind] of Object.entries(KINDS)) {
  t.test(title, needs('qemu-img', 'qemu-io'), async t => {
    const folder = tempFolder(t)
    for (let i = 0; i < IMAGES; i++) {
      const random = new Random(SEED * 1000 + i)
      const image = join(folder, `${i}.qcow2`)
      await qemuImg('create', '-q', '-f', 'qcow2', '-o', kind.options, image, `${kind.sizeK}k`)
      const tags = await fill(image, kind, random)
      await compare(t, image, tags, random)
    }
  })
}

/** Writes at random places, compressed too, and takes snapshots. Returns their tags. */
async function fill(
  image: string,
  { sizeK, clusterK, most }: (typeof KINDS)[string],
  random: Random,
): Promise<string[]> {
  const tags: string[] = []
  for (let round = 0; round <= most; round++) {
    const commands: string[] = []
    for (let i = 0; i < 6; i++) {
      const at = random.below(sizeK - 8)
      const cluster = random.below(Math.floor(sizeK / clusterK)) * clusterK
      const roll = random.below(10)
      if (roll < 5)
        commands.push(`write -P ${1 + random.below(200)} ${at}k ${1 + random.below(8)}k`)
      else if (roll < 7)
        commands.push(`write -c -P ${1 + random.below(200)} ${cluster * 1024} ${clusterK * 1024}`)
      else
        commands.push(`write -z${random.chance(0.5) ? ' -u' : ''} ${at}k ${1 + random.below(8)}k`)
    }
    // A compressed cluster cannot be written where one is: that fails, and changes nothing.
    await qemuIo(image, commands).catch(() => {})
    if (round === most) break
    await qemuImg('snapshot', '-c', `tag ${round}`, image)
    tags.push(`tag ${round}`)
  }
  return tags
}

async function compare(t: Tap, image: string, tags: readonly string[], random: Random) {
  const whole = await usage(image, [])
  t.same(whole.problems, [], 'nothing is wrong')
  t.same(
    whole.snapshots.map(({ name }) => name),
    tags,
  )
  const used = usedClusters(image)
  const [top] = whole.layers
  const { unitBytes = 0, space } = top ?? {}
  const sum = (space?.dataBytes ?? 0) + (space?.compressedBytes ?? 0) + (space?.zeroBytes ?? 0)
  t.equal((sum + (space?.metadataBytes ?? 0)) / unitBytes, used.all, 'all used clusters are told')
  t.equal(space?.leakedBytes, 0)
  for (const [index, tag] of tags.entries()) {
    const expected = whole.snapshots[index]?.exclusiveBytes ?? -1
    await isFreed(t, image, [tag], expected, unitBytes)
  }
  if (tags.length < 2) return
  const set = tags.filter(() => random.chance(0.6))
  const { chosen } = await usage(image, set)
  if (set.length > 0) await isFreed(t, image, set, chosen?.exclusiveBytes ?? -1, unitBytes)
  const all = await usage(image, tags)
  const expected = all.chosen?.exclusiveBytes ?? -1
  const left = await isFreed(t, image, tags, expected, unitBytes)
  const alone = await usage(left, [])
  t.equal(
    alone.disk?.exclusiveBytes,
    alone.disk?.referencedBytes,
    'without snapshots all is the disk’s',
  )
}

type Tap = Pick<typeof t, 'same' | 'equal'>

/** Deletes snapshots from copies by both programs. Returns the copy from which QEMU did. */
async function isFreed(
  t: Tap,
  image: string,
  tags: readonly string[],
  expected: number,
  unitBytes: number,
): Promise<string> {
  const before = usedClusters(image).counted
  const [theirs, ours] = [`${image}.qemu`, `${image}.own`]
  for (const copy of [theirs, ours]) fs.copyFileSync(image, copy)
  for (const tag of tags) await qemuImg('snapshot', '-d', tag, theirs)
  const freed = (copy: string) => (before - usedClusters(copy).counted) * unitBytes
  t.equal(freed(theirs), expected, `QEMU frees it: ${tags}`)
  const opened = await SnapshotImage.open(ours)
  await opened.delete(tags.map(tag => opened.indexOf({ tag }))).finally(() => opened.close())
  t.equal(freed(ours), expected, `vimgfs frees it: ${tags}`)
  return theirs
}

const usage = (image: string, tags: readonly string[]): Promise<ImageUsage> =>
  usageAt(image, {}, { names: tags.map(tag => ({ tag })), mapCells: 0 }, () => {})

/** Counts the clusters whose count is not 0: all, and those without the structures of the counts themselves. */
function usedClusters(image: string): { readonly all: number; readonly counted: number } {
  const fd = fs.openSync(image, 'r')
  try {
    const { size } = fs.fstatSync(fd)
    const structure = new Qcow2Structure(storeOf({ path: image, fd, sizeBytes: size }))
    const blocks = new RefcountBlocks(structure)
    let all = 0
    for (let cluster = 0; cluster <= structure.clusters; cluster++) {
      if (blocks.get(cluster) > 0) all++
    }
    let own = structure.header.refcountTableClusters
    for (let i = blocks.next(0); i < blocks.entries; i = blocks.next(i + 1)) own++
    return { all, counted: all - own }
  } finally {
    fs.closeSync(fd)
  }
}
