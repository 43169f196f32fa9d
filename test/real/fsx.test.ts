/**
 * Random operations on disks of all kinds, in the manner of fsx, against a plain file as the model.
 *
 * FSX_SEED=n repeats a run, FSX_KIND=text only the kinds that have it in their name; FSX_STEPS sets how
 * many steps all kinds share.
 */
import { randomInt } from 'node:crypto'
import { copyFileSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { HERE, mount, mountFolder, noFuse, runIn, sharedFolder } from '../support/mount.js'
import { attempt, needs } from '../support/run.js'
import {
  convert,
  convertCow,
  isSameDisk,
  isSound,
  isSoundForUs,
  readsAlike,
  snapshot,
  sumOf,
  unmount,
} from './disks.js'
import { addBitmap, dirtyUnits, unmarked } from './fsx-bitmap.js'
import { KINDS, type Kind, PASSPHRASE, PASSPHRASE_FILE } from './fsx-kinds.js'
import { sized } from './size.js'

const STEPS_FILE = fileURLToPath(new URL('fsx-steps.mjs', import.meta.url))
const SEED = Number(process.env.FSX_SEED ?? sized(1, randomInt(2 ** 32)))
const STEPS = Number(process.env.FSX_STEPS ?? sized(24_000, 2_000_000))
/** Remounts cost as much as thousands of steps. */
const STEPS_A_MOUNT = sized(4_000, 10_000)
const FEW_STEPS = 25

const kinds = KINDS.filter(({ name }) => name.includes(process.env.FSX_KIND ?? ''))

t.test('fsx', { ...needs('qemu-img', 'qemu-nbd'), ...noFuse() }, async t => {
  t.comment(`FSX_SEED=${SEED} FSX_STEPS=${STEPS}`)
  // A part of a run repeats what the whole did.
  const steps = Math.ceil(STEPS / KINDS.length)
  // Much of a step's time is waiting for the disk below.
  t.jobs = 2
  const tests = kinds.map(kind => {
    // Of its own for each kind, and the same whichever kinds are picked.
    const seed = (SEED + KINDS.indexOf(kind) * 0x10001) >>> 0
    const title = `${kind.name}: ${steps} steps, FSX_SEED=${SEED}`
    return t.test(title, { buffered: true }, t => exercise(t, kind, steps, seed))
  })
  await Promise.all(tests)
})

async function exercise(t: Test, kind: Kind, steps: number, seed: number): Promise<void> {
  const folder = sharedFolder(t)
  const image = join(folder, `disk.${kind.format ?? 'qcow2'}`)
  const below = await kind.create(folder, image)
  const before = below.map(sumOf)
  // What the disk holds at first is QEMU's word.
  const named = kind.named?.(image) ?? image
  const toRaw = async (raw: string) =>
    kind.format === 'cow' ? convertCow(image, raw) : await convert(named, raw)
  const model = await toRaw(join(folder, 'model'))
  const mountpoint = mountFolder(t)
  const passphrase = kind.named ? ['--passphrase-file', join(folder, PASSPHRASE_FILE)] : []
  // The written bytes do not look like any disk.
  const args = [...passphrase, ...(kind.format === 'raw' ? ['--format', 'raw'] : [])]
  const mounting = { folder: mountpoint, args }
  const snapshots: string[] = []

  const judge = async (when: string) => {
    const { format, mayLeak } = kind
    if (format === 'qcow' || format === 'cow') await isSoundForUs(t, image, when, mayLeak)
    else if (format !== 'raw') await isSound(t, named, when)
    if (format !== 'cow') await isSameDisk(t, named, model, when)
    else t.equal(sumOf(await toRaw(join(folder, 'raw'))), sumOf(model), when)
  }
  const round = async (index: number, count: number) => {
    const mounted = await mount(t, image, mounting)
    const job = {
      file: mounted.file('disk.raw'),
      model,
      seed: (seed + index) >>> 0,
      steps: count,
      clusterBytes: kind.clusterBytes,
    }
    await runIn(HERE, process.execPath, [STEPS_FILE, JSON.stringify(job)])
    await unmount(mounted)
    await judge(`after round ${index + 1}`)
  }

  // A snapshot is taken between two rounds. Elsewhere another mount costs more than hundreds of steps.
  const fewest = kind.snapshots || kind.bitmap ? 2 : 1
  const rounds = Math.max(fewest, Math.ceil(steps / STEPS_A_MOUNT))
  for (let index = 0; index < rounds; index++) {
    await round(index, Math.ceil(steps / rounds))
    if (kind.snapshots && index < 3) {
      snapshots.push(`s${index}`)
      await snapshot(named, `s${index}`)
      copyFileSync(model, join(folder, `s${index}`))
    }
  }
  if (kind.bitmap) {
    const first = readFileSync(model)
    await addBitmap(image, kind.bitmap)
    // Few steps, so that not all is changed; loaded and stored twice.
    for (const more of [0, 1]) await round(rounds + more, FEW_STEPS)
    const dirty = await dirtyUnits(t, image, kind.bitmap)
    const missing = unmarked(first, readFileSync(model), dirty, kind.bitmap)
    t.same(missing, [], `the bitmap has all that has changed, with ${dirty.size} units`)
    t.ok(dirty.size < first.length / kind.bitmap.bytes, 'and not everything')
  }

  t.same(below.map(sumOf), before, 'what lies below is as it was')
  await readsAlike(
    t,
    image,
    model,
    Object.fromEntries(snapshots.map(name => [name, join(folder, name)])),
    {
      ...(kind.named && { passphrase: PASSPHRASE }),
      ...(kind.format === 'raw' && { format: 'raw' }),
    },
  )
  for (const name of snapshots) {
    const raw = await convert(named, join(folder, 'raw'), name)
    t.ok(readFileSync(raw).equals(readFileSync(join(folder, name))), `snapshot ${name} for QEMU`)
  }
  if (kind.rawData) {
    // It may end past the disk, with its last cluster.
    const bytes = `--bytes=${statSync(model).size}`
    const { code, stdout } = await attempt('cmp', [bytes, kind.rawData(folder), model])
    t.equal(code, 0, `the data file has the disk's bytes ${stdout}`.trim())
  }
}
