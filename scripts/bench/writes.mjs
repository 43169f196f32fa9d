/**
 * The write cases. Each measurement has its own image and server, because an image can be written for the first time only
 * once. In each round every server gets a fresh copy, is started, warmed up and measured on different parts of the disk, and
 * stopped. Then the image is verified.
 */
import fs from 'node:fs'
import path from 'node:path'
import { MiB, copyFor, empty } from './images.mjs'
import { calibrationOf, read, write } from './measure.mjs'
import { median } from './report.mjs'
import { mount } from './servers.mjs'
import { copyIn, makeTree, verifyTree } from './tree.mjs'
import { verifyShown, verifyWritten } from './verify.mjs'
import { isRoot, rotated, run } from './workplace.mjs'

const WARM_UP = 8 // one part of so many of the disk
const TREE_BYTES = 500e6
const TREE_SHARE = 0.47 // at most, of the disk
const READ_ROUNDS_FACTOR = 2 // what a mount reads at random depends on the mount

export class Writes {
  #bench
  #options

  constructor(bench) {
    this.#bench = bench
    this.#options = bench.options
  }

  /** The results of cases on these images: `written`, trees included, `read`, and `scratch`. */
  async run(place, servers, images, cases) {
    const results = { written: [], read: [], scratch: [] }
    for (const [name, { title, make, without = [] }] of Object.entries(images)) {
      const own = (some = []) => some.filter(({ image }) => image === name)
      const [writing, trees, reading, scratch] = ['writing', 'trees', 'reading', 'scratch'].map(
        kind => own(cases[kind]),
      )
      if (writing.length + trees.length + reading.length + scratch.length === 0) continue
      this.#bench.say(`image to write: ${title}`)
      const image = await make(place, this.#options)
      const able = servers.filter(({ id }) => !without.includes(id))
      for (const testCase of writing) {
        results.written.push(
          await this.#compare(testCase, able, this.#writing(place, image, testCase)),
        )
      }
      for (const testCase of trees) {
        if (!isRoot) this.#bench.note(`Not measured: ${testCase.title}: it needs root.`)
        else results.written.push(await this.#treeCase(place, image, able, testCase))
      }
      for (const testCase of reading) {
        results.read.push(await this.#reading(image, servers, testCase))
      }
      for (const testCase of scratch) {
        results.scratch.push(await this.#scratch(place, image, servers, testCase))
      }
      fs.rmSync(path.dirname(image.file), { recursive: true })
    }
    return results
  }

  #writing(place, image, testCase) {
    const { ms } = this.#options
    // Whole blocks for each job, of the part that is measured.
    const unit = MiB * (testCase.jobs ?? 1)
    const bytes = Math.floor((image.sizeBytes * (1 - 1 / WARM_UP)) / unit) * unit
    const warmBytes = Math.floor((image.sizeBytes - bytes) / unit) * unit
    return {
      imageFor: server => copyFor(place, image, server),
      async measure({ file }) {
        const warm = await write(file, { from: bytes, bytes: warmBytes }, testCase, { ms, place })
        const result = await write(file, { from: 0, bytes }, testCase, { ms, place })
        return { ...result, writtenBytes: warm.coveredBytes + result.coveredBytes }
      },
      verify: (copy, { writtenBytes }) => verifyWritten(copy, writtenBytes),
    }
  }

  async #treeCase(place, image, servers, testCase) {
    const tree = makeTree(place, Math.min(TREE_BYTES, Math.floor(image.sizeBytes * TREE_SHARE)))
    const result = await this.#compare(testCase, servers, {
      imageFor: server => copyFor(place, image, server),
      measure: mounted => copyIn(mounted, tree),
      verify: copy => verifyTree(place, copy, tree),
    })
    fs.rmSync(tree.dir, { recursive: true })
    const title = `${testCase.title} (${(tree.bytes / 1e6).toFixed(0)} MB)`
    return { ...result, case: { ...testCase, title } }
  }

  /** Finds the best settings first, which also warms up all that is not part of the servers; then come the rounds. */
  async #compare(testCase, servers, work) {
    const { calibratePasses, rounds } = this.#options
    const setting = this.#options['qsd-setting']
    const entries = servers
      .filter(server => !server.family || !setting || server.setting === setting)
      .map(server => ({ server, writable: true, tried: [], runs: [] }))
    for (let pass = 0; pass < calibratePasses; pass++) {
      for (const entry of rotated(entries, pass)) {
        if (!entry.server.family && pass > 0) continue
        const result = await this.#once(testCase, entry, work, { isVerified: !entry.server.family })
        if (result) entry.tried.push(result.value)
      }
    }
    const calibration = []
    const taken = entries.filter(({ server }) => !server.family)
    for (const family of new Set(servers.map(server => server.family).filter(Boolean))) {
      // Take the best pass: disturbances mostly make a run slower.
      const tried = entries
        .filter(({ server, failed }) => server.family === family && !failed)
        .map(entry => ({ entry, setting: entry.server.setting, value: Math.max(...entry.tried) }))
        .sort((a, b) => b.value - a.value)
      if (tried.length === 0) continue
      const [{ entry, setting }] = tried
      const { title } = entry.server
      taken.push(entry)
      calibration.push(calibrationOf(title, tried))
      this.#bench.say(`  ${testCase.id}: ${title} at its best with: ${setting}`)
    }
    await this.#rounds(testCase, taken, work, rounds)
    return { case: testCase, calibration, entries: taken.filter(e => !e.failed).map(figures) }
  }

  async #reading(image, servers, testCase) {
    const { ms, rounds } = this.#options
    const { note } = this.#bench
    const entries = servers
      .filter(({ id }) => id === 'vimgfs')
      .flatMap(server => [
        {
          ...{ server, id: 'vimgfs', title: 'mounted read-write', runs: [] },
          writable: testCase.writable ?? true,
        },
        { server, id: 'read-only', title: 'mounted read-only', writable: false, runs: [] },
      ])
    await this.#rounds(
      testCase,
      entries,
      {
        imageFor: () => image,
        async measure({ file, image: { sizeBytes } }) {
          await read(file, sizeBytes, testCase, { ms: ms / 2, note })
          return read(file, sizeBytes, testCase, { ms, note })
        },
      },
      rounds * READ_ROUNDS_FACTOR,
    )
    return { case: testCase, entries: entries.filter(e => !e.failed).map(figures) }
  }

  /** A scratch copy of an image, and a new image of the same size. */
  async #scratch(place, image, servers, testCase) {
    const fresh = await empty(place, image.sizeBytes)
    const entries = servers
      .filter(({ id }) => id === 'vimgfs')
      .flatMap(server => [
        { server, id: 'vimgfs', title: 'scratch copy', writable: 'scratch', runs: [], image },
        { server, id: 'fresh', title: 'new qcow2', writable: true, runs: [], image: fresh },
      ])
    const { measure, verify } = this.#writing(place, image, testCase)
    await this.#rounds(
      testCase,
      entries,
      {
        imageFor: (server, entry) => copyFor(place, entry.image, server),
        async measure(mounted, entry) {
          const result = await measure(mounted)
          if (entry.image === image) verifyShown(mounted.file, image, result.writtenBytes)
          return result
        },
        verify: (copy, result, entry) =>
          entry.image === image ? run('cmp', [copy.file, image.file]) : verify(copy, result),
      },
      this.#options.rounds,
    )
    fs.rmSync(path.dirname(fresh.file), { recursive: true })
    return { case: testCase, entries: entries.filter(e => !e.failed).map(figures) }
  }

  async #rounds(testCase, entries, work, rounds) {
    for (let round = 0; round < rounds; round++) {
      this.#bench.say(`  ${testCase.id}, round ${round + 1} of ${rounds}`)
      await this.#bench.disturbance.sample()
      for (const entry of rotated(entries, round)) {
        const result = await this.#once(testCase, entry, work, { isVerified: true })
        if (result) entry.runs.push(result)
      }
    }
  }

  /** Measures once. After its first failure in a case a server, or one of its settings, is left out of the case. */
  async #once(testCase, entry, { imageFor, measure, verify }, { isVerified }) {
    if (entry.failed) return
    const { server, writable } = entry
    const { context } = this.#bench
    let image
    let mounted
    try {
      image = await imageFor(server, entry)
      mounted = await mount(server, image, context, { writable })
      // A server may have fallen back to read-only.
      if (writable) await (await fs.promises.open(mounted.file, 'r+')).close()
      const result = await measure(mounted, entry)
      await mounted.stop()
      mounted = undefined
      if (verify && isVerified) await verify(image, result, entry)
      return result
    } catch (error) {
      entry.failed = true
      const name = [server.title, server.setting].filter(Boolean).join(', ')
      // An older daemon knows fewer settings: the last part of its message says which one it lacks.
      const isUnknown = server.setting && image && !mounted
      if (isUnknown) this.#bench.complain(`Left out: ${name}`, error.message.split(': ').at(-1))
      else this.#bench.complain(`${name} failed in ${testCase.id}`, error.message)
    } finally {
      if (mounted) await this.#bench.end(mounted)
      if (verify && image) fs.rmSync(path.dirname(image.file), { recursive: true, force: true })
    }
  }
}

function figures({ server, id = server.family ?? server.id, title = server.title, runs }) {
  return {
    id,
    title,
    setting: server.setting,
    values: runs.map(({ value }) => value),
    p50us: median(runs.map(({ p50us }) => p50us)),
    p99us: median(runs.map(({ p99us }) => p99us)),
  }
}
