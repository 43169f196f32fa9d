/**
 * Many clients on one mount: how long the longest request takes, and whether all clients get the same share. Each client is a
 * thread that sends one request after the other, and all end after the same number of them.
 */
import fs from 'node:fs'
import path from 'node:path'
import { copyFor, plain } from './images.mjs'
import { run } from './workplace.mjs'

const CLIENTS = 64
const REQUESTS = 1_000_000
const QUICK_REQUESTS = 64_000
const TIMEOUT_MS = 300_000
/** The longest wait that is wanted, in milliseconds, and the least share of the first client's rate that the last one has. */
const TARGETS = { longestMs: 1000, share: 0.5 }

export const manyCases = [
  {
    id: 'many-read',
    title: `${CLIENTS} clients, 4 KiB random reads, O_DIRECT`,
    pattern: 'randread',
  },
  {
    id: 'many-write',
    title: `${CLIENTS} clients, 4 KiB random reads and overwrites, O_DIRECT`,
    pattern: 'randrw',
    writable: true,
  },
]

export class ManyClients {
  /** @param tryMount mounts an image by a server, or reports why not */
  constructor(bench, tryMount) {
    this.bench = bench
    this.tryMount = tryMount
  }

  async run(place, servers, cases) {
    if (cases.length === 0) return []
    const image = await plain(place, this.bench.options.size / 4)
    const results = []
    for (const testCase of cases) {
      this.bench.say(`many clients: ${testCase.title}`)
      const entries = []
      for (const server of servers) {
        const runs = []
        for (let round = 0; round < this.bench.options.rounds; round++) {
          this.bench.say(`  ${testCase.id}, ${server.id}, round ${round + 1}`)
          await this.bench.disturbance.sample()
          const figures = await this.measure(place, server, image, testCase)
          if (!figures) break
          runs.push(figures)
        }
        if (runs.length > 0)
          entries.push({ id: server.family ?? server.id, title: server.title, runs })
      }
      results.push({ case: testCase, entries })
    }
    fs.rmSync(path.dirname(image.file), { recursive: true })
    return results
  }

  async measure(place, server, image, testCase) {
    const { writable = false } = testCase
    const own = writable ? await copyFor(place, image, server) : image
    const mounted = await this.tryMount(server, own, { writable })
    if (!mounted) return undefined
    try {
      return await clients(mounted.file, image.sizeBytes, testCase, this.bench.options.quick)
    } catch (error) {
      this.bench.complain(`${server.title} failed in ${testCase.id}`, error.message)
      return undefined
    } finally {
      await this.bench.end(mounted)
      if (writable) fs.rmSync(path.dirname(own.file), { recursive: true, force: true })
    }
  }
}

/** Returns the longest wait of any request, in milliseconds, all requests a second, and the share of the slowest client. */
async function clients(file, sizeBytes, { pattern }, isQuick) {
  const requests = isQuick ? QUICK_REQUESTS : REQUESTS
  const args = ['--name=many', '--thread', '--ioengine=psync', '--output-format=json']
  args.push(`--rw=${pattern}`, '--bs=4096', '--direct=1', `--numjobs=${CLIENTS}`)
  args.push(`--filename=${file}`, `--size=${sizeBytes}`, '--norandommap')
  args.push('--random_generator=tausworthe64', `--number_ios=${requests / CLIENTS}`)
  args.push('--allow_file_create=0', '--fallocate=none')
  const { stdout } = await run('fio', args, { timeoutMs: TIMEOUT_MS })
  const { jobs } = JSON.parse(stdout.slice(stdout.indexOf('{')))
  const rates = jobs.map(({ read, write }) => read.iops + write.iops)
  const longest = jobs.flatMap(({ read, write }) => [read.clat_ns.max, write.clat_ns.max])
  return {
    longestMs: Math.max(...longest) / 1e6,
    value: rates.reduce((sum, rate) => sum + rate, 0) / 1000,
    share: Math.min(...rates) / Math.max(...rates),
  }
}

/** Returns the table of the report. The longest wait is that of all rounds, the share the least of all rounds. */
export function manyTable(results, { median, short, reached }) {
  const rows = results.flatMap(({ case: { title }, entries }) =>
    entries.map(({ id, title: server, runs }) => {
      const longestMs = Math.max(...runs.map(one => one.longestMs))
      const share = Math.min(...runs.map(one => one.share))
      const isWanted = longestMs <= TARGETS.longestMs && share >= TARGETS.share
      return [
        title,
        server,
        `${short(median(runs.map(({ value }) => value)))} k/s`,
        `${short(longestMs)} ms`,
        share.toFixed(2),
        id === 'vimgfs' ? reached(isWanted) : '–',
      ]
    }),
  )
  return {
    head: ['many clients', 'server', 'rate', 'longest wait', 'least share', 'reached'],
    rows,
  }
}
