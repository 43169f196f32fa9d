/** One measurement each: a read by fio, a server's memory meanwhile, equal contents, and the noise. */
import fs from 'node:fs'
import { run, sleep } from './workplace.mjs'

const RAMP_MS = 300
const MAX_PASS_MS = 20_000
const KIB = 1024

/** Empties the client's page cache of a file: sequential buffered reads must reach the server. */
export const dropCache = file =>
  run('dd', [`if=${file}`, 'iflag=nocache', 'count=0', 'status=none'], { mayFail: true })

/** Bytes of a file in the page cache; undefined where it can't be told. */
async function cachedBytes(file) {
  const args = ['--bytes', '--noheadings', '--output', 'RES', file]
  const { code, stdout } = await run('fincore', args, { mayFail: true }).catch(() => ({ code: 1 }))
  return code === 0 ? Number(stdout) : undefined
}

/**
 * Runs a case on a file. Random and direct reads run for `ms`; buffered ones read the file from
 * its beginning with an empty cache, again and again until that time is over, since a second pass
 * in one run of fio would find everything cached.
 */
export async function read(file, fileBytes, testCase, { ms, note }) {
  if (testCase.direct) return fio(file, fileBytes, testCase, { ms, rampMs: RAMP_MS })
  let bytes = 0
  let spentMs = 0
  for (let pass = 0; pass < 5 && spentMs < ms; pass++) {
    await dropCache(file)
    if ((await cachedBytes(file)) > 0) note('some of the file stayed in the page cache')
    const result = await fio(file, fileBytes, testCase, {})
    bytes += result.bytes
    spentMs += result.ms
  }
  await dropCache(file) // gives the memory back before the next server's turn
  return { bytes, ms: spentMs, value: bytes / spentMs / 1000 }
}

/** `value` is MB/s for sequential reads and thousands of requests a second for random ones. */
async function fio(file, fileBytes, { pattern, blockBytes, direct, jobs = 1 }, { ms, rampMs }) {
  const timed = ms ? ['--time_based', `--runtime=${ms}ms`, `--ramp_time=${rampMs}ms`] : []
  const args = [
    '--name=bench',
    `--filename=${file}`,
    '--readonly',
    '--thread',
    '--group_reporting',
    '--ioengine=psync',
    '--norandommap',
    '--random_generator=tausworthe64',
    '--output-format=json',
    `--rw=${pattern}`,
    `--bs=${blockBytes}`,
    `--size=${fileBytes}`,
    `--direct=${direct ? 1 : 0}`,
    `--numjobs=${jobs}`,
    ...(ms ? timed : [`--runtime=${MAX_PASS_MS}ms`]),
  ]
  const { stdout } = await run('fio', args, { timeoutMs: (ms ?? MAX_PASS_MS) + 20_000 })
  // Warnings may stand before the JSON.
  const [job] = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs
  if (job.error) throw new Error(`fio: error ${job.error}`)
  const { iops, io_bytes: bytes, bw_bytes: bytesPerSecond, runtime, clat_ns: latency } = job.read
  if (!(bytes > 0)) throw new Error('fio read nothing')
  return {
    value: pattern === 'randread' ? iops / 1000 : bytesPerSecond / 1e6,
    bytes,
    ms: runtime,
    p50us: latency.percentile?.['50.000000'] / 1000,
    p99us: latency.percentile?.['99.000000'] / 1000,
  }
}

/** Throws where a server shows other bytes than the disk's: its speed would mean nothing. */
export async function compare({ file, image }) {
  const bytes = Math.min(2 ** 20, image.sizeBytes)
  await run('cmp', ['-n', String(bytes), file, image.check])
  const end = fs.statSync(image.check).size - bytes
  // A check as long as the disk knows the disk's end too.
  if (end + bytes === image.sizeBytes) {
    await run('cmp', ['-n', String(bytes), '-i', String(end), file, image.check])
  }
}

/** Peak and last memory of a server (all its processes) while a case runs on it. */
export async function memory(mounted, testCase, { ms }) {
  const { file, image, pids } = mounted
  const before = sum(pids, 'VmRSS')
  let peak = before
  let reading = true
  const sampling = (async () => {
    while (reading) {
      peak = Math.max(peak, sum(pids, 'VmRSS'))
      await sleep(50)
    }
  })()
  const result = await fio(file, image.sizeBytes, testCase, { ms, rampMs: 0 }).finally(
    () => (reading = false),
  )
  await sampling
  // VmHWM misses no peak between two samples, but of two processes the peaks can't be added up.
  if (pids.length === 1) peak = Math.max(peak, sum(pids, 'VmHWM'))
  return { before, peak, after: sum(pids, 'VmRSS'), value: result.value }
}

/** In MiB. */
function sum(pids, field) {
  let kib = 0
  for (const pid of pids) {
    const status = fs.readFileSync(`/proc/${pid}/status`, 'utf8')
    kib += Number(new RegExp(`^${field}:\\s*(\\d+) kB`, 'm').exec(status)?.[1] ?? 0)
  }
  return kib / KIB
}

/**
 * How much of the machine was not ours. Before each round, while all servers are idle, it looks how
 * busy the processors are all the same; and over the whole run how much a hypervisor took away.
 */
export class Disturbance {
  #begun = ticks()
  #busy = []

  async sample() {
    const before = ticks()
    await sleep(300)
    const after = ticks()
    this.#busy.push(percent(after.busy - before.busy, after.all - before.all))
  }

  text() {
    const now = ticks()
    const stolen = percent(now.stolen - this.#begun.stolen, now.all - this.#begun.all)
    const most = this.#busy.length > 0 ? Math.max(...this.#busy) : 0
    const mean = this.#busy.reduce((sum, busy) => sum + busy, 0) / (this.#busy.length || 1)
    const verdict = mean > 5 || stolen > 2 ? 'Disturbed' : 'Undisturbed'
    return (
      `${verdict}: between the rounds other processes took ${mean.toFixed(1)} % of the processors ` +
      `(at most ${most.toFixed(1)} %); the hypervisor took ${stolen.toFixed(1)} % of the run.`
    )
  }
}

const percent = (part, whole) => (whole > 0 ? (part / whole) * 100 : 0)

function ticks() {
  const line = fs.readFileSync('/proc/stat', 'utf8').split('\n')[0]
  const [user, nice, system, idle, wait, irq, softIrq, stolen] = line
    .split(/\s+/)
    .slice(1)
    .map(Number)
  const busy = user + nice + system + irq + softIrq
  return { busy, stolen, all: busy + idle + wait + stolen }
}
