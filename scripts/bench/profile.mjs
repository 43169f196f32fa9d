/**
 * `npm run bench:profile` shows where the time of a read goes inside the server, without the kernel. The rest of a request's
 * time is the kernel's: waking threads, copying, page tables. `npm run bench:profile -- write [CASE…]` profiles a mounted
 * server while it is written to.
 */
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { CompiledSources } from '../compiled-sources.mjs'
import { profileWrites } from './profile-writes.mjs'

const code = new CompiledSources(fs.mkdtempSync(path.join(os.tmpdir(), 'vimgfs-code-')))
process.on('exit', () => code.remove())
await code.compile()
const load = name => import(code.moduleOf(`src/${name}`))
const { openChain } = await load('image/opening/open-chain.ts')
const { closeChain } = await load('image/opening/chain.ts')
const { catalogOf } = await load('image/catalog.ts')
const { ViewSet } = await load('image/reading/view-set.ts')
const { readView } = await load('image/reading/engine.ts')
const { inflateCluster } = await load('formats/inflate.ts')
const { pread } = await load('io/libc.ts')

const MIB = 2 ** 20
const CLUSTER = 64 * 1024
const DISK = 256 * MIB

const [kind, ...names] = process.argv.slice(2)
if (kind === 'write') await profileWrites(names)
else profileReads()

function profileReads() {
  const folder = fs.mkdtempSync(
    path.join(fs.existsSync('/dev/shm') ? '/dev/shm' : '/tmp', 'vimgfs-profile-'),
  )
  try {
    const raw = path.join(folder, 'disk.raw')
    fs.writeFileSync(raw, halfRandom(DISK))
    for (const [name, ...options] of [['plain'], ['packed', '-c']]) {
      const target = path.join(folder, `${name}.qcow2`)
      execFileSync('qemu-img', ['convert', '-O', 'qcow2', ...options, raw, target], {
        timeout: 120_000,
      })
    }
    profile(folder, 'plain.qcow2', [
      ['4 KiB, random: lookup', 4096, ({ view, at }) => view.driver.lookup(at, 4096)],
      [
        '4 KiB, random: pread of the file',
        4096,
        ({ fd, target, at }) => pread(fd, target, 4096, at),
      ],
      ['4 KiB, random: all', 4096, ({ view, target, at }) => readView(view, target, 0, 4096, at)],
      ['1 MiB: lookup', MIB, ({ view, at }) => view.driver.lookup(at, MIB)],
      ['1 MiB: pread of the file', MIB, ({ fd, target, at }) => pread(fd, target, MIB, at)],
      ['1 MiB: all', MIB, ({ view, target, at }) => readView(view, target, 0, MIB, at)],
    ])
    profile(folder, 'packed.qcow2', [
      ['zlib cluster: lookup', CLUSTER, ({ view, at }) => view.driver.lookup(at, CLUSTER)],
      ['zlib cluster: pread of the file', CLUSTER, c => readPacked(c)],
      ['zlib cluster: pread and inflate', CLUSTER, c => inflateCluster(readPacked(c), c.cluster)],
      [
        'zlib cluster: all',
        CLUSTER,
        ({ view, target, at }) => readView(view, target, 0, CLUSTER, at),
      ],
    ])
  } finally {
    fs.rmSync(folder, { recursive: true })
  }
}

/** Returns random hexadecimal digits. deflate halves them; nothing repeats, so unpacking is pure Huffman decoding. */
function halfRandom(bytes) {
  const parts = []
  for (let done = 0; done < bytes; done += MIB) parts.push(randomBytes(MIB / 2).toString('hex'))
  return parts.join('')
}

function readPacked({ view, fd, at, packed }) {
  const extent = view.driver.lookup(at, CLUSTER)
  const { at: place, packedBytes } = extent.packed
  return packed.subarray(0, pread(fd, packed, packedBytes, place))
}

function profile(folder, image, rows) {
  const chain = openChain(path.join(folder, image))
  const views = new ViewSet(chain.layers, { metadataBytes: 32 * MIB, clusterBytes: MIB })
  const context = {
    view: views.viewOf(catalogOf(chain).entries[0]),
    fd: chain.layers[0].fd,
    target: Buffer.allocUnsafeSlow(MIB),
    cluster: Buffer.allocUnsafeSlow(CLUSTER),
    packed: Buffer.allocUnsafeSlow(2 * CLUSTER),
  }
  for (const [title, bytes, read] of rows) {
    const places = DISK / bytes
    // After the first round the caches are warm, and the compiler has seen all code.
    const times = Array.from({ length: 6 }, () => {
      const count = Math.min(places, 100_000)
      const start = performance.now()
      for (let i = 0; i < count; i++) {
        context.at = Math.floor(Math.random() * places) * bytes
        read(context)
      }
      return ((performance.now() - start) * 1000) / count
    }).slice(1)
    const median = times.sort((a, b) => a - b)[2]
    const speed = bytes === 4096 ? '' : `${(bytes / median / 1).toFixed(0).padStart(8)} MB/s`
    console.log(`${title.padEnd(36)}${median.toFixed(2).padStart(9)} µs${speed}`)
  }
  closeChain(chain)
}
