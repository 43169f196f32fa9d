/**
 * Images whose counts are wrong: what lives is counted as free. A writer that believes them destroys
 * what it was to keep (cloud-hypervisor#8606). Ours takes other clusters, or refuses to write; the image
 * is never worse afterwards than before.
 */
import t from 'tap'
import { ImageError } from '../../src/errors.js'
import { needs, tempFolder } from '../support/run.js'
import type { MemoryStore } from '../support/stores.js'
import { openWritable, readDisk, readImage } from '../support/writable.js'
import { DiskModel } from './disk-model.js'
import { judge } from './judge.js'
import { type Kind, makeKind, type Recipe, RECIPES } from './kinds.js'
import { structuresOf, uncounted } from './lies.js'
import { qemuChecks } from './qemu-check.js'
import { act, checkFiles, checkReads, checkSnapshots, isPossible } from './scenario.js'
import { randomSteps, type Step } from './steps.js'

const tools = needs('qemu-img', 'qemu-io')
const IS_LONG = process.env.VIMGFS_TEST_LONG === '1'
const K = 1024

const named = (title: string): Recipe => {
  const found = RECIPES.find(recipe => recipe.title === title)
  if (!found) throw new Error(`no kind ${title}`)
  return found
}

const KINDS = [
  'v3, 64 KiB',
  'snapshots',
  'a parent, snapshots, 512',
  'compressed, 512',
  'bitmaps',
  'bitmaps and snapshots, 512',
  'zero clusters',
]

/** Fills the disk, a cluster or two at a time, so that every free cluster is handed out. */
function fillAll({ sizeBytes, cluster }: Kind): Step[] {
  const steps: Step[] = []
  for (let offset = 0; offset < sizeBytes; ) {
    const length = Math.min(cluster * (1 + ((offset / cluster) % 2)), sizeBytes - offset)
    steps.push({ kind: 'write', offset, length, seed: offset })
    if ((offset / cluster) % 7 === 0) steps.push({ kind: 'flush' })
    offset += length
  }
  return steps
}

/** What became of writing: it went on, or was refused from some step on. */
function writeAll(kind: Kind, store: MemoryStore, steps: readonly Step[]): 'written' | 'refused' {
  const model = new DiskModel(kind.disk)
  const opened = openWritable({ store, parent: kind.parent })
  let isRefused = false
  const attempt = (what: () => void): boolean => {
    try {
      what()
      return true
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      isRefused = true
      return false
    }
  }
  for (const step of steps) {
    if (step.kind === 'reopen' || !isPossible(step, model.sizeBytes)) continue
    if (step.kind === 'flush') {
      if (attempt(() => opened.disk.flush())) model.flushed()
      continue
    }
    model.begin(step)
    if (!attempt(() => act(opened, step))) model.failed(step, readDisk(opened), step.kind)
    checkReads(opened, model, step)
  }
  checkReads(opened, model)
  if (attempt(() => opened.disk.close())) model.flushed()
  const { disk, snapshots } = readImage({ store, parent: kind.parent })
  model.check(disk, 'mixed')
  checkSnapshots(kind, snapshots)
  return isRefused ? 'refused' : 'written'
}

for (const title of KINDS) {
  t.test(`a structure that is not counted: ${title}`, tools, async t => {
    const kind = await makeKind(named(title), tempFolder(t))
    const scenarios = [fillAll(kind), randomSteps(1, 60, kind), randomSteps(2, 60, kind)]
    for (const { name, at } of structuresOf(kind.image.bytes())) {
      const lie = uncounted(kind.image, at)
      const before = judge(lie).corruptions.length
      t.ok(before > 0, `${name}: the count is a lie`)
      const outcomes = scenarios.map(steps => {
        const store = lie.clone()
        const outcome = writeAll(kind, store, steps)
        const { corruptions } = judge(store)
        if (corruptions.length > before) t.fail(`${name} at ${at}: ${corruptions.join('; ')}`)
        const doubled = corruptions.filter(what => what.includes(' is both '))
        if (doubled.length > 0) t.fail(`${name} at ${at}: ${doubled.join('; ')}`)
        return outcome
      })
      t.ok(outcomes.length > 0, `${name}: ${outcomes.join(', ')}`)
    }
  })
}

/**
 * What destroyed disks in cloud-hypervisor#8606: compressed clusters by `qemu-img convert -c`, then
 * `qemu-img resize`, then a long time of writes and flushes. Live L2 tables were handed out.
 */
const grown: Recipe[] = [512, 4 * K, 64 * K].map(cluster => ({
  title: `cloud-hypervisor#8606, clusters of ${cluster}`,
  sizeK: cluster === 64 * K ? 2048 : 96,
  cluster,
  steps: [
    {
      io: [
        `write -P 1 0 40k`,
        `write -P 2 50k 5k`,
        `write -P 3 ${cluster === 64 * K ? '1M' : '80k'} 9k`,
      ],
    },
    {
      img: image => [
        'convert',
        '-q',
        '-c',
        '-O',
        'qcow2',
        '-o',
        `cluster_size=${cluster}`,
        image,
        `${image}.c`,
      ],
    },
    { img: image => ['resize', '-q', `${image}.c`, cluster === 64 * K ? '8M' : '700k'] },
    { img: image => ['convert', '-q', '-f', 'raw', '-O', 'raw', `${image}.c`, image] },
  ],
}))

for (const recipe of grown) {
  t.test(recipe.title, tools, async t => {
    const kind = await makeKind(recipe, tempFolder(t))
    const seeds = IS_LONG ? 200 : 6
    const ends: MemoryStore[][] = []
    for (let seed = 1; seed <= seeds; seed++) {
      const files = [kind.image.clone()] as const
      const model = new DiskModel(kind.disk)
      let opened = openWritable({ store: files[0] })
      for (const step of randomSteps(seed, 400, kind)) {
        if (step.kind === 'flush') opened.disk.flush()
        else if (step.kind === 'reopen') {
          opened.disk.close()
          opened = openWritable({ store: files[0] })
        } else {
          model.begin(step)
          act(opened, step)
        }
        checkReads(opened, model, step)
      }
      checkReads(opened, model)
      opened.disk.close()
      model.flushed()
      const { leaks } = checkFiles(kind, files, model, 'exactly')
      if (leaks > kind.leaks) t.fail(`seed ${seed}: ${leaks} clusters leak`)
      ends.push([files[0]])
    }
    t.equal(await qemuChecks(kind, ends), seeds)
  })
}
