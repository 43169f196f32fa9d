/** Turns measurements into a table on the terminal, Markdown, JSON and a chart. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { run } from './workplace.mjs'
import { convertTable } from './convert.mjs'
import { liveTable } from './live.mjs'
import { manyTable } from './many.mjs'
import { chart } from './svg.mjs'

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b)
  const half = sorted.length >> 1
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2
}

/** The parts of a run (run.mjs) that move data: what their tables call it, and their headings. */
const TRANSFERS = [
  { part: 'read', verb: 'read', heading: 'Reading' },
  { part: 'write', verb: 'written', heading: 'Writing' },
  { part: 'rawRead', verb: 'read', heading: 'Reading raw images', panel: 'raw, read: ' },
  {
    part: 'reflinkRead',
    verb: 'read',
    heading: 'Reading qcow2 by reflinks',
    panel: 'reflinks, read: ',
  },
  { part: 'vmdkRead', verb: 'read', heading: 'Reading vmdk', panel: 'vmdk, read: ' },
  { part: 'vmdkWrite', verb: 'written', heading: 'Writing vmdk', panel: 'vmdk, written: ' },
  { part: 'encryptedRead', verb: 'read', heading: 'Reading LUKS', panel: 'LUKS, read: ' },
  { part: 'encryptedWrite', verb: 'written', heading: 'Writing LUKS', panel: 'LUKS, written: ' },
]

const short = value => (value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2))
const times = ratio => `${ratio.toFixed(2)} ×`
const reached = ok => (ok ? 'yes' : '**no**')

/** Returns the ratio of the medians of two servers, and the range of the ratios of single rounds. */
function ratioOf(own, other) {
  const rounds = own.values.map((value, i) => value / other.values[i]).filter(Number.isFinite)
  return {
    ratio: median(own.values) / median(other.values),
    range: `${Math.min(...rounds).toFixed(2)}–${Math.max(...rounds).toFixed(2)}`,
  }
}

const spread = ({ values }) =>
  `${short(median(values))} (${short(Math.min(...values))}–${short(Math.max(...values))})`

const byId = (entries, id) => entries.find(entry => entry.id === id)

/** Returns the fastest of the storage daemons that were measured, if any was. */
function bestDaemon(entries) {
  const daemons = entries.filter(({ id }) => id.startsWith('qsd'))
  return daemons.sort((a, b) => median(b.values) - median(a.values))[0]
}

export async function machine() {
  const version = async (command, pattern, option = '--version') => {
    const { stdout } = await run(command, [option], { mayFail: true }).catch(() => ({}))
    return pattern.exec(stdout ?? '')?.[1]
  }
  const cpu = os.cpus()
  return {
    date: new Date().toISOString().slice(0, 10),
    cpu: `${cpu.length} × ${cpu[0]?.model.trim()}`,
    memory: `${(os.totalmem() / 2 ** 30).toFixed(0)} GiB`,
    kernel: os.release(),
    node: process.versions.node,
    qemu: await version('qemu-storage-daemon', /version (\S+)/),
    'qemu ($QSD)': process.env.QSD && (await version(process.env.QSD, /version (\S+)/)),
    vmdkmount: await version('vmdkmount', /vmdkmount (\S+)/, '-V'),
    nbdfuse: await version('nbdfuse', /nbdfuse (\S+)/),
    fio: await version('fio', /fio-(\S+)/),
  }
}

// ---- reads and writes: results.read is [{ case, entries: [{ id, title, setting, values, p99us }] }],
// and so are results.write, .vmdkRead and .vmdkWrite

/** The servers that vimgfs is compared with: a target's name, the column's heading, and a function that finds the figures. */
const PEERS = [
  { name: 'qsd', head: '/ daemon', find: bestDaemon },
  { name: 'floor', head: '/ floor', find: entries => byId(entries, 'floor') },
  { name: 'raw', head: '/ the file itself', find: entries => byId(entries, 'raw') },
  { name: 'plain', head: '/ without passthrough', find: entries => byId(entries, 'vimgfs-plain') },
  { name: 'vmdkmount', head: '/ vmdkmount', find: entries => byId(entries, 'vmdkmount') },
]

function transferTables(results, verb) {
  const servers = new Map(results.flatMap(r => r.entries.map(e => [e.id, e.title])))
  const ids = [...servers.keys()]
  const figures = {
    head: [verb, 'unit', ...servers.values()],
    rows: results.map(({ case: c, entries }) => [
      c.title,
      c.unit,
      ...ids.map(id => (byId(entries, id) ? spread(byId(entries, id)) : '–')),
    ]),
  }
  const against = ({ case: { targets }, entries }, name, other) => {
    const own = byId(entries, 'vimgfs')
    if (!own || !other) return targets[name] ? ['–', `≥ ${targets[name]}`, '–'] : ['', '', '']
    const { ratio, range } = ratioOf(own, other)
    const text = `${times(ratio)} (${range})`
    if (!targets[name]) return [text, '', '']
    return [text, `≥ ${targets[name]}`, reached(ratio >= targets[name])]
  }
  const hasTargets = name => results.some(({ case: c }) => c.targets[name])
  const peers = PEERS.filter(
    ({ name, find }) => hasTargets(name) || results.some(({ entries }) => find(entries)),
  )
  const ratios = {
    head: [verb, ...peers.flatMap(({ head }) => [head, 'target', 'reached'])],
    rows: results.map(result => [
      result.case.title,
      ...peers.flatMap(({ name, find }) => against(result, name, find(result.entries))),
    ]),
  }
  const latency = {
    head: [verb, ...servers.values()],
    rows: results
      // Not with fdatasync: fio's latencies do not include that.
      .filter(({ case: c }) => c.unit === 'k/s' && !c.fdatasync)
      .map(({ case: c, entries }) => [
        c.title,
        ...ids.map(id => {
          const entry = byId(entries, id)
          return entry ? `${short(entry.p50us)} / ${short(entry.p99us)}` : '–'
        }),
      ]),
  }
  return { figures, ratios, latency }
}

function settingsTable(results, verb) {
  return {
    head: [verb, 'daemon', 'taken', 'all that were tried, best first'],
    rows: results.flatMap(({ case: c, calibration }) =>
      calibration.map(({ title, taken, tried }) => [
        c.title,
        title,
        taken,
        tried.map(t => `${t.setting} ${short(t.value)}`).join('; '),
      ]),
    ),
  }
}

/** Compares the same server, mounted in two ways. The ratio is that to `otherId`; `target` is its name. */
function twoWaysTable(results, heads, otherId, target) {
  return {
    head: [heads[0], 'unit', heads[1], heads[2], 'ratio', 'target', 'reached'],
    rows: results.map(({ case: c, entries }) => {
      const least = c.targets[target]
      const wanted = `≥ ${least}`
      const [own, other] = ['vimgfs', otherId].map(id => byId(entries, id))
      if (!own || !other) return [c.title, c.unit, '–', '–', '–', wanted, '–']
      const { ratio, range } = ratioOf(own, other)
      const verdict = [`${times(ratio)} (${range})`, wanted, reached(ratio >= least)]
      return [c.title, c.unit, spread(own), spread(other), ...verdict]
    }),
  }
}

// ---- mounts: results.mount is [{ case, entries: [{ id, title, values, commands }] }]

function mountTables(results) {
  const servers = new Map(results.flatMap(r => r.entries.map(e => [e.id, e.title])))
  const figures = {
    head: ['mount, ms', ...servers.values()],
    rows: results.map(({ case: c, entries }) => [
      c.title,
      ...[...servers.keys()].map(id => (byId(entries, id) ? spread(byId(entries, id)) : '–')),
    ]),
  }
  const targets = { head: ['mount', 'vimgfs', 'target', 'reached'], rows: [] }
  for (const { case: c, entries } of results) {
    const own = byId(entries, 'vimgfs')
    const ms = own && median(own.values)
    const text = own ? `${short(ms)} ms` : '–'
    const limit = c.targets.ms
    targets.rows.push([c.title, text, `≤ ${limit} ms`, own ? reached(ms <= limit) : '–'])
    const base = results.find(r => r.case.id === c.targets.than)
    const baseOwn = base && byId(base.entries, 'vimgfs')
    if (!own || !baseOwn) continue
    const { ratio, range } = ratioOf(own, baseOwn)
    const factor = c.targets.factor
    const row = [`${c.title} / ${base.case.title}`, `${times(ratio)} (${range})`, `≤ ${factor} ×`]
    targets.rows.push([...row, reached(ratio <= factor)])
  }
  return { figures, targets }
}

// ---- memory: results.memory is [{ case, tables, seconds, entries: [{ id, title, peak, … }] }]

function memoryTable(results) {
  return {
    head: ['server', 'mounted, MiB', 'peak, MiB', 'at the end, MiB', 'k/s', 'target', 'reached'],
    rows: results.flatMap(({ case: c, entries }) =>
      entries.map(({ id, title, before, peak, after, value }) => [
        title,
        ...[before, peak, after, value].map(short),
        ...(id === 'vimgfs'
          ? [`≤ ${c.targets.peakMiB} MiB`, reached(peak <= c.targets.peakMiB)]
          : ['', '']),
      ]),
    ),
  }
}

// ---- output

const markdownTable = ({ head, rows }) =>
  [head, head.map(() => '---'), ...rows].map(cells => `| ${cells.join(' | ')} |`).join('\n')

function plainTable({ head, rows }) {
  const all = [head, ...rows].map(cells => cells.map(cell => String(cell).replaceAll('**', '')))
  const widths = head.map((_, i) => Math.max(...all.map(cells => cells[i].length)))
  return all
    .map(cells =>
      cells
        .map((c, i) => c.padEnd(widths[i]))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

/** Returns all parts of the report, for both kinds of output: [heading, text or table]. */
function sections({ results, notes, skipped, readahead, options }) {
  const parts = []
  const isMeasured = part => results[part]?.length > 0
  for (const { part, verb, heading } of TRANSFERS.filter(({ part }) => isMeasured(part))) {
    const { figures, ratios, latency } = transferTables(results[part], verb)
    parts.push([`${heading}: vimgfs against the others`, ratios], [`${heading}: figures`, figures])
    if (latency.rows.length > 0) {
      parts.push([`${heading}: latency, µs: median / 99th percentile`, latency])
    }
    const settings = settingsTable(results[part], verb)
    if (settings.rows.length > 0) {
      parts.push([`${heading}: settings of qemu-storage-daemon`, settings])
    }
  }
  if (isMeasured('readWritable')) {
    const heads = ['read', 'mounted read-write', 'mounted read-only']
    const table = twoWaysTable(results.readWritable, heads, 'read-only', 'readOnly')
    parts.push(['Reading what can be written', table])
  }
  if (isMeasured('writeScratch')) {
    const heads = ['write', 'scratch copy', 'new qcow2']
    const table = twoWaysTable(results.writeScratch, heads, 'fresh', 'fresh')
    parts.push(['Writing to scratch copies', table])
  }
  if (isMeasured('mount')) {
    const { figures, targets } = mountTables(results.mount)
    parts.push(['Mounting: from the command to the first answer', targets])
    parts.push(['Mounting: figures', figures])
  }
  for (const result of results.memory ?? []) {
    parts.push([`Server memory: ${result.case.title}`, memoryTable([result])])
    const { all, written } = result.tables
    const how = written === all ? 'all written' : `${written} written, the others holes`
    parts.push(['', `${result.seconds} s of reading; ${all} L2 tables of 64 KiB, ${how}.`])
  }
  if (isMeasured('convert')) {
    const tools = { median, short, times, reached, ratioOf }
    parts.push(['Conversion', convertTable(results.convert, tools)])
  }
  if (isMeasured('many')) {
    parts.push(['Many clients', manyTable(results.many, { median, short, reached })])
  }
  if (isMeasured('live')) {
    parts.push(['Changes while mounted', liveTable(results.live, { median, short, reached })])
  }
  const kb = Object.entries(readahead).map(([title, value]) => `${title} ${value}`)
  const isWritten = ['write', 'vmdkWrite', 'encryptedWrite'].some(isMeasured)
  const facts = [
    `Medians of ${options.rounds} rounds, lowest and highest in parentheses; each case has servers started for it and warmed up by a run of the same case; in each round each server is measured once, in an order that rotates. A ratio is one of medians; in parentheses stand the lowest and highest ratio within one round.`,
    'All image files lie on tmpfs. Buffered sequential reads start with an empty client page cache; the others bypass it with O_DIRECT. Before timing, the contents of each server are compared with the disk.',
    `The floor is a C server of two threads that only hands on bytes of the raw file (floor.c); with compressed data it reads what the others have to decompress. fuse-native answers from memory.`,
    isMeasured('vmdkRead') &&
      'The vmdk images are those that qemu-img makes: monolithicSparse with grains of 64 KiB, or streamOptimized. vmdkmount (libvmdk) only reads.',
    isMeasured('encryptedRead') &&
      'The encrypted images are those that qemu-img makes by default: LUKS with aes-256, xts, plain64.',
    isWritten &&
      `A write case has in each round a fresh copy of its image and a server started for it, which is warmed up on the last eighth of the disk, measured once on the rest (${options.ms / 1000} s at most) and stopped. The closing fsync is in the time.`,
    isWritten &&
      'After each of these, unmeasured, `qemu-img check` has to find nothing; each sector that fio wrote has to be in the image, and all others, and a snapshot, have to be as they were. A server that fails this has no figure.',
    isWritten &&
      'The floor writes 4 KiB where the others allocate 64 KiB. On tmpfs, fdatasync costs what the server does itself; whether data are safe then is for the tests to show, not for this.',
    isMeasured('write') &&
      "The tree is timed from losetup to the last sync, on a server just started; its MB/s are the tree's bytes by that time. The file system has to pass e2fsck, and its files have to be those of the tree.",
    isMeasured('readWritable') &&
      'Reading what can be written: each round mounts the same image anew, read-write and read-only in turn; twice as many rounds.',
    isMeasured('writeScratch') &&
      'Writing to scratch copies: of an image full of data, and to a new qcow2 of the same size. The closing fsync does nothing for a copy. The bench compares the written bytes through the mount before it ends, and the image has to be as it was.',
    kb.length > 0 &&
      `Readahead of the mounts, KiB: ${kb.join(', ')}. vimgfs raises it itself (as root), the floor got the same, the others keep the kernel's${options['readahead-all'] ? ', but here they all got it' : ''}.`,
    isMeasured('convert') &&
      'Conversions: 1 GiB of disk, half of it holes, a quarter text, a quarter random; the start of the program is in the time. Size and memory are those of vimgfs: the size against that of qemu-img, and the most memory that was resident. Both targets are compared with the source by qemu-img. On xfs both sync what they have written.',
    isMeasured('live') &&
      'Snapshots of a mounted image: the longest write of a program that writes 4 KiB after 4 KiB past the page cache, all over the allocated part. qemu-img takes its snapshot of the same image at rest; its start is in the time.',
    isMeasured('many') &&
      'Many clients: a million requests in all, as many of each client; the longest wait is that of all rounds, the share the rate of the slowest client divided by that of the fastest, the least of all rounds.',
    options.quick && 'A quick run: small images, short times. Not for comparison.',
    ...skipped.map(({ title, why }) => `Not measured: ${title}: ${why}.`),
    ...notes,
  ].filter(Boolean)
  parts.push(['How it was measured', facts.map(fact => `- ${fact}`).join('\n')])
  return parts
}

export function print(report) {
  for (const [heading, content] of sections(report)) {
    const body = typeof content === 'string' ? content : plainTable(content)
    console.log(`${heading ? `\n${heading}\n` : ''}${body}`)
  }
}

export function write(report, folder) {
  fs.mkdirSync(folder, { recursive: true })
  const facts = Object.entries(report.machine).filter(([, value]) => value !== undefined)
  const text = [
    '# Benchmark',
    `Made by \`${report.command}\`, which took ${report.minutes} minutes, on this machine:`,
    facts.map(([name, value]) => `${name} ${value}`).join(' · '),
    '![chart](bench.svg)',
    ...sections(report).flatMap(([heading, content]) => [
      ...(heading ? [`## ${heading}`] : []),
      typeof content === 'string' ? content : markdownTable(content),
    ]),
  ]
  fs.writeFileSync(path.join(folder, 'bench.md'), `${text.join('\n\n')}\n`)
  fs.writeFileSync(path.join(folder, 'bench.json'), `${JSON.stringify(report, undefined, 2)}\n`)
  fs.writeFileSync(path.join(folder, 'bench.svg'), draw(report))
}

const kindOf = id => ({ vimgfs: 'own', floor: 'floor' })[id] ?? 'bar'

function draw({ results, machine: m }) {
  const panels = []
  const transfers = TRANSFERS.flatMap(({ part, panel = '' }) =>
    (results[part] ?? []).map(result => ({ ...result, panel })),
  )
  for (const { case: c, entries, panel } of transfers) {
    const daemon = bestDaemon(entries)
    const floor = c.targets.floor && byId(entries, 'floor')
    // Where the floor has less work (it never decompresses or allocates), its bar would mislead.
    const shown = entries.filter(({ id }) => floor || id !== 'floor')
    const bars = shown.map(entry => {
      const ratios = []
      if (entry.id === 'vimgfs' && daemon)
        ratios.push(`${ratioOf(entry, daemon).ratio.toFixed(2)} × qemu`)
      if (entry.id !== 'floor' && floor)
        ratios.push(`${ratioOf(entry, floor).ratio.toFixed(2)} × floor`)
      const value = median(entry.values)
      const text = [`${short(value)} ${c.unit}`, ...ratios].join(' · ')
      return { label: entry.title, value, text, kind: kindOf(entry.id) }
    })
    panels.push({ title: `${panel}${c.title}`, bars })
  }
  for (const { case: c, entries } of results.readWritable ?? []) {
    const bars = entries.map(({ id, title, values }) => {
      const value = median(values)
      return { label: title, value, text: `${short(value)} ${c.unit}`, kind: kindOf(id) }
    })
    panels.push({ title: `Read while writable: ${c.title}`, bars })
  }
  for (const { case: c, entries } of results.writeScratch ?? []) {
    const bars = entries.map(({ id, title, values }) => {
      const value = median(values)
      return { label: title, value, text: `${short(value)} ${c.unit}`, kind: kindOf(id) }
    })
    panels.push({ title: `Write: ${c.title}`, bars })
  }
  for (const { case: c, entries } of results.mount ?? []) {
    const bars = entries.map(({ id, title, values }) => {
      const value = median(values)
      return { label: title, value, text: `${short(value)} ms`, kind: kindOf(id) }
    })
    panels.push({ title: `Mounting: ${c.title}`, bars, limit: c.targets.ms })
  }
  for (const { case: c, entries } of results.memory ?? []) {
    const bars = entries.map(({ id, title, peak }) => {
      return { label: title, value: peak, text: `${short(peak)} MiB`, kind: kindOf(id) }
    })
    panels.push({ title: `Server memory: ${c.title}`, bars, limit: c.targets.peakMiB })
  }
  const subtitle = `${m.cpu} · Linux ${m.kernel} · Node ${m.node} · QEMU ${m.qemu ?? '–'} · ${m.date}`
  return chart({ title: 'vimgfs beside others: medians', subtitle, panels })
}
