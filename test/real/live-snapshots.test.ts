/**
 * Several processes write to a mounted disk, past the page cache, through it and by maps, while snapshots are taken, read and
 * deleted. Each writer writes its pages in order. So a snapshot shows one moment of each: all that was done before, nothing that
 * was begun after, and no later page without the earlier ones.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { type LiveMount, serve } from '../support/live.js'
import { HERE, noFuse, runIn, sharedFolder } from '../support/mount.js'
import { needs, run } from '../support/run.js'

const LONG = process.env.VIMGFS_TEST_LONG === '1'
const ROUNDS = LONG ? 300 : 8
/** Snapshots that stay while others come and go. */
const KEPT = 3
const WRITER = fileURLToPath(new URL('../support/live-writer.mjs', import.meta.url))
const MODES = ['buffered', 'direct', 'mapped'] as const
const PAGE = 4096
const PAGES = 40
/** Clusters of two writers meet. */
const REGION = PAGES * PAGE

interface Writer {
  readonly mode: (typeof MODES)[number]
  readonly offset: number
  readonly process: ChildProcess
  readonly progress: string
}

async function startWriter(t: Test, mounted: LiveMount, index: number): Promise<Writer> {
  const mode = MODES[index] as Writer['mode']
  const offset = index * REGION
  const progress = join(mounted.folder, '..', `progress-${mode}`)
  const words = [WRITER, mounted.file('disk.raw'), mode, offset, PAGES, progress]
  const process = spawn('node', words.map(String), { stdio: ['pipe', 'pipe', 'inherit'] })
  t.teardown(() => process.kill('SIGKILL'))
  await once(process.stdout, 'data')
  return { mode, offset, process, progress }
}

const progressOf = ({ progress }: Writer) => {
  const words = readFileSync(progress)
  return { begun: Number(words.readBigUInt64LE(0)), done: Number(words.readBigUInt64LE(8)) }
}

/** Returns what is wrong with a writer's pages in `disk`, given how many were done before and begun after; empty if nothing is. */
function wrongIn(disk: Buffer, { mode, offset }: Writer, done: number, begun: number): string {
  const numbers: number[] = []
  for (let place = 0; place < PAGES; place++) {
    const page = disk.subarray(offset + place * PAGE, offset + (place + 1) * PAGE)
    const number = Number(page.readBigUInt64LE(0))
    // A page that is written back while its map changes may be of both.
    const isWhole = mode === 'mapped' || page.equals(filled(number))
    if (!isWhole) return `page ${place} is torn`
    const least = Math.floor((done + PAGES - 1 - place) / PAGES)
    const most = Math.floor((begun + PAGES - 1 - place) / PAGES)
    if (number < least || number > most) return `page ${place}: ${number}, not ${least} to ${most}`
    numbers.push(number)
  }
  const steps = numbers.filter((number, place) => place > 0 && number !== numbers[place - 1])
  const isPrefix = steps.length === 0 || (steps.length === 1 && steps[0] === numbers[0]! - 1)
  return mode === 'mapped' || isPrefix ? '' : `not one moment: ${numbers}`
}

function filled(number: number): Buffer {
  const page = Buffer.alloc(PAGE)
  for (let at = 0; at < PAGE; at += 8) page.writeBigUInt64LE(BigInt(number), at)
  return page
}

t.test(
  'writers go on while snapshots come and go',
  { ...needs('qemu-img'), ...noFuse() },
  async t => {
    const folder = sharedFolder(t)
    const image = join(folder, 'disk.qcow2')
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '4M'])
    const mounted = await serve(t, image)
    const { live } = mounted
    const copy = async (name: string) => {
      const target = join(folder, 'copy')
      await runIn(HERE, 'cp', [mounted.file(name), target])
      return readFileSync(target)
    }
    const writers = await Promise.all(MODES.map((_, index) => startWriter(t, mounted, index)))
    const kept: { readonly tag: string; readonly bytes: Buffer }[] = []
    const { signal } = new AbortController()
    for (let round = 0; round < ROUNDS; round++) {
      const tag = `s${round}`
      // As the command does it: what is in the page cache only is not in the server.
      await runIn(HERE, 'sync', [mounted.file('disk.raw')])
      const before = writers.map(progressOf)
      await live.createSnapshot(tag)
      const after = writers.map(progressOf)
      const bytes = await copy(`disk@${tag}.raw`)
      const wrong = writers
        .map((writer, i) => ({
          mode: writer.mode,
          what: wrongIn(bytes, writer, before[i]!.done, after[i]!.begun),
        }))
        .filter(({ what }) => what !== '')
      t.same(wrong, [], `round ${round}`)
      kept.push({ tag, bytes })
      if (kept.length > KEPT) {
        const [gone] = kept.splice(round % KEPT, 1)
        await live.deleteSnapshots([{ tag: gone!.tag }], { wait: signal })
      }
      const old = kept[0]!
      t.ok((await copy(`disk@${old.tag}.raw`)).equals(old.bytes), `${old.tag} is as it was`)
    }
    for (const { process } of writers) {
      const ended = once(process, 'exit')
      process.stdin?.end()
      t.same(await ended, [0, null])
    }
    const last = await copy('disk.raw')
    for (const writer of writers) {
      const { done, begun } = progressOf(writer)
      t.equal(wrongIn(last, writer, done, begun), '', `the disk, ${writer.mode}`)
    }
    t.equal(await mounted.end(), true)
    t.same(mounted.log, [])
    t.match(await run('qemu-img', ['check', image]), /No errors were found/)
    for (const { tag, bytes } of kept) {
      const target = join(folder, 'converted')
      const words = ['convert', '-f', 'qcow2', '-O', 'raw', '-l', `snapshot.name=${tag}`]
      await run('qemu-img', [...words, image, target])
      t.ok(readFileSync(target).equals(bytes), `${tag}, as QEMU reads it`)
    }
  },
)
