/** Images at http:// against a server with faults: the bytes of a model, however the network behaves. */
import fs from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { openImage } from '../../src/image/open-image.js'
import { closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { blockBytesOf, CacheFolder } from '../../src/sources/cache/folder.js'
import { remoteStats } from '../../src/sources/registry.js'
import { configureSources } from '../../src/sources/settings.js'
import { noise } from '../fixtures/model.js'
import { tempFolder } from '../support/run.js'
import { type Rules, Web } from './web.js'

const BLOCK = blockBytesOf(0)
const SIZE = 40 * BLOCK + 1000
const DISK = noise(SIZE, 7)
/** One that the model of raw disks knows by its boot sector. */
DISK.writeUInt16LE(0xaa55, 510)

/** The network thread takes over the environment when it starts. */
const NETRC = join(tempFolder(t), 'netrc')
process.env.NETRC = NETRC

interface Setup {
  readonly web: Web
  readonly folder: string
  readonly cache: string
  readonly address: string
}

async function setup(t: Test, rules: Rules = {}): Promise<Setup> {
  const [folder, cache] = [tempFolder(t), tempFolder(t)]
  fs.writeFileSync(join(folder, 'disk.raw'), DISK)
  const web = await Web.start(t, folder)
  await web.set(rules)
  configureSources({ cacheFolder: cache, timeoutMs: 20_000, isOffline: false, cacheBytes: 2 ** 30 })
  return { web, folder, cache, address: web.address('disk.raw') }
}

const open = (address: string) => openImage(address, { format: 'raw' })

type Disk = Awaited<ReturnType<typeof open>>['disk']

/** Reads at places that a seed chooses, and compares with the model. */
function compare(t: Test, disk: Disk, seed: number, reads: number, most = 3 * BLOCK) {
  let state = seed
  const random = (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
  for (let i = 0; i < reads; i++) {
    const at = random(SIZE)
    const target = Buffer.alloc(1 + random(Math.min(most, SIZE - at)))
    disk.read(target, at)
    if (!target.equals(DISK.subarray(at, at + target.length))) t.fail(`${target.length} at ${at}`)
  }
}

function whole(disk: Disk): Buffer {
  const bytes = Buffer.alloc(SIZE)
  for (let at = 0; at < SIZE; at += BLOCK)
    disk.read(bytes.subarray(at, Math.min(at + BLOCK, SIZE)), at)
  return bytes
}

t.test('it reads what is asked for, and the second time one request is enough', async t => {
  const { web, address } = await setup(t)
  const first = await open(address)
  t.equal(first.disk.sizeBytes, SIZE)
  first.disk.read(Buffer.alloc(10), 20 * BLOCK)
  const { requests, bytes, log } = await web.seen()
  t.ok(requests <= 3 && bytes <= 4 * BLOCK, `${requests} requests, ${bytes} bytes`)
  t.ok(log.every(({ method, headers }) => method === 'GET' && headers.range !== undefined))
  compare(t, first.disk, 1, 50)
  t.ok(whole(first.disk).equals(DISK))
  first.close()
  await web.seen()
  const second = await open(address)
  t.ok(whole(second.disk).equals(DISK))
  second.close()
  t.equal((await web.seen()).requests, 1)
  configureSources({ isOffline: true })
  const offline = await open(address)
  t.ok(whole(offline.disk).equals(DISK))
  offline.close()
  t.equal((await web.seen()).requests, 0)
})

t.test('prefetching fetches all that is missing, once', async t => {
  const { web, address } = await setup(t)
  configureSources({ isPrefetching: true })
  t.teardown(() => configureSources({ isPrefetching: false }))
  const image = await open(address)
  const chain = openChain(address, { format: 'raw' })
  t.teardown(() => closeChain(chain))
  const counts = () =>
    remoteStats(chain.layers) as Record<'prefetchedBytes' | 'prefetchBytes', number>
  while (counts().prefetchedBytes < SIZE) await new Promise(setImmediate)
  t.match(counts(), { prefetchedBytes: SIZE, prefetchBytes: SIZE })
  await web.set({ always: 'status 403' })
  t.ok(whole(image.disk).equals(DISK))
  image.close()
})

t.test('a sequential reader needs few requests, a random one few bytes', async t => {
  const { web, address } = await setup(t)
  const image = await open(address)
  await web.seen()
  for (const block of [30, 5, 17, 38, 11]) image.disk.read(Buffer.alloc(4096), block * BLOCK)
  const random = await web.seen()
  t.ok(random.bytes <= 5 * BLOCK, `${random.bytes} bytes`)
  image.close()
  configureSources({ cacheFolder: undefined })
  const again = await open(address)
  await web.seen()
  t.ok(whole(again.disk).equals(DISK))
  const { requests } = await web.seen()
  t.ok(requests < 20, `${requests} requests for 41 blocks`)
  again.close()
})

t.test('faults that pass never show', async t => {
  const kinds = [
    'status 503 after 0',
    'status 429',
    'drop',
    'short',
    'wrong range',
    'gzip',
    'no ranges',
  ]
  const { web, address } = await setup(t)
  for (const seed of [1, 2]) {
    configureSources({ cacheFolder: tempFolder(t) })
    await web.set({ random: { seed, percent: 0, kinds } })
    const image = await open(address)
    await web.set({ random: { seed, percent: 30, kinds } })
    compare(t, image.disk, seed, 40)
    t.ok(whole(image.disk).equals(DISK), `seed ${seed}`)
    image.close()
  }
})

for (const obeysIfMatch of [true, false]) {
  t.test(`an object that changes is never mixed; If-Match ${obeysIfMatch}`, async t => {
    const { web, address, folder } = await setup(t, { obeysIfMatch })
    const image = await open(address)
    image.disk.read(Buffer.alloc(BLOCK), 4 * BLOCK)
    fs.writeFileSync(join(folder, 'disk.raw'), noise(SIZE, 8))
    await web.set({ version: 2 })
    t.throws(
      () => image.disk.read(Buffer.alloc(BLOCK), 20 * BLOCK),
      /has been changed on the server/,
    )
    t.throws(
      () => image.disk.read(Buffer.alloc(BLOCK), 4 * BLOCK),
      /has been changed/,
      'nor what is cached',
    )
    image.close()
    const anew = await open(address)
    const bytes = Buffer.alloc(BLOCK)
    anew.disk.read(bytes, 4 * BLOCK)
    t.ok(bytes.equals(noise(SIZE, 8).subarray(4 * BLOCK, 5 * BLOCK)))
    anew.close()
  })
}

t.test('without an ETag the time and the size tell that it has changed', async t => {
  const { web, address } = await setup(t, { etag: 'none' })
  const image = await open(address)
  await web.set({ version: 2 })
  t.throws(() => image.disk.read(Buffer.alloc(BLOCK), 20 * BLOCK), /has been changed/)
  image.close()
})

t.test('without any validator nothing is kept for the next time', async t => {
  const { web, address, cache } = await setup(t, { etag: 'none', hasTime: false })
  const image = await open(address)
  t.ok(whole(image.disk).equals(DISK))
  image.close()
  t.same(CacheFolder.find(cache)?.list() ?? [], [])
  await web.seen()
})

t.test('rot in the cache is fetched anew', async t => {
  const { address, cache, web } = await setup(t)
  const first = await open(address)
  whole(first.disk)
  first.close()
  const [object] = CacheFolder.open(cache).list()
  const data = join(object?.folder as string, 'data')
  const rotten = fs.openSync(data, 'r+')
  fs.writeSync(rotten, Buffer.from('rot'), 0, 3, 9 * BLOCK + 77)
  const index = fs.openSync(join(object?.folder as string, 'index'), 'r+')
  fs.writeSync(index, Buffer.from([1]), 0, 1, 8 * 12)
  await web.seen()
  const second = await open(address)
  t.ok(whole(second.disk).equals(DISK))
  // While it is open, too.
  fs.writeSync(rotten, Buffer.from('rot'), 0, 3, 30 * BLOCK)
  t.ok(whole(second.disk).equals(DISK))
  second.close()
  fs.closeSync(rotten)
  fs.closeSync(index)
  t.equal((await web.seen()).requests, 4)
})

t.test('a cache that is full gives up blocks, and every byte is right', async t => {
  const { address, cache } = await setup(t)
  configureSources({ cacheBytes: 10 * BLOCK })
  const image = await open(address)
  t.ok(whole(image.disk).equals(DISK))
  compare(t, image.disk, 3, 60)
  image.close()
  const [object] = CacheFolder.open(cache).list()
  t.ok((object?.allocatedBytes ?? 0) <= 10 * BLOCK, `${object?.allocatedBytes} bytes`)
})

t.test('what is refused is refused in one line', async t => {
  const { web, address, folder } = await setup(t)
  fs.writeFileSync(join(folder, 'empty'), '')
  const refused = async (name: string, message: RegExp) => {
    await t.rejects(open(name), { name: 'ImageError', message })
  }
  await refused(web.address('none'), /no such file \(HTTP 404\)/)
  await refused(address.replace('http://', 'http://me:secret@'), /has a password in it/)
  await refused('http://127.0.0.1:1/x', /refuses the connection/)
  await refused('nbdx://h/x', /images at nbdx:\/\/ cannot be opened/)
  for (const [fault, message] of [
    ['no ranges', /sends no ranges/],
    ['status 401', /refuses access \(HTTP 401\)/],
    ['status 403', /refuses access \(HTTP 403\)/],
    ['headers', /headers have no end/],
    ['huge', /which no disk has/],
  ] as const) {
    await web.set({ always: fault })
    await refused(address, message)
    await web.set({ always: 'none' })
  }
})

t.test('a server that sends more than was asked for is left', async t => {
  const { web, address } = await setup(t)
  const image = await open(address)
  await web.set({ next: ['long', 'long'] })
  t.ok(whole(image.disk).equals(DISK))
  image.close()
})

for (const fault of ['silent', 'stall', 'status 500', 'status 403']) {
  t.test(`${fault}: reads fail after the timeout, and work when it is over`, async t => {
    const { web, address } = await setup(t)
    configureSources({ timeoutMs: 600 })
    const image = await open(address)
    await web.set({ always: fault })
    t.throws(() => image.disk.read(Buffer.alloc(BLOCK), 20 * BLOCK), { name: 'ImageError' })
    await web.set({ always: 'none' })
    t.ok(whole(image.disk).equals(DISK))
    image.close()
  })
}

t.test('the login comes from .netrc, and is read anew after a refusal', async t => {
  const { web, address } = await setup(t, { login: 'me:right' })
  fs.writeFileSync(NETRC, 'machine 127.0.0.1 login me password wrong\n')
  await t.rejects(open(address), { message: /HTTP 401/, context: { hint: /\.netrc/ } })
  fs.writeFileSync(
    NETRC,
    'machine other login x password y\nmachine 127.0.0.1\n login me\n password "right"\n',
  )
  const image = await open(address)
  await web.set({ login: 'me:new' })
  t.throws(() => image.disk.read(Buffer.alloc(BLOCK), 20 * BLOCK), /HTTP 401/)
  fs.writeFileSync(NETRC, 'default login me password new')
  t.ok(whole(image.disk).equals(DISK))
  image.close()
})

t.test('redirects', async t => {
  const { web, address } = await setup(t)
  const other = await Web.start(t, tempFolder(t))
  await web.set({
    redirects: { '/moved': '/disk.raw', '/round': '/round', '/file': 'file:///etc/passwd' },
  })
  await other.set({
    redirects: { '/port': address, '/near': address.replace('127.0.0.1', 'localhost') },
  })
  for (const name of [web.address('moved'), other.address('port')]) {
    const image = await open(name)
    t.ok(whole(image.disk).equals(DISK), name)
    image.close()
  }
  await t.rejects(open(web.address('round')), /in a circle/)
  await t.rejects(open(web.address('file')), /redirects to file:/)
  await t.rejects(open(other.address('near')), /an address of this machine/)
})
