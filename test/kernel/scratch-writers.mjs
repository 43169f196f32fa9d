/**
 * Writes random places of several files by several threads, and compares all of them with a model at the end.
 *
 * Usage: node scratch-writers.mjs JSON, an object with
 *   files: [{ path, base }]  the files, and files with the bytes that they have at first
 *   threads, steps, seed
 * It prints "same", or what is wrong.
 */
import fs from 'node:fs'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'

/** The bytes that one thread owns in a row: neither sectors nor pages divide them. */
const OWN_BYTES = 3 * 512 + 100
const HOT_BLOCKS = 64

function* numbers(seed) {
  for (let state = seed * 2654435761 + 1; ; ) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    yield state >>> 8
  }
}

const isOwn = (block, thread, threads) => block % threads === thread

/** Writes, reads back, and returns what each changed range has now. */
function work({ files, threads, steps, seed, thread }) {
  const random = numbers(seed + thread)
  const below = limit => random.next().value % limit
  const opened = files.map(({ path }) => fs.openSync(path, 'r+'))
  const sizes = files.map(({ path }) => fs.statSync(path).size)
  const model = files.map(() => new Map())
  for (let step = 0; step < steps; step++) {
    const index = below(files.length)
    const blocks = Math.floor(sizes[index] / OWN_BYTES)
    const wanted = below(2) === 0 ? below(Math.min(HOT_BLOCKS, blocks)) : below(blocks)
    const block = wanted - (wanted % threads) + thread
    if (block >= blocks || !isOwn(block, thread, threads)) continue
    const bytes = model[index].get(block) ?? readBlock(files[index].base, block)
    const from = below(4) === 0 ? 0 : below(OWN_BYTES)
    const length = from === 0 ? OWN_BYTES : 1 + below(OWN_BYTES - from)
    // Zeros are written, too.
    bytes.fill(below(8) === 0 ? 0 : 1 + below(255), from, from + length)
    fs.writeSync(opened[index], bytes, from, length, block * OWN_BYTES + from)
    model[index].set(block, bytes)
    if (below(40) === 0) fs.fsyncSync(opened[index])
    const again = Buffer.alloc(OWN_BYTES)
    fs.readSync(opened[index], again, 0, OWN_BYTES, block * OWN_BYTES)
    if (!again.equals(bytes))
      throw new Error(`${files[index].path}: block ${block} reads wrong at once`)
  }
  for (const fd of opened) fs.closeSync(fd)
  return model.map(blocks => [...blocks])
}

function readBlock(path, block) {
  const bytes = Buffer.alloc(OWN_BYTES)
  const fd = fs.openSync(path)
  fs.readSync(fd, bytes, 0, OWN_BYTES, block * OWN_BYTES)
  fs.closeSync(fd)
  return bytes
}

async function main(task) {
  const expected = task.files.map(({ base }) => fs.readFileSync(base))
  const all = Array.from({ length: task.threads }, (_, thread) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: { ...task, thread } })
    return new Promise((resolve, reject) => {
      worker.once('message', resolve)
      worker.once('error', reject)
    })
  })
  for (const model of await Promise.all(all)) {
    for (const [index, blocks] of model.entries()) {
      for (const [block, bytes] of blocks) expected[index].set(bytes, block * OWN_BYTES)
    }
  }
  for (const [index, { path }] of task.files.entries()) {
    // Past the page cache, so that the server's bytes are compared.
    const fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_DIRECT)
    const found = Buffer.alloc(expected[index].length)
    for (let at = 0; at < found.length; )
      at += fs.readSync(fd, found, at, Math.min(2 ** 20, found.length - at), at)
    fs.closeSync(fd)
    if (found.equals(expected[index])) continue
    const wrong = found.findIndex((byte, at) => byte !== expected[index][at])
    throw new Error(`${path}: byte ${wrong} is ${found[wrong]}, not ${expected[index][wrong]}`)
  }
  console.log('same')
}

if (isMainThread) await main(JSON.parse(process.argv[2]))
else parentPort.postMessage(work(workerData))
