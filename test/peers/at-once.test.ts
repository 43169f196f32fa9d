/** Commands that change one image at the same time: each does all of its work, or refuses in one line and does nothing. */
import { copyFileSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { listSnapshots } from '../../src/index.js'
import { noise } from '../fixtures/model.js'
import { MAIN } from '../support/mount.js'
import { attempt, type Finished, needs, run, tempFolder } from '../support/run.js'
import { qemuImg } from './qemu.js'

const M = 2 ** 20
const SIZE = 4 * M
const ROUNDS = 3
const tools = needs('qemu-img')

const vimgfs = (cwd: string, args: readonly string[]): Promise<Finished> =>
  attempt(process.execPath, [MAIN, ...args], { cwd })

/** Makes `disk.qcow2` with a snapshot `old`, and `one` and `two` with other bytes. */
async function makeImages(folder: string): Promise<void> {
  for (const [name, seed] of [
    ['disk', 1],
    ['one', 2],
    ['two', 3],
  ] as const) {
    writeFileSync(join(folder, name), noise(SIZE, seed))
  }
  await run('qemu-img', ['convert', '-O', 'qcow2', 'disk', 'disk.qcow2'], { cwd: folder })
  await run('qemu-img', ['snapshot', '-c', 'old', 'disk.qcow2'], { cwd: folder })
}

const tagsOf = async (file: string): Promise<string[]> =>
  (await listSnapshots(file)).snapshots.map(({ name }) => name)

interface Change {
  readonly args: readonly string[]
  /** Whether the change can be seen in the image. */
  readonly isDone: (tags: readonly string[], sizeBytes: number) => boolean
}

const CREATE: Change = {
  args: ['snapshot', 'create', 'disk.qcow2', 'new'],
  isDone: tags => tags.includes('new'),
}
const CREATE_OTHER: Change = {
  args: ['snapshot', 'create', 'disk.qcow2', 'other'],
  isDone: tags => tags.includes('other'),
}
const DELETE: Change = {
  args: ['snapshot', 'delete', 'disk.qcow2', 'old'],
  isDone: tags => !tags.includes('old'),
}
const GROW: Change = {
  args: ['resize', 'disk.qcow2', '+1M'],
  isDone: (_, sizeBytes) => sizeBytes === SIZE + M,
}
const PAIRS: readonly (readonly [Change, Change])[] = [
  [CREATE, CREATE_OTHER],
  [CREATE, DELETE],
  [GROW, CREATE],
]

for (const [first, second] of PAIRS) {
  t.test(`${first.args[0]} beside ${second.args.slice(0, 2).join(' ')}`, tools, async t => {
    const folder = tempFolder(t)
    await makeImages(folder)
    copyFileSync(join(folder, 'disk.qcow2'), join(folder, 'before.qcow2'))
    for (let round = 0; round < ROUNDS; round++) {
      copyFileSync(join(folder, 'before.qcow2'), join(folder, 'disk.qcow2'))
      const pair = round % 2 === 0 ? [first, second] : [second, first]
      const results = await Promise.all(pair.map(({ args }) => vimgfs(folder, args)))
      const file = join(folder, 'disk.qcow2')
      const tags = await tagsOf(file)
      const { 'virtual-size': size } = JSON.parse(await qemuImg('info', '--output=json', file))
      for (const [i, { code, stderr }] of results.entries()) {
        t.equal((pair[i] as Change).isDone(tags, size), code === 0, `${pair[i]?.args}: ${stderr}`)
        if (code !== 0) t.match(stderr, /^vimgfs: [^\n]*disk\.qcow2: it is in use: [^\n]*\n$/)
      }
      t.ok(results.some(({ code }) => code === 0))
      await qemuImg('check', '-q', file)
      const bytes = join(folder, 'bytes')
      await qemuImg('convert', '-O', 'raw', file, bytes)
      t.ok(
        readFileSync(bytes)
          .subarray(0, SIZE)
          .equals(readFileSync(join(folder, 'disk'))),
      )
    }
  })
}

t.test('two conversions to one target', tools, async t => {
  const folder = tempFolder(t)
  await makeImages(folder)
  for (let round = 0; round < ROUNDS; round++) {
    const force = round === 0 ? [] : ['--force']
    const convert = (name: string) => ['convert', ...force, '-O', 'qcow2', name, 'target.qcow2']
    const names = ['one', 'two']
    const results = await Promise.all(names.map(name => vimgfs(folder, convert(name))))
    const target = join(folder, 'target.qcow2')
    t.ok(existsSync(target))
    await qemuImg('check', '-q', target)
    const bytes = join(folder, 'bytes')
    await qemuImg('convert', '-O', 'raw', target, bytes)
    const source = names.findIndex(name =>
      readFileSync(bytes).equals(readFileSync(join(folder, name))),
    )
    t.ok(source >= 0, 'it is one of both, and whole')
    t.equal(results[source]?.code, 0)
    for (const { code, stderr } of results) {
      if (code !== 0) t.match(stderr, /^vimgfs: [^\n]*target\.qcow2[^\n]*\n$/)
    }
    const known = ['before.qcow2', 'bytes', 'disk', 'disk.qcow2', 'one', 'target.qcow2', 'two']
    t.same(
      readdirSync(folder).filter(name => !known.includes(name)),
      [],
      'nothing is left',
    )
  }
})
