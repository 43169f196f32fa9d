/** Single measurements: reads and writes by fio, a server's memory, equality of contents, and disturbance. */
import fs from 'node:fs'
import { randomStream } from './images.mjs'
import { run, sleep } from './workplace.mjs'

const RAMP_MS = 300
const MAX_PASS_MS = 20_000
const KIB = 1024
const CLUSTER = 65536

/** Empties the client's page cache of a file: sequential buffered reads must reach the server. */
export const dropCache = file =>
  run('dd', [`if=${file}`, 'iflag=nocache', 'count=0', 'status=none'], { mayFail: true })

/** Returns how many bytes of a file are in the page cache; undefined if that is not known. */
async function cachedBytes(file) {
  const args = ['--bytes', '--noheadings', '--output', 'RES', file]
  const { code, stdout } = await run('fincore', args, { mayFail: true }).catch(() => ({ code: 1 }))
  return code === 0 ? Number(stdout) : undefined
}

/**
 * Runs a case on a file. Random and direct reads run for `ms`. Buffered reads go over the file from its beginning with an
 * empty cache, again and again until that time is over: a second pass in one run of fio would find everything cached.
 */
export async function read(file, fileBytes, testCase, { ms, note }) {
  if (testCase.direct) return timedRead(file, fileBytes, testCase, { ms, rampMs: RAMP_MS })
  let bytes = 0
  let spentMs = 0
  for (let pass = 0; pass < 5 && spentMs < ms; pass++) {
    await dropCache(file)
    if ((await cachedBytes(file)) > 0) note('some of the file stayed in the page cache')
    const args = ['--readonly', `--filename=${file}`, `--size=${fileBytes}`]
    const result = await fio(testCase, [...args, `--runtime=${MAX_PASS_MS}ms`], MAX_PASS_MS)
    bytes += result.bytes
    spentMs += result.ms
  }
  await dropCache(file) // gives the memory back before the next server's turn
  return { bytes, ms: spentMs, value: bytes / spentMs / 1000 }
}

function timedRead(file, fileBytes, testCase, { ms, rampMs }) {
  const args = [
    '--readonly',
    `--filename=${file}`,
    `--size=${fileBytes}`,
    '--norandommap',
    '--random_generator=tausworthe64',
    '--time_based',
    `--runtime=${ms}ms`,
    `--ramp_time=${rampMs}ms`,
  ]
  return fio(testCase, args, ms)
}

/**
 * Writes a part of a disk: each block once or, if the case says so, one block of each cluster. It ends when all is written
 * or `ms` are over; the fsync counts. Then `coveredBytes` of the disk are new. fio's buffers are random, and it marks each
 * sector with the sector's place (scramble_buffers), by which verify.mjs knows what has been written.
 */
export async function write(file, { from, bytes }, testCase, { ms, place }) {
  const { jobs = 1, passes = 1, fdatasync, oncePerCluster } = testCase
  const args = [
    '--scramble_buffers=1',
    '--end_fsync=1',
    '--fallocate=none',
    '--allow_file_create=0',
    `--runtime=${ms}ms`,
    ...(fdatasync ? ['--fdatasync=1'] : []),
  ]
  if (oncePerCluster) {
    const log = place.path('iolog') // always the same: nobody else writes meanwhile
    fs.writeFileSync(log, blockInEachCluster(file, from, bytes))
    args.push(`--read_iolog=${log}`)
  } else {
    const span = bytes / jobs
    args.push(`--filename=${file}`, `--offset=${from}`, `--offset_increment=${span}`)
    args.push(`--size=${span}`, `--loops=${passes}`, '--random_generator=lfsr')
  }
  const result = await fio(testCase, args, ms)
  return { ...result, coveredBytes: Math.min(result.bytes, bytes) }
}

/** Returns a log for fio to replay: by itself it cannot write one block of each cluster, and none twice. */
function blockInEachCluster(file, from, bytes) {
  const count = bytes / CLUSTER
  const random = new Uint32Array(randomStream('order')(count * 4).buffer)
  const order = Uint32Array.from(random.keys()).sort((a, b) => random[a] - random[b])
  const lines = Array.from(order, cluster => {
    const offset = from + cluster * CLUSTER + (random[cluster] % (CLUSTER / 4096)) * 4096
    return `${file} write ${offset} 4096`
  })
  return ['fio version 2 iolog', `${file} add`, `${file} open`, ...lines, ''].join('\n')
}

/** `value` is MB/s for sequential requests and thousands of requests a second for random ones. */
async function fio({ pattern, blockBytes, direct, jobs = 1 }, more, ms) {
  const args = [
    '--name=bench',
    '--thread',
    '--group_reporting',
    '--ioengine=psync',
    '--output-format=json',
    `--rw=${pattern}`,
    `--bs=${blockBytes}`,
    `--direct=${direct ? 1 : 0}`,
    `--numjobs=${jobs}`,
    ...more,
  ]
  const options = { timeoutMs: ms + 20_000, mayFail: true }
  const { code, stdout, stderr } = await run('fio', args, options)
  if (code !== 0) {
    const why = /error=(.*)/.exec(stdout + stderr)?.[1] ?? `exit code ${code} ${stderr.trim()}`
    throw new Error(`fio: ${why}`)
  }
  // Warnings may precede the JSON.
  const [job] = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs
  const done = pattern.endsWith('read') ? job.read : job.write
  const { iops, io_bytes: bytes, bw_bytes: bytesPerSecond, runtime, clat_ns: latency } = done
  if (!(bytes > 0)) throw new Error('fio moved nothing')
  return {
    value: pattern.startsWith('rand') ? iops / 1000 : bytesPerSecond / 1e6,
    bytes,
    ms: runtime,
    p50us: latency.percentile?.['50.000000'] / 1000,
    p99us: latency.percentile?.['99.000000'] / 1000,
  }
}

/** Throws if a server shows wrong bytes: its speed would mean nothing. */
export async function compare({ file, image }) {
  const bytes = Math.min(2 ** 20, image.sizeBytes)
  await run('cmp', ['-n', String(bytes), file, image.check])
  const end = fs.statSync(image.check).size - bytes
  // If the file to compare with is as long as the disk, check the end of the disk, too.
  if (end + bytes === image.sizeBytes) {
    await run('cmp', ['-n', String(bytes), '-i', String(end), file, image.check])
  }
}

/** Measures the peak and the last memory of a server (all its processes) while a case runs on it. */
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
  const result = await timedRead(file, image.sizeBytes, testCase, { ms, rampMs: 0 }).finally(
    () => (reading = false),
  )
  await sampling
  // VmHWM misses no peak between two samples, but the peaks of two processes cannot be added.
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
 * Measures how much of the machine other work used. Before each round, while all servers are idle, it looks how busy the
 * processors are; and over the whole run, how much time a hypervisor took away.
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

/** Returns the chosen setting of a server, and what all of them reached. `tried` is sorted, best first. */
export const calibrationOf = (title, tried) => ({
  title,
  taken: tried[0].setting,
  tried: tried.map(({ setting, value }) => ({ setting, value })),
})
