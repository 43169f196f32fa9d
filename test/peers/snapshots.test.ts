/** Snapshots of qcow2 images, changed by vimgfs and by QEMU in turns, against a model and `qemu-img check`. */
import { join } from 'node:path'
import t from 'tap'
import { checkImage } from '../../src/index.js'
import { listSnapshots } from '../../src/image/snapshots/snapshot-list.js'
import { SnapshotImage } from '../../src/image/snapshots/snapshots.js'
import { snapshotTable } from '../../src/cli/snapshot-table.js'
import { openImage, readAll } from '../support/image.js'
import { needs, run, tempFolder } from '../support/run.js'
import { Random } from '../soundness/steps.js'
import { convertedBy, qemuImg, qemuIo } from './qemu.js'

const STEPS = process.env.VIMGFS_TEST_LONG === '1' ? 300 : 14
const SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
const K = 1024
const MAX_SNAPSHOTS = 5

interface Model {
  disk: Buffer
  readonly snapshots: { readonly tag: string; readonly disk: Buffer }[]
}

const KINDS = {
  'clusters of 512 bytes': { options: 'cluster_size=512', sizeK: 256 },
  'clusters of 64 KiB': { options: 'cluster_size=64k', sizeK: 2048 },
  'version 2': { options: 'compat=0.10,cluster_size=4k', sizeK: 512 },
  'extended L2 entries': { options: 'extended_l2=on,cluster_size=16k', sizeK: 1024 },
  'counts of 4 bits': { options: 'refcount_bits=4,cluster_size=512', sizeK: 200 },
}

for (const [title, { options, sizeK }] of Object.entries(KINDS)) {
  t.test(title, needs('qemu-img', 'qemu-io'), async t => {
    const image = join(tempFolder(t), 'disk.qcow2')
    await qemuImg('create', '-q', '-f', 'qcow2', '-o', options, image, `${sizeK}k`)
    const model: Model = { disk: Buffer.alloc(sizeK * K), snapshots: [] }
    const random = new Random(SEED)
    const done: string[] = []
    for (let i = 0; i < STEPS; i++) {
      done.push(await step(image, model, random, i))
      const problem = await differences(image, model)
      if (problem === undefined) continue
      t.fail(`${problem}\n  after: ${done.join('; ')}`)
      return
    }
    t.pass(`${STEPS} steps`)
  })
}

/** Makes one random change, by one of the two programs. Returns what it was. */
async function step(image: string, model: Model, random: Random, i: number): Promise<string> {
  const isOurs = random.chance(0.6)
  const who = isOurs ? 'vimgfs' : 'qemu-img'
  const roll = random.below(10)
  const { snapshots } = model
  if (snapshots.length === 0 || (roll < 3 && snapshots.length < MAX_SNAPSHOTS)) {
    const tag = `s${i}`
    if (isOurs) await change(image, one => one.create(tag))
    else await qemuImg('snapshot', '-c', tag, image)
    snapshots.push({ tag, disk: Buffer.from(model.disk) })
    return `${who} creates ${tag}`
  }
  if (isOurs && roll === 3) {
    const index = random.below(snapshots.length)
    const old = snapshots[index] as (typeof snapshots)[number]
    const tag = `${'renamed'.repeat(random.below(4))}${i}`
    await change(image, one => one.rename({ tag: old.tag }, tag))
    snapshots[index] = { ...old, tag }
    return `${who} renames ${old.tag} to ${tag}`
  }
  if (roll < 5) {
    const index = random.below(snapshots.length)
    const tag = snapshots[index]?.tag as string
    if (isOurs) await change(image, one => one.delete([one.indexOf({ tag })]))
    else await qemuImg('snapshot', '-d', tag, image)
    snapshots.splice(index, 1)
    return `${who} deletes ${tag}`
  }
  if (roll < 7) {
    const { tag, disk } = random.pick(snapshots)
    let kept: string | undefined
    if (isOurs) kept = await change(image, one => one.revert(one.indexOf({ tag }), false))
    else await qemuImg('snapshot', '-a', tag, image)
    if (kept !== undefined) snapshots.push({ tag: kept, disk: Buffer.from(model.disk) })
    model.disk = Buffer.from(disk)
    return `${who} reverts to ${tag}${kept === undefined ? '' : `, keeping ${kept}`}`
  }
  const length = 512 * (1 + random.below(200))
  const offset = 512 * random.below(model.disk.length / 512 - length / 512)
  const pattern = 1 + random.below(255)
  await qemuIo(image, [`write -P ${pattern} ${offset} ${length}`])
  model.disk.fill(pattern, offset, offset + length)
  return `qemu-io writes ${length} at ${offset}`
}

async function change<T>(name: string, act: (image: SnapshotImage) => Promise<T>): Promise<T> {
  const image = await SnapshotImage.open(name)
  try {
    return await act(image)
  } finally {
    image.close()
  }
}

async function differences(image: string, model: Model): Promise<string | undefined> {
  const found = JSON.parse(await qemuImg('check', '-f', 'qcow2', '--output=json', image))
  if (found.corruptions || found.leaks || found['check-errors']) return JSON.stringify(found)
  const ours = await checkImage(image)
  if (!ours || ours.corruptions + ours.leaks > 0) return JSON.stringify(ours)
  const { snapshots } = listSnapshots(image, {}, false, () => {})
  const table = snapshots.length > 0 ? snapshotTable(snapshots).map(line => `${line}\n`) : []
  if ((await qemuImg('snapshot', '-l', image)) !== table.join('')) return 'the tables differ'
  if (!(await convertedBy(image)).equals(model.disk)) return 'QEMU reads another disk'
  const problem = shownWrongly(image, model)
  if (problem !== undefined) return problem
  const last = model.snapshots.at(-1)
  const id = snapshots.at(-1)?.id
  if (last && !(await convertedBy(image, id)).equals(last.disk)) {
    return `QEMU reads another snapshot ${last.tag}`
  }
  return undefined
}

function shownWrongly(image: string, model: Model): string | undefined {
  const { view, entries, close } = openImage(image)
  try {
    if (!readAll(view()).equals(model.disk)) return 'the disk is another one'
    const shown = entries.filter(({ kind }) => kind === 'snapshot')
    if (shown.length !== model.snapshots.length) return `${shown.length} snapshots`
    for (const [i, { tag, disk }] of model.snapshots.entries()) {
      if (!readAll(view(shown[i]?.name)).equals(disk)) return `snapshot ${tag} has changed`
    }
    return undefined
  } finally {
    close()
  }
}

t.test('a snapshot is written as QEMU writes it', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const entries = []
  for (const who of ['ours', 'theirs']) {
    const image = join(folder, `${who}.qcow2`)
    await qemuImg('create', '-q', '-f', 'qcow2', image, '10M')
    if (who === 'ours') await change(image, one => one.create('tag'))
    else await qemuImg('snapshot', '-c', 'tag', image)
    const [snapshot] = JSON.parse(await qemuImg('info', '--output=json', image)).snapshots
    const dump = await run('qemu-img', ['info', '--output=json', image])
    entries.push({ ...snapshot, 'date-sec': 0, 'date-nsec': 0 })
    t.ok(Math.abs(snapshot['date-sec'] - Date.now() / 1000) < 100, `${who}: the date is now`)
    t.notOk(/dirty-flag": true/.test(dump))
  }
  t.same(entries[0], entries[1])
})
