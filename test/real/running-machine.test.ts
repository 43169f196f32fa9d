/**
 * A machine writes, takes snapshots and deletes them, while somebody reads its snapshots in a mount: he gets the bytes of each one,
 * or is told that it is gone. In the end each file is compared with what qemu-img has of it.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { type Machine, machine } from '../support/machine.js'
import {
  attemptIn,
  HERE,
  type Mount,
  mount,
  noFuse,
  noLibfuse,
  overLibfuse,
  runIn,
  sharedFolder,
  until,
  vimgfs,
} from '../support/mount.js'
import { commandEnvironment, needs, run } from '../support/run.js'
import { Random } from '../soundness/steps.js'

const skip = { ...needs('qemu-img', 'qemu-system-x86_64'), ...noFuse() }
const FORCE_SHARE = ['-o', 'ro,force-share']
const isLong = process.env.VIMGFS_TEST_LONG === '1'
const STEPS = isLong ? 4000 : 60
const SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
/** The reader may be slow. */
const MOST_STEPS = 20_000
const HALF = 2 ** 20
const MOST_SNAPSHOTS = 5
const READER = fileURLToPath(new URL('./snapshot-reader.mjs', import.meta.url))

const imageIn = async (t: Test): Promise<string> => {
  const image = join(sharedFolder(t), 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, String(2 * HALF)])
  return image
}

/** The names of the snapshots' files, which say what is in them. */
const shown = ({ folder }: Mount) => readdirSync(folder).filter(name => /@.*\.raw$/.test(name))

for (const place of [HERE, overLibfuse(HERE)]) {
  const unless = place.transport ? { ...skip, ...noLibfuse() } : skip
  t.test(`snapshots come and go: ${place.name}`, unless, async t => {
    const image = await imageIn(t)
    const vm = await machine(t, image)
    const at = await mount(t, image, { place, args: FORCE_SHARE })
    const child = spawn(process.execPath, [READER, at.folder], {
      stdio: ['pipe', 'pipe', 'inherit'],
      env: commandEnvironment({ NODE_OPTIONS: '' }),
    })
    const ended = once(child, 'exit')
    t.teardown(() => child.kill('SIGKILL'))
    const said: string[] = []
    const lines = createInterface({ input: child.stdout }).on('line', line => said.push(line))
    const tags = await steps(vm, place.transport ? STEPS / 4 : STEPS, () => said.includes('enough'))
    child.stdin.end()
    if (said.at(-1)?.startsWith('{') !== true) await once(lines, 'close')
    await ended
    const found = JSON.parse(said.at(-1) ?? '')
    t.comment(`${found.reads} reads, ${found.held} of files held open, ${found.gone} gone`)
    t.same([found.wrong, found.errors], [[], []])

    const names = tags.map(tag => `disk@${tag}.raw`).sort()
    t.ok(await until(async () => shown(at).sort().join() === names.join()), at.log())
    await vm.end()
    for (const tag of tags) {
      const copy = `${image}.${tag}`
      await run('qemu-img', ['convert', '-l', tag, '-O', 'raw', image, copy])
      await runIn(HERE, 'cmp', [copy, at.file(`disk@${tag}.raw`)])
    }
    t.equal((await vimgfs(place, ['umount', at.folder])).code, 0)
    t.notMatch(at.log(), /"level":[56]0/, 'no error was logged')
  })
}

/** Makes the machine write, take and delete snapshots. Returns the tags of those that are left. */
async function steps(vm: Machine, count: number, isEnough: () => boolean): Promise<string[]> {
  const random = new Random(SEED)
  const tags: string[] = []
  const values: [number, number] = [0, 0]
  const withState = new Set<string>()
  for (let step = 1; step <= count || (step < MOST_STEPS && !isEnough()); step++) {
    if (tags.length >= MOST_SNAPSHOTS || (tags.length > 0 && random.chance(0.4))) {
      const [tag] = tags.splice(random.below(tags.length), 1) as [string]
      await vm.tell(`delvm ${tag}`)
    }
    const back = tags[random.below(tags.length + 4)]
    if (back !== undefined && withState.has(back)) {
      await vm.tell(`loadvm ${back}`)
      const [first, second] = back.slice(1).split('-').map(Number)
      values.splice(0, 2, first as number, second as number)
    }
    // Writes take clusters that were just freed.
    const half = random.below(2)
    values[half] = 1 + (step % 250)
    await vm.write(values[half] as number, half * HALF, HALF)
    const tag = `s${values.join('-')}`
    if (random.chance(0.5)) {
      await vm.tell(`savevm ${tag}`)
      withState.add(tag)
    } else await vm.ask('blockdev-snapshot-internal-sync', { device: 'disk', name: tag })
    tags.push(tag)
  }
  return tags
}

t.test('a snapshot over a backing file that a machine writes', skip, async t => {
  const base = await imageIn(t)
  const vm = await machine(t, base)
  await vm.write(1, 0, 2 * HALF)
  await vm.tell('savevm one')
  const top = join(sharedFolder(t), 'top.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-u', '-b', base, '-F', 'qcow2', top, '2M'])
  const at = await mount(t, top, { args: [...FORCE_SHARE, '--allow-path', join(base, '..')] })
  const read = (name: string) => attemptIn(HERE, 'cmp', ['-n', '4096', at.file(name), '/dev/zero'])
  t.same(readdirSync(at.folder), [
    'top.raw',
    'top@disk.raw',
    'top@disk@one.raw',
    'top@disk@one.vmstate',
  ])
  t.match((await read('top@disk@one.raw')).stdout, 'differ')
  await vm.tell('delvm one')
  await vm.write(2, 0, 2 * HALF)
  t.ok(await until(() => !readdirSync(at.folder).includes('top@disk@one.raw')), 'it goes')
  await vm.end()
})

t.test('what may be torn is named', skip, async t => {
  const image = await imageIn(t)
  const vm = await machine(t, image)
  await vm.tell('savevm one')
  const at = await mount(t, image, { args: FORCE_SHARE })
  t.match(at.printed.stderr, /disk\.raw may be torn; other snapshots read as at rest/)
  const status = async () =>
    JSON.parse((await attemptIn(HERE, 'cat', [at.file('.vimgfs/status.json')])).stdout)
  t.match(await status(), { mayBeTorn: ['disk.raw'] })
  // Taking a snapshot writes out the tables that QEMU has in memory.
  await vm.write(9, 0, HALF)
  await vm.tell('savevm two')
  t.equal((await vimgfs(HERE, ['refresh', at.folder])).code, 0)
  t.match(readdirSync(at.folder), ['disk.raw', 'disk@one.raw'], 'at once')
  t.ok(readdirSync(at.folder).includes('disk@two.raw'))
  const disk = await attemptIn(HERE, 'od', ['-An', '-tx1', '-N1', at.file('disk.raw')])
  t.equal(disk.stdout.trim(), '09', 'what has been written is shown, too')
  await vm.end()
  t.match(await status(), { mayBeTorn: [] }, 'nobody writes it any more')
})
