/**
 * A snapshot of a mounted image: how long a program that writes has to wait for it, beside what `qemu-img snapshot -c` takes on the
 * same image at rest. The image is large in its tables only.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { CLI } from './servers.mjs'
import { has, run, unmountLazily } from './workplace.mjs'

const WRITER = fileURLToPath(new URL('./live-writer.mjs', import.meta.url))

export const liveCases = [
  {
    id: 'live-snapshot',
    title: 'a snapshot of 100 GiB on a disk of 16 TiB',
    allocated: '100G',
    size: '16T',
  },
]

export class LiveSnapshots {
  constructor(bench) {
    this.bench = bench
  }

  async run(place, cases) {
    if (cases.length === 0) return []
    if (!(await has('qemu-img'))) {
      this.bench.note('snapshots of mounted images were not measured: there is no qemu-img.')
      return []
    }
    const results = []
    for (const testCase of cases) {
      this.bench.say(`snapshot: ${testCase.title}`)
      results.push(await this.measure(place.folder(testCase.id), testCase))
    }
    return results
  }

  async measure(folder, testCase) {
    const base = path.join(folder, 'base.qcow2')
    // Tables without data: each cluster is a hole of the file.
    const options = ['-f', 'qcow2', '-o', 'preallocation=metadata']
    await run('qemu-img', ['create', '-q', ...options, base, testCase.allocated])
    await run('qemu-img', ['resize', '-q', base, testCase.size])
    const [waits, rests] = [[], []]
    const { rounds } = this.bench.options
    for (let round = 0; round < rounds; round++) {
      this.bench.say(`  ${testCase.id}, round ${round + 1} of ${rounds}`)
      await this.bench.disturbance.sample()
      const both = [
        async copy => waits.push(await waitOf(folder, copy)),
        async copy => {
          const begun = performance.now()
          await run('qemu-img', ['snapshot', '-c', 'new', copy])
          rests.push(performance.now() - begun)
        },
      ]
      for (const act of round % 2 === 0 ? both : both.reverse()) {
        const copy = path.join(folder, 'copy.qcow2')
        await run('cp', ['--sparse=always', base, copy])
        await act(copy)
        fs.rmSync(copy)
      }
    }
    fs.rmSync(folder, { recursive: true })
    return { case: testCase, waits, rests }
  }
}

/** Returns the longest wait of a writer while a snapshot is taken, in milliseconds. */
async function waitOf(folder, image) {
  const point = path.join(folder, 'mnt')
  fs.mkdirSync(point)
  try {
    await run(process.execPath, [CLI, 'mount', '-q', '--log-file', '/dev/null', image, point])
    const disk = path.join(point, 'copy.raw')
    const writer = spawn(process.execPath, [WRITER, disk], { stdio: ['pipe', 'pipe', 'inherit'] })
    await once(writer.stdout, 'data')
    await run(process.execPath, [CLI, 'snapshot', 'create', '-q', point, 'new'])
    writer.stdin.end()
    const [text] = await once(writer.stdout, 'data')
    await once(writer, 'exit')
    await run(process.execPath, [CLI, 'umount', point])
    await run('qemu-img', ['check', '-q', image])
    return Number(text)
  } finally {
    unmountLazily(point)
    fs.rmdirSync(point)
  }
}

/** Returns the table of the report. */
export function liveTable(results, { median, short, reached }) {
  const seconds = values => `${short(median(values) / 1000)} s`
  return {
    head: ['snapshot of a mounted image', 'a writer waits', 'qemu-img, at rest', 'not longer'],
    rows: results.map(({ case: { title }, waits, rests }) => [
      title,
      seconds(waits),
      seconds(rests),
      reached(median(waits) <= median(rests)),
    ]),
  }
}
