/**
 * Conversion: `vimgfs convert` beside `qemu-img convert`, on the same files, whose pages are all in memory. Each round runs
 * each program once, in an order that rotates; the start of the program is in the time.
 */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { GiB, MiB, randomStream } from './images.mjs'
import { has, isRoot, rotated, run, unmountLazily } from './workplace.mjs'

const MAIN = process.env.VIMGFS ?? fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))

/**
 * A case converts `from`, a source, to a target of the format `to`, or compares the two (`isCompare`); `times` is how much faster
 * it has to be.
 */
export const convertCases = [
  { id: 'convert-raw-qcow2', title: 'raw to qcow2', from: 'raw', to: 'qcow2', times: 1.3 },
  { id: 'convert-qcow2-raw', title: 'qcow2 to raw', from: 'qcow2', to: 'raw', times: 1.3 },
  {
    id: 'convert-zlib',
    title: 'raw to qcow2, zlib',
    from: 'raw',
    to: 'qcow2',
    args: ['-c'],
    times: 2.5,
  },
  {
    id: 'convert-zstd',
    title: 'raw to qcow2, zstd',
    from: 'raw',
    to: 'qcow2',
    args: ['-c', '-o', 'compression_type=zstd'],
    times: 1.5,
  },
  {
    id: 'convert-stream',
    title: 'raw to streamOptimized',
    from: 'raw',
    to: 'vmdk',
    args: ['-o', 'subformat=streamOptimized'],
    times: 2.5,
  },
  { id: 'convert-from-zlib', title: 'qcow2, zlib, to raw', from: 'zlib', to: 'raw', times: 2 },
  { id: 'convert-from-zstd', title: 'qcow2, zstd, to raw', from: 'zstd', to: 'raw', times: 2 },
  {
    id: 'convert-from-stream',
    title: 'streamOptimized to raw',
    from: 'stream',
    to: 'raw',
    times: 2,
  },
  { id: 'convert-raw-vmdk', title: 'raw to vmdk, sparse', from: 'raw', to: 'vmdk', times: 1.5 },
  {
    id: 'convert-reflink',
    title: 'qcow2 to raw on xfs with reflinks, synced',
    from: 'qcow2',
    to: 'raw',
    isReflink: true,
    times: 20,
  },
  {
    id: 'convert-compare',
    title: 'compare raw with qcow2',
    from: 'raw',
    to: 'qcow2',
    isCompare: true,
    times: 1,
  },
]

const MAX_MIB = 200

/** The sources besides raw, which QEMU makes of it. */
const SOURCES = {
  raw: { format: 'raw' },
  qcow2: { format: 'qcow2', args: [] },
  zlib: { format: 'qcow2', args: ['-c'] },
  zstd: { format: 'qcow2', args: ['-c', '-o', 'compression_type=zstd'] },
  stream: { format: 'vmdk', args: ['-o', 'subformat=streamOptimized'] },
}

const PIECE_BYTES = 4 * MiB

/** As the command sets it for itself when it is started by its name (src/cli/main.ts). */
const ENV = { ...process.env, NODE_EXTRA_CA_CERTS: undefined }

export class Conversions {
  constructor(bench) {
    this.bench = bench
  }

  async run(place, cases) {
    if (cases.length === 0) return []
    const { bench } = this
    if (!(await has('qemu-img'))) {
      bench.note('conversion was not measured: there is no qemu-img.')
      return []
    }
    const tools = [
      { id: 'vimgfs', title: 'vimgfs', argv: [process.execPath, MAIN] },
      { id: 'qemu', title: 'qemu-img', argv: ['qemu-img'] },
      ...(process.env.QEMU_IMG
        ? [{ id: 'qemu2', title: 'qemu-img ($QEMU_IMG)', argv: [process.env.QEMU_IMG] }]
        : []),
    ]
    const results = []
    for (const testCase of cases) {
      bench.say(`conversion: ${testCase.title}`)
      const folder = place.folder(testCase.id)
      const done = testCase.isReflink
        ? await this.onXfs(place, inner => this.measure(inner, testCase, tools))
        : await this.measure(folder, testCase, tools)
      if (done) results.push(done)
      fs.rmSync(folder, { recursive: true })
    }
    return results
  }

  /**
   * Runs `act` on a folder of an xfs that lies on a loop device; or notes why it cannot. Its file is on a disk: in memory, a sync
   * would cost nothing.
   */
  async onXfs(place, act) {
    if (!isRoot || !(await has('mkfs.xfs'))) {
      this.bench.note('reflinks were not measured: they need root and mkfs.xfs.')
      return undefined
    }
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'vimgfs-bench-xfs-'))
    const file = `${folder}/xfs`
    const point = place.folder('xfs')
    try {
      fs.closeSync(fs.openSync(file, 'wx'))
      fs.truncateSync(file, 5 * GiB)
      await run('mkfs.xfs', ['-q', '-m', 'reflink=1', file])
      await run('mount', ['-o', 'loop', file, point])
      return await act(point)
    } finally {
      await run('umount', [point], { mayFail: true })
      unmountLazily(point)
      fs.rmSync(folder, { recursive: true })
    }
  }

  async measure(folder, testCase, tools) {
    const { options } = this.bench
    const source = await this.source(folder, testCase.from, (options.size / 2048) * 1024)
    if (testCase.isCompare) await makeTarget(source, folder, testCase)
    const entries = tools.map(tool => ({ tool, values: [], bytes: 0, peakMib: 0 }))
    for (const entry of entries) {
      // Once without measuring the time: this also fills caches.
      entry.peakMib = await this.peak(source, folder, testCase, entry)
      await run('qemu-img', [
        ...['compare', '-f', source.format, '-F', testCase.to],
        ...[source.file, targetOf(folder, testCase)],
      ])
      entry.bytes = allocated(folder, testCase)
    }
    for (let round = 0; round < options.rounds; round++) {
      this.bench.say(`  ${testCase.id}, round ${round + 1} of ${options.rounds}`)
      await this.bench.disturbance.sample()
      for (const entry of rotated(entries, round)) {
        clean(folder, testCase)
        // The bytes that others have written reach the disk before the time starts.
        if (testCase.isReflink) await run('sync', ['-f', folder])
        const begun = performance.now()
        await ended(start(source, folder, testCase, entry.tool))
        entry.values.push(performance.now() - begun)
      }
    }
    return {
      case: testCase,
      entries: entries.map(({ tool, values, bytes, peakMib }) => ({
        ...{ id: tool.id, title: tool.title, values, bytes, peakMib },
      })),
    }
  }

  /** Makes a source: a disk with as much data as holes, half of the data text and half random. */
  async source(folder, name, sizeBytes) {
    const raw = `${folder}/source.raw`
    const random = randomStream('convert')
    const text = textStream()
    const fd = fs.openSync(raw, 'wx')
    for (let at = 0, i = 0; at < sizeBytes; at += 2 * PIECE_BYTES, i++) {
      fs.writeSync(fd, i % 2 === 0 ? text(PIECE_BYTES) : random(PIECE_BYTES), 0, PIECE_BYTES, at)
    }
    fs.ftruncateSync(fd, sizeBytes)
    fs.closeSync(fd)
    const { format, args } = SOURCES[name]
    if (!args) return { format, file: raw }
    const file = `${folder}/source.${name}`
    await run(
      'qemu-img',
      ['convert', '-m', '4', '-W', '-f', 'raw', '-O', format, ...args, raw, file],
      {
        timeoutMs: 600_000,
      },
    )
    fs.rmSync(raw)
    return { format, file }
  }

  /** Converts once. Returns the most memory that the program had, in MiB. */
  async peak(source, folder, testCase, { tool }) {
    clean(folder, testCase)
    const child = start(source, folder, testCase, tool)
    let peakKib = 0
    const timer = setInterval(() => {
      try {
        const status = fs.readFileSync(`/proc/${child.pid}/status`, 'utf8')
        peakKib = Math.max(peakKib, Number(/VmHWM:\s*(\d+)/.exec(status)?.[1] ?? 0))
      } catch {
        // It has ended.
      }
    }, 5)
    try {
      await ended(child)
    } finally {
      clearInterval(timer)
    }
    return peakKib / 1024
  }
}

const targetOf = (folder, { to }) => path.join(folder, 'target', `disk.${to}`)

function clean(folder, testCase) {
  if (testCase.isCompare) return
  const target = path.dirname(targetOf(folder, testCase))
  fs.rmSync(target, { recursive: true, force: true })
  fs.mkdirSync(target)
}

/** Makes the image that is compared with the source. */
async function makeTarget(source, folder, testCase) {
  const target = targetOf(folder, testCase)
  fs.mkdirSync(path.dirname(target))
  await run('qemu-img', [
    ...['convert', '-f', source.format, '-O', testCase.to],
    ...[source.file, target],
  ])
}

function allocated(folder, testCase) {
  const target = path.dirname(targetOf(folder, testCase))
  return fs
    .readdirSync(target)
    .map(name => fs.statSync(path.join(target, name)).size)
    .reduce((a, b) => a + b, 0)
}

function start(source, folder, testCase, { id, argv }) {
  const target = targetOf(folder, testCase)
  const { to, args = [], isReflink, isCompare } = testCase
  const writeback = isReflink && id !== 'vimgfs' ? ['-t', 'writeback'] : []
  const words = [isCompare ? 'compare' : 'convert', ...writeback, ...args]
  const formats = ['-f', source.format, isCompare ? '-F' : '-O', to]
  const all = [...argv, ...words, ...formats, source.file, target]
  if (!isReflink || id === 'vimgfs')
    return spawn(all[0], all.slice(1), { stdio: ['ignore', 'ignore', 'pipe'], env: ENV })
  // vimgfs syncs what it writes; here qemu-img has to do so, too.
  return spawn('sh', ['-c', 'last="$1"; shift; "$@" && sync "$last"', 'sh', target, ...all], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
}

function ended(child) {
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', text => (stderr += text))
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', code => {
      if (code === 0) resolve()
      else
        reject(new Error(`${child.spawnargs.join(' ')}: ${stderr.trim() || `exit code ${code}`}`))
    })
  })
}

/** Returns words as in a text: some are frequent, and zlib packs them about 3:1. */
function textStream() {
  const random = randomStream('words')
  const letters = random(64 * 1024)
  const words = Array.from({ length: 4096 }, (_, i) =>
    Array.from(letters.subarray(i * 12, i * 12 + 3 + (letters[i] % 8)), c =>
      String.fromCharCode(97 + (c % 26)),
    ).join(''),
  )
  return bytes => {
    const choice = random(bytes / 2)
    const parts = []
    for (let length = 0, i = 0; length < bytes; i += 2) {
      const u = choice.readUInt16LE(i) / 65536
      const word = `${words[Math.floor(u ** 3 * words.length)]} `
      parts.push(word)
      length += word.length
    }
    return Buffer.from(parts.join(''), 'latin1').subarray(0, bytes)
  }
}

/** Returns the table of the report. */
export function convertTable(results, { median, short, times, reached, ratioOf }) {
  const ms = values => `${short(median(values) / 1000)} s`
  return {
    head: ['conversion', 'vimgfs', 'qemu-img', 'faster', 'target', 'reached', 'size', 'memory'],
    rows: results.flatMap(({ case: c, entries }) => {
      const [own, ...peers] = entries
      return peers.map(peer => {
        const { ratio, range } = ratioOf(peer, own)
        const isSmall = own.bytes <= peer.bytes && own.peakMib <= MAX_MIB
        return [
          peer.id === 'qemu' ? c.title : `${c.title} (${peer.title})`,
          ms(own.values),
          ms(peer.values),
          `${times(ratio)} (${range})`,
          `≥ ${c.times}`,
          reached(ratio >= c.times && isSmall),
          `${((100 * own.bytes) / peer.bytes).toFixed(1)} %`,
          `${own.peakMib.toFixed(0)} MiB`,
        ]
      })
    }),
  }
}
