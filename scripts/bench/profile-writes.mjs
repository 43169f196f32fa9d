/**
 * Shows where a server's time goes while it is written to: V8's profiles of all its threads, summed up by function. Waiting
 * for a request counts as the time of the function that waits. profile.mjs runs this.
 */
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { vmdkWriteCases, vmdkWriteImages } from './cases-vmdk.mjs'
import { writeCases, writeImages } from './cases.mjs'
import { GiB, MiB, copyFor } from './images.mjs'
import { write } from './measure.mjs'
import { CLI, mount, vimgfs } from './servers.mjs'
import { Workplace, start } from './workplace.mjs'

const DISK = 512 * MiB
const MAX_MS = 5000
const SHOWN = 16
const DIST = path.resolve(path.dirname(CLI), '..')

/** Profiles the write cases with these names, or all. */
export async function profileWrites(names) {
  const all = [...writeCases, ...vmdkWriteCases]
  const unknown = names.find(name => !all.some(({ id }) => id === name))
  if (unknown) throw new Error(`there is no write case '${unknown}'`)
  const place = new Workplace({ needBytes: 3 * GiB, note: text => console.log(text) })
  process.on('exit', () => place.cleanup())
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(130))
  for (const testCase of all) {
    if (names.length > 0 && !names.includes(testCase.id)) continue
    await profileCase(place, testCase)
  }
}

async function profileCase(place, testCase) {
  const images = vmdkWriteCases.includes(testCase) ? vmdkWriteImages : writeImages
  const image = await images[testCase.image].make(place, { size: 2 * DISK })
  const copy = await copyFor(place, image, vimgfs)
  const profiles = place.folder('profiles')
  const server = {
    ...vimgfs,
    launch({ image, mountPoint }) {
      // In front, so that the process that is started here is the server.
      const options = ['--cpu-prof', `--cpu-prof-dir=${profiles}`]
      const args = [...options, CLI, 'mount', '-f', '-q']
      return { child: start(process.execPath, [...args, image.file, mountPoint]) }
    },
  }
  const mounted = await mount(server, copy, { place }, { writable: true })
  const part = { from: 0, bytes: DISK }
  const { value } = await write(mounted.file, part, testCase, { ms: MAX_MS, place }).finally(
    mounted.stop,
  )
  console.log(`\n${testCase.title}: ${value.toFixed(0)} ${testCase.unit} while profiled`)
  for (const [name, ms, share] of longest(profiles)) {
    console.log(`${ms.toFixed(0).padStart(7)} ms ${share.toFixed(1).padStart(5)} %  ${name}`)
  }
  for (const { file } of [image, copy]) fs.rmSync(path.dirname(file), { recursive: true })
}

/** Returns the functions with the most self time, in all threads: [name, ms, percent]. */
function longest(folder) {
  const times = new Map()
  const files = fs.readdirSync(folder)
  // Node writes them when a thread ends. A server that ends with _exit writes none.
  if (files.length === 0) throw new Error('the server ended without writing its profiles')
  for (const file of files) {
    const { nodes, samples, timeDeltas } = JSON.parse(fs.readFileSync(path.join(folder, file)))
    const names = new Map(nodes.map(({ id, callFrame }) => [id, nameOf(callFrame)]))
    samples.forEach((id, i) => {
      const name = names.get(id)
      if (name !== '(idle)') times.set(name, (times.get(name) ?? 0) + timeDeltas[i] / 1000)
    })
  }
  const all = [...times.values()].reduce((sum, ms) => sum + ms, 0)
  const sorted = [...times].sort(([, a], [, b]) => b - a).slice(0, SHOWN)
  return sorted.map(([name, ms]) => [name, ms, (ms / all) * 100])
}

function nameOf({ functionName, url, lineNumber }) {
  const place = url.startsWith('file:') ? path.relative(DIST, fileURLToPath(url)) : url
  const name = functionName || '(anonymous)'
  return place ? `${name}  ${place}:${lineNumber + 1}` : name
}
