#!/usr/bin/env node
/** Measures vimgfs and other servers. `node scripts/bench/run.mjs --help` says how. */
import fs from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import {
  encryptedReadCases,
  encryptedReadImages,
  encryptedWriteCases,
  encryptedWriteImages,
} from './cases-encrypted.mjs'
import { rawReadCases, rawReadImages } from './cases-raw.mjs'
import { reflinkReadCases, reflinkReadImages } from './cases-reflink.mjs'
import { vmdkReadCases, vmdkReadImages, vmdkWriteCases, vmdkWriteImages } from './cases-vmdk.mjs'
import {
  memoryCases,
  mountCases,
  readCases,
  readImages,
  readScratchCases,
  readWritableCases,
  writeScratchCases,
  treeCases,
  writeCases,
  writeImages,
} from './cases.mjs'
import { GiB, MiB } from './images.mjs'
import { Conversions, convertCases } from './convert.mjs'
import { liveCases, LiveSnapshots } from './live.mjs'
import { manyCases, ManyClients } from './many.mjs'
import { calibrationOf, compare, Disturbance, memory, read } from './measure.mjs'
import { machine, median, print, write } from './report.mjs'
import { findServers, mount, readaheadKb, takesPart } from './servers.mjs'
import { has, isRoot, rotated, Workplace } from './workplace.mjs'
import { Writes } from './writes.mjs'

const HELP = `usage: npm run bench -- [read] [write] [raw] [reflink] [vmdk] [encrypted] [mount] [memory] [convert] [live] [many]
       [options]

Measures vimgfs, by both transports, beside qemu-storage-daemon's FUSE export, qcowmount, vmdkmount, nbdfuse over
qemu-nbd, fuse-native and a minimal C server (the floor), whichever of them are there, and prints
the medians and ratios. Without a name everything is measured. vmdk reads and writes vmdk images,
encrypted qcow2 images with LUKS, all others take qcow2. raw reads raw images, with passthrough and without, beside
the file itself, reflink a qcow2 image on an xfs of its own, beside the disk as a raw file on it.
convert measures vimgfs convert beside qemu-img, live how long writers wait for a snapshot of a mounted image, many how long any of a million requests of 64 clients waits.

  --rounds N        rounds of each case (5)
  --quick           small images, short times and 2 rounds: does it work, not how fast is it
  --out DIR         where bench.md, bench.svg and bench.json go (bench-results)
  --only CASE       only this case; may be given again (--list names them)
  --servers A,B     only these: vimgfs, vimgfs-before, vimgfs-libfuse, floor, qsd, qsd-given, qcowmount, vmdkmount, nbdfuse,
                    fuse-native, vimgfs-plain, vimgfs-writeback, raw
  --qsd-setting S   do not look for qemu-storage-daemon's best setting, take this one
  --size MIB        size of the disk that is read (2048); those that are written are half as large
  --readahead KB    readahead of the floor (that of vimgfs, or 1024 without vimgfs)
  --readahead-all   give every server the floor's readahead, also those that leave it alone
  --dir DIR         work here and not on a tmpfs that is found
  --list            name the cases

environment:
  QSD=/path         a newer qemu-storage-daemon, measured as one more server
  QEMU_IMG=/path    a newer qemu-img, to compare conversions with
  VIMGFS=/path      the main.js of another build of vimgfs, instead of this one
  VIMGFS_BEFORE=/path  the same for a build that is measured beside it, as one more server: vimgfs-before

example: QSD=/opt/qemu/bin/qemu-storage-daemon npm run bench -- read --only rand-1 --rounds 9
`
const DEFAULT_READAHEAD_KB = 1024
const MOUNT_ROUNDS_FACTOR = 2 // mounts are short and vary more than reads

/** The parts of a run, in their order. Each is measured in one way, on one choice of servers. */
const PARTS = {
  read: readCases,
  write: [
    ...writeCases,
    ...treeCases,
    ...readWritableCases,
    ...readScratchCases,
    ...writeScratchCases,
  ],
  rawRead: rawReadCases,
  reflinkRead: reflinkReadCases,
  vmdkRead: vmdkReadCases,
  vmdkWrite: vmdkWriteCases,
  encryptedRead: encryptedReadCases,
  encryptedWrite: encryptedWriteCases,
  mount: mountCases,
  memory: memoryCases,
  convert: convertCases,
  live: liveCases,
  many: manyCases,
}

/** The benchmarks that have a name, and their parts. */
const KINDS = {
  read: ['read'],
  write: ['write'],
  raw: ['rawRead'],
  reflink: ['reflinkRead'],
  vmdk: ['vmdkRead', 'vmdkWrite'],
  encrypted: ['encryptedRead', 'encryptedWrite'],
  mount: ['mount'],
  memory: ['memory'],
  convert: ['convert'],
  live: ['live'],
  many: ['many'],
}

const allCases = Object.values(PARTS).flat()

function readOptions() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string' },
      quick: { type: 'boolean', default: false },
      out: { type: 'string', default: 'bench-results' },
      only: { type: 'string', multiple: true, default: [] },
      servers: { type: 'string', default: '' },
      'qsd-setting': { type: 'string' },
      size: { type: 'string' },
      readahead: { type: 'string' },
      'readahead-all': { type: 'boolean', default: false },
      dir: { type: 'string' },
      list: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  const number = (name, fallback) => {
    if (values[name] === undefined) return fallback
    const value = Number(values[name])
    if (Number.isInteger(value) && value > 0) return value
    throw new Error(`--${name} takes a positive number, not ${values[name]}`)
  }
  const kinds = Object.keys(KINDS)
  const what = positionals.length > 0 ? positionals : kinds
  const wrong = what.find(name => !kinds.includes(name))
  if (wrong) throw new Error(`there is no benchmark '${wrong}': ${kinds.join(', ')}`)
  const ids = allCases.map(({ id }) => id)
  const unknown = values.only.find(id => !ids.includes(id))
  if (unknown) throw new Error(`there is no case '${unknown}': ${ids.join(', ')}`)
  const parts = what
    .flatMap(kind => KINDS[kind])
    .filter(part => named(PARTS[part], values.only).length > 0)
  if (parts.length === 0) throw new Error(`none of these cases is in: ${what.join(', ')}`)
  return {
    ...values,
    what,
    parts,
    rounds: number('rounds', values.quick ? 2 : 5),
    size: number('size', values.quick ? 256 : 2048) * MiB,
    readahead: number('readahead'),
    ms: values.quick ? 600 : 2000,
    calibrateMs: values.quick ? 400 : 1000,
    calibratePasses: values.quick ? 1 : 2,
    memoryMs: values.quick ? 3000 : 60_000,
  }
}

const named = (cases, only) => cases.filter(({ id }) => only.length === 0 || only.includes(id))

const say = text => process.stderr.write(`${text}\n`)

class Bench {
  constructor(options) {
    this.options = options
    this.notes = []
    this.skipped = []
    this.readahead = {}
    this.results = {}
    this.disturbance = new Disturbance()
  }

  say = say
  note = text => this.notes.includes(text) || this.notes.push(text)

  /** Returns the cases of a part that are to be measured. */
  chosen(part, cases) {
    const { parts, only } = this.options
    return parts.includes(part) ? named(cases, only) : []
  }

  async run(place) {
    const { options } = this
    this.context = {
      place,
      only: options.servers.split(',').filter(Boolean),
      parts: options.parts,
    }
    const skip = (title, why) => this.skipped.push({ title, why })
    const servers = await findServers(this.context, skip)
    for (const { title, why } of this.skipped) say(`not measured: ${title}: ${why}`)
    const only = options['qsd-setting']
    if (only && !servers.some(({ setting }) => setting === only)) {
      const known = servers.flatMap(({ setting = [] }) => setting)
      throw new Error(`there is no setting '${only}': ${[...new Set(known)].join('; ')}`)
    }
    const { results } = this
    const able = part => servers.filter(server => takesPart(server, part))
    const reads = (part, images, cases) =>
      this.reads(place, able(part), images, this.chosen(part, cases))
    const writes = (part, images, cases) => new Writes(this).run(place, able(part), images, cases)
    results.read = await reads('read', readImages, readCases)
    const qcow2 = await writes('write', writeImages, {
      writing: this.chosen('write', writeCases),
      trees: this.chosen('write', treeCases),
      reading: this.chosen('write', [...readWritableCases, ...readScratchCases]),
      scratch: this.chosen('write', writeScratchCases),
    })
    results.write = qcow2.written
    results.readWritable = qcow2.read
    results.rawRead = await reads('rawRead', rawReadImages, rawReadCases)
    if (isRoot && (await has('mkfs.xfs'))) {
      results.reflinkRead = await reads('reflinkRead', reflinkReadImages, reflinkReadCases)
    }
    results.writeScratch = qcow2.scratch
    results.vmdkRead = await reads('vmdkRead', vmdkReadImages, vmdkReadCases)
    const vmdk = await writes('vmdkWrite', vmdkWriteImages, {
      writing: this.chosen('vmdkWrite', vmdkWriteCases),
    })
    results.vmdkWrite = vmdk.written
    results.encryptedRead = await reads('encryptedRead', encryptedReadImages, encryptedReadCases)
    const luks = await writes('encryptedWrite', encryptedWriteImages, {
      writing: this.chosen('encryptedWrite', encryptedWriteCases),
    })
    results.encryptedWrite = luks.written
    await this.mounts(place, able('mount').filter(isDefault), this.chosen('mount', mountCases))
    const remembering = able('memory').filter(isDefault)
    await this.memories(place, remembering, this.chosen('memory', memoryCases))
    results.convert = await new Conversions(this).run(place, this.chosen('convert', convertCases))
    results.live = await new LiveSnapshots(this).run(place, this.chosen('live', liveCases))
    const many = new ManyClients(this, this.tryMount.bind(this))
    results.many = await many.run(
      place,
      able('many').filter(isDefault),
      this.chosen('many', manyCases),
    )
  }

  /** Mounts an image; or reports why not, and goes on without it. */
  async tryMount(server, image, how) {
    const { title, setting } = server
    const name = [title, setting].filter(Boolean).join(', ')
    let mounted
    try {
      mounted = await mount(server, image, this.context, how)
      await compare(mounted)
      return mounted
    } catch (error) {
      if (mounted) await this.end(mounted)
      // An older daemon knows fewer settings: the last part of its message says which one it lacks.
      if (setting) this.complain(`Left out: ${name}`, error.message.split(': ').at(-1))
      else this.complain(`Left out: ${name} with the image ${image.id}`, error.message)
    }
  }

  /** Adds a server's failure to the report. It ends only that server's part. */
  complain(what, message) {
    const why = message.trim().split('\n')[0].replaceAll(`${this.context.place.dir}/`, '')
    say(`  ${what}: ${why}`)
    this.note(`${what}: ${why}.`)
  }

  async end(mounted) {
    try {
      await mounted.stop()
    } catch (error) {
      this.complain(`${mounted.server.title} did not end as it should`, error.message)
    }
  }

  // ---- reads

  async reads(place, servers, images, cases) {
    const results = []
    for (const [name, { title, make, without = [] }] of Object.entries(images)) {
      const own = cases.filter(({ image }) => image === name)
      if (own.length === 0) continue
      say(`image: ${title}`)
      const image = await make(place, this.options)
      const able = servers.filter(({ id }) => !without.includes(id))
      for (const testCase of own) results.push(await this.readCase(image, able, testCase))
      fs.rmSync(path.dirname(image.file), { recursive: true })
    }
    return results
  }

  /**
   * Measures one case, on servers that are started for it. A server that has served other cases would bring along the state
   * of its memory allocator, its caches and its compiler, and the result would depend on the cases before.
   */
  async readCase(image, servers, testCase) {
    const { options } = this
    const mounts = []
    for (const server of servers) {
      const { family, setting } = server
      if (family && options['qsd-setting'] && setting !== options['qsd-setting']) continue
      const mounted = await this.tryMount(server, image)
      if (mounted) mounts.push(mounted)
    }
    await this.setReadahead(mounts)
    const { taken, calibration } = await this.calibrate(mounts, testCase)
    const entries = []
    for (const mounted of mounts) {
      if (!mounted.server.family || taken.includes(mounted)) entries.push({ mounted, runs: [] })
      else await this.end(mounted)
    }
    // One round without measuring warms compilers and caches up.
    for (const entry of entries) await this.readOnce(entry, testCase, options.ms)
    for (let round = 0; round < options.rounds; round++) {
      say(`  ${testCase.id}, round ${round + 1} of ${options.rounds}`)
      await this.disturbance.sample()
      for (const entry of rotated(entries, round)) {
        const result = await this.readOnce(entry, testCase, options.ms)
        if (result) entry.runs.push(result)
      }
    }
    for (const { mounted } of entries) await this.end(mounted)
    return {
      case: testCase,
      calibration,
      entries: entries
        .filter(entry => !entry.failed)
        .map(({ mounted: { server }, runs }) => ({
          id: server.family ?? server.id,
          title: server.title,
          setting: server.setting,
          values: runs.map(({ value }) => value),
          p50us: median(runs.map(({ p50us }) => p50us)),
          p99us: median(runs.map(({ p99us }) => p99us)),
        })),
    }
  }

  /** Measures once. After its first failure in a case a server is left out of the case. */
  async readOnce(entry, testCase, ms) {
    if (entry.failed) return
    const { file, image, server } = entry.mounted
    try {
      return await read(file, image.sizeBytes, testCase, { ms, note: this.note })
    } catch (error) {
      entry.failed = true
      this.complain(`${server.title} failed in ${testCase.id}`, error.message)
    }
  }

  /** Gives the floor the readahead of vimgfs, so that only the language differs. */
  async setReadahead(mounts) {
    const { options } = this
    const own = mounts.find(({ server }) => server.id === 'vimgfs')
    const kb = options.readahead ?? (own ? await readaheadKb(own) : DEFAULT_READAHEAD_KB)
    for (const mounted of mounts) {
      const { id, title } = mounted.server
      if (mounted.server.isFile) continue
      const raise = isRoot && (id === 'floor' || options['readahead-all'])
      this.readahead[title] = await readaheadKb(mounted, raise ? kb : undefined)
    }
  }

  /** Finds the best setting of each storage daemon for a case, by a few short runs. */
  async calibrate(mounts, testCase) {
    const { calibrateMs, calibratePasses } = this.options
    const taken = []
    const calibration = []
    const families = new Set(mounts.map(({ server }) => server.family).filter(Boolean))
    for (const family of families) {
      const tried = mounts
        .filter(({ server }) => server.family === family)
        .map(mounted => ({ mounted, setting: mounted.server.setting, values: [] }))
      for (let pass = 0; tried.length > 1 && pass < calibratePasses; pass++) {
        for (const one of rotated(tried, pass)) {
          one.values.push((await this.readOnce(one, testCase, calibrateMs))?.value ?? 0)
        }
      }
      // Take the best pass: disturbances mostly make a run slower.
      for (const one of tried) one.value = Math.max(0, ...one.values)
      tried.sort((a, b) => b.value - a.value)
      const [{ mounted, setting }] = tried
      const { title } = mounted.server
      taken.push(mounted)
      calibration.push(calibrationOf(title, tried))
      say(`  ${testCase.id}: ${title} at its best with: ${setting}`)
    }
    return { taken, calibration }
  }

  // ---- mounts

  async mounts(place, servers, cases) {
    this.results.mount = []
    const plan = []
    for (const testCase of cases) {
      say(`image: ${testCase.title}`)
      const image = await testCase.make(place)
      for (const server of servers) {
        if (server.raw && !image.raw) continue
        // Mount once without measuring, which also shows whether it can be mounted at all.
        const mounted = await this.tryMount(server, image)
        if (!mounted) continue
        plan.push({ testCase, server, image, values: [], commands: [] })
        await this.end(mounted)
      }
    }
    const rounds = this.options.rounds * MOUNT_ROUNDS_FACTOR
    for (let round = 0; plan.length > 0 && round < rounds; round++) {
      say(`  mounting, round ${round + 1} of ${rounds}`)
      await this.disturbance.sample()
      for (const entry of rotated(plan, round)) await this.mountOnce(entry)
    }
    for (const testCase of cases) {
      const entries = plan.filter(entry => entry.testCase === testCase)
      this.results.mount.push({
        case: testCase,
        entries: entries
          .filter(e => !e.failed)
          .map(entry => {
            const { id, family, title } = entry.server
            const { values, commands } = entry
            return { id: family ?? id, title, values, commands }
          }),
      })
      for (const dir of new Set(entries.map(({ image }) => path.dirname(image.file)))) {
        fs.rmSync(dir, { recursive: true })
      }
    }
  }

  async mountOnce(entry) {
    if (entry.failed) return
    try {
      const mounted = await mount(entry.server, entry.image, this.context)
      entry.values.push(mounted.answerMs)
      entry.commands.push(mounted.commandMs)
      await this.end(mounted)
    } catch (error) {
      entry.failed = true
      this.complain(`${entry.server.title} failed with ${entry.image.id}`, error.message)
    }
  }

  // ---- memory

  async memories(place, servers, cases) {
    this.results.memory = []
    const { memoryMs } = this.options
    for (const testCase of cases) {
      say(`image: ${testCase.title}`)
      const image = await testCase.make(place)
      const entries = []
      for (const server of servers) {
        const mounted = await this.tryMount(server, image)
        if (!mounted) continue
        const { id, family, title } = server
        try {
          const figures = await memory(mounted, testCase, { ms: memoryMs })
          entries.push({ id: family ?? id, title, ...figures })
        } catch (error) {
          this.complain(`${title} failed in ${testCase.id}`, error.message)
        }
        await this.end(mounted)
      }
      const { tables } = image
      this.results.memory.push({ case: testCase, tables, seconds: memoryMs / 1000, entries })
      fs.rmSync(path.dirname(image.file), { recursive: true })
    }
  }
}

/** The setting of a storage daemon that counts if no best one is searched. */
const isDefault = ({ setting = 'default' }) => setting === 'default'

/** Returns the command to type for the same run, without the paths of this machine. */
function commandLine() {
  const own = process.argv.slice(2).filter((arg, i, all) => {
    return !/^--(out|dir)\b/.test(arg) && !/^--(out|dir)$/.test(all[i - 1] ?? '')
  })
  const args = own.map(arg => (/[^\w=,./-]/.test(arg) ? `'${arg}'` : arg))
  const text = ['npm run bench', ...(args.length > 0 ? ['--', ...args] : [])].join(' ')
  return process.env.QSD ? `QSD=… ${text}` : text
}

async function main() {
  const options = readOptions()
  if (options.help) return void process.stdout.write(HELP)
  if (options.list) {
    const width = Math.max(...allCases.map(({ id }) => id.length))
    const lines = allCases.map(({ id, title }) => `${id.padEnd(width)} ${title}`)
    return void console.log(lines.join('\n'))
  }
  const begun = Date.now()
  const bench = new Bench(options)
  // Raw file and image, a client's page cache and fuse-native's copy (for write cases, half as large: the written image,
  // copies and files to compare); or the tables of 16 TiB, twice.
  const needBytes = Math.max(4 * options.size, 3 * GiB) + GiB
  const place = new Workplace({ parent: options.dir, needBytes, note: bench.note })
  process.on('exit', () => place.cleanup())
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {
      say(`\n${signal}: cleaning up`)
      process.exit(130)
    })
  }
  if (options.parts.some(part => part !== 'mount' && part !== 'memory'))
    place.touchMemory(4 * options.size)
  const about = await machine()
  await bench.run(place)
  bench.note(bench.disturbance.text())
  const { results, notes, skipped, readahead } = bench
  const minutes = ((Date.now() - begun) / 60_000).toFixed(1)
  const report = {
    command: commandLine(),
    minutes,
    machine: about,
    options: { ...options, out: undefined, dir: undefined },
    readahead,
    notes,
    skipped,
    results,
  }
  print(report)
  write(report, options.out)
  say(
    `\nwritten: ${['md', 'svg', 'json'].map(end => path.join(options.out, `bench.${end}`)).join(', ')}`,
  )
}

main().catch(error => {
  say(`bench: ${error.message}`)
  process.exit(1)
})
