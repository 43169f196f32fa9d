/** Images on exports of NBD servers: read, and written with the order that a power cut of the server needs. */
import { randomFillSync } from 'node:crypto'
import { closeSync, openSync, readFileSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { run as check } from '../../src/cli/check.js'
import { run as compare } from '../../src/cli/compare.js'
import { run as convert } from '../../src/cli/convert.js'
import { run as info } from '../../src/cli/info.js'
import { run as map } from '../../src/cli/map.js'
import { run as snapshot } from '../../src/cli/snapshot.js'
import { openImage } from '../../src/image/open-image.js'
import { remoteStore, kindOfAddress } from '../../src/sources/registry.js'
import { configureSources, DEFAULT_TIMEOUT_MS } from '../../src/sources/settings.js'
import { Random } from '../soundness/steps.js'
import { runHere } from '../support/command.js'
import { attempt, needs, run, tempFolder } from '../support/run.js'
import { nbdkit, nbdServer, qemuNbd } from './nbd-server.js'

const M = 2 ** 20
const SIZE = 12 * M
const skip = needs('qemu-nbd', 'qemu-img', 'qemu-io')
const skipKit = needs('nbdkit', 'qemu-img')

/** Puts an image at the start of a file of noise: what was never written is not zeros. */
async function onNoise(folder: string, sizeBytes: number): Promise<string> {
  const image = join(folder, 'image.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, String(SIZE)])
  await run('qemu-io', ['-c', 'write -q -P 0x31 1M 2M', '-c', 'write -q -P 0x32 9M 70k', image])
  await run('qemu-img', ['snapshot', '-c', 'one', image])
  const file = join(folder, 'export')
  const noise = randomFillSync(Buffer.alloc(M))
  const fd = openSync(file, 'w')
  for (let at = 0; at < sizeBytes; at += M) writeSync(fd, noise, 0, M, at)
  const bytes = readFileSync(image)
  writeSync(fd, bytes, 0, bytes.length, 0)
  closeSync(fd)
  return file
}

async function raw(file: string, folder: string, ...more: string[]): Promise<Buffer> {
  const out = join(folder, 'out.raw')
  await run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', ...more, file, out])
  return readFileSync(out)
}

t.test('the commands that read', skip, async t => {
  const folder = tempFolder(t)
  const file = await onNoise(folder, 16 * M)
  const { address } = await nbdServer(t, folder, qemuNbd(file, '-r'))
  for (const [command, args, says] of [
    [info, [address], /file format: qcow2/],
    [map, [address], /0x100000/],
    [check, [address], /no errors found/],
    [snapshot, ['list', address], /\bone\b/],
    [compare, [address, 'image.qcow2'], /identical/],
    [compare, [`${address}`, 'image.qcow2@one'], /identical/],
    [convert, ['-q', '-O', 'raw', address, 'copy.raw'], /^$/],
  ] as const) {
    const { code, stdout, stderr } = await runHere(command, args, folder)
    t.equal(code, 0, `${args.join(' ')}: ${stderr}`)
    t.match(stdout, says)
  }
  t.ok(readFileSync(join(folder, 'copy.raw')).equals(await raw(file, folder)))
})

/** Servers that differ in what they can. */
const SERVERS: Record<string, (file: string) => (socket: string) => [string, ...string[]]> = {
  'qemu-nbd': file => qemuNbd(file),
  'qemu-nbd, one client': file => qemuNbd(file, '-e', '1'),
  nbdkit: file => nbdkit('file', file),
  'nbdkit, simple replies': file => nbdkit('--no-sr', 'file', file),
  'nbdkit, blocks of 4096 bytes': file =>
    nbdkit(
      ...['--filter=blocksize-policy', 'file', file, 'blocksize-minimum=4096'],
      ...['blocksize-maximum=65536', 'blocksize-preferred=4096', 'blocksize-error-policy=error'],
    ),
}

for (const [name, serve] of Object.entries(SERVERS)) {
  const needed = name.startsWith('nbdkit') ? skipKit : skip
  t.test(`${name}: a qcow2 image is written, also where noise was before`, needed, async t => {
    const folder = tempFolder(t)
    const file = await onNoise(folder, 24 * M)
    const model = await raw(file, folder)
    const server = await nbdServer(t, folder, serve(file))
    const image = await openImage(server.address, { access: 'write' })
    const random = new Random(7)
    for (let step = 0; step < 120; step++) {
      const length = random.pick([512, 4096, 65536, 200 * 1024]) - random.pick([0, 0, 1, 100])
      const at = random.below(SIZE - length)
      const kind = random.below(10)
      if (kind === 0) image.disk.flush()
      else if (kind === 1) {
        image.disk.zero(at, length)
        model.fill(0, at, at + length)
      } else {
        const bytes = Buffer.alloc(length, 1 + random.below(255))
        image.disk.write(bytes, at)
        bytes.copy(model, at)
      }
      if (step % 40 === 39) {
        const bytes = Buffer.alloc(SIZE)
        image.disk.read(bytes, 0)
        if (!bytes.equals(model)) t.fail(`step ${step}: another content`)
      }
    }
    image.close()
    await server.end()
    t.equal((await attempt('qemu-img', ['check', '-q', '-f', 'qcow2', file])).code, 0)
    t.ok((await raw(file, folder)).equals(model), 'QEMU reads what was written')
    t.equal((await raw(file, folder, '-l', 'one'))[2 * M], 0x31, 'the snapshot is there')
  })
}

t.test('a raw disk: holes, and parts of blocks', skipKit, async t => {
  const folder = tempFolder(t)
  const file = join(folder, 'raw')
  writeFileSync(file, '')
  truncateSync(file, 4 * M + 512)
  const { address, end } = await nbdServer(t, folder, nbdkit('file', file), '')
  const image = await openImage(address, { access: 'write', format: 'raw' })
  t.equal(image.disk.name, 'disk.raw', 'an export without a name')
  t.equal(image.disk.sizeBytes, 4 * M + 512)
  image.disk.write(Buffer.alloc(700, 9), 2 * M - 100)
  image.disk.write(Buffer.alloc(3, 8), 4 * M + 509)
  t.throws(() => image.disk.write(Buffer.alloc(4), 4 * M + 509), { name: 'RangeError' })
  const data = [...image.disk.extents()].filter(({ kind }) => kind === 'data')
  t.ok(data.length > 0 && data.reduce((sum, { length }) => sum + length, 0) < M, 'holes are seen')
  image.close()
  await end()
  const bytes = readFileSync(file)
  t.equal(bytes.length, 4 * M + 512)
  t.ok(bytes.subarray(2 * M - 100, 2 * M + 600).every(byte => byte === 9))
  t.equal(bytes[2 * M + 600], 0)
  t.equal(bytes[4 * M + 511], 8)
})

t.test(
  'at the end of the export there is no space left, and the image stays sound',
  skip,
  async t => {
    const folder = tempFolder(t)
    const file = await onNoise(folder, 5 * M)
    const server = await nbdServer(t, folder, qemuNbd(file))
    const image = await openImage(server.address, { access: 'write' })
    const kept = Buffer.alloc(65536, 0x77)
    image.disk.write(kept, 4 * M)
    const fill = () => {
      for (let at = 5 * M; at < 9 * M; at += 65536) image.disk.write(Buffer.alloc(65536, 1), at)
    }
    t.throws(fill, { code: 'ENOSPC' })
    image.disk.write(Buffer.alloc(512, 0x78), 4 * M)
    image.close()
    await server.end()
    t.equal((await attempt('qemu-img', ['check', '-q', '-f', 'qcow2', file])).code, 0)
    const bytes = await raw(file, folder)
    t.ok(bytes.subarray(4 * M + 512, 4 * M + 65536).equals(kept.subarray(512)))
    t.equal(bytes[4 * M], 0x78)
  },
)

t.test('a server that is started anew between flushes is connected to again', skip, async t => {
  const folder = tempFolder(t)
  const file = await onNoise(folder, 24 * M)
  const server = await nbdServer(t, folder, qemuNbd(file))
  const image = await openImage(server.address, { access: 'write' })
  const bytes = Buffer.alloc(4096)
  for (let round = 1; round <= 4; round++) {
    image.disk.write(Buffer.alloc(4096, round), 5 * M)
    image.disk.flush()
    await server.end('SIGKILL')
    await server.start()
    if (round % 2 === 0) {
      image.disk.read(bytes, 5 * M)
      t.equal(bytes[17], round, 'read after the end of a server')
    }
  }
  image.disk.write(Buffer.alloc(4096, 9), 6 * M)
  image.close()
  await server.end()
  t.equal((await raw(file, folder))[6 * M], 9)
  t.equal((await attempt('qemu-img', ['check', '-q', '-f', 'qcow2', file])).code, 0)
})

t.test(
  'a server that ends with writes that were not flushed: the disk fails for good',
  skip,
  async t => {
    for (let seed = 1; seed <= 6; seed++) {
      const folder = tempFolder(t)
      const file = await onNoise(folder, 24 * M)
      const server = await nbdServer(t, folder, qemuNbd(file))
      const image = await openImage(server.address, { access: 'write' })
      const random = new Random(seed)
      const flushed = Buffer.alloc(65536, 0x55)
      image.disk.write(flushed, 4 * M)
      image.disk.flush()
      for (let n = random.below(6); n >= 0; n--) {
        image.disk.write(Buffer.alloc(5000, n + 1), 6 * M + random.below(4 * M))
      }
      await server.end('SIGKILL')
      await server.start()
      const failed = { code: 'CORRUPT', message: /connection to its server was lost/ }
      const bytes = Buffer.alloc(512)
      if (random.chance(0.5)) t.throws(() => image.disk.flush(), failed, `seed ${seed}: flush`)
      else t.throws(() => image.disk.read(bytes, M), failed, `seed ${seed}: read`)
      t.throws(() => image.disk.read(bytes, 4 * M), failed, 'lost bytes never read as old ones')
      t.throws(() => image.disk.write(bytes, 4 * M), { name: 'ImageError' })
      t.throws(() => image.close(), { name: 'ImageError' }, 'closing says so')
      await server.end()
      const { code } = await attempt('qemu-img', ['check', '-q', '-f', 'qcow2', file])
      t.ok(code === 0 || code === 3, `seed ${seed}: leaks at worst, not ${code}`)
      t.ok((await raw(file, folder)).subarray(4 * M, 4 * M + 65536).equals(flushed))
    }
  },
)

t.test('an export that comes back with another size is not used any more', skip, async t => {
  const folder = tempFolder(t)
  const file = await onNoise(folder, 24 * M)
  const server = await nbdServer(t, folder, qemuNbd(file))
  const image = await openImage(server.address)
  await server.end('SIGKILL')
  truncateSync(file, 23 * M)
  await server.start()
  t.throws(() => image.disk.read(Buffer.alloc(512), M), { message: /or the export has changed/ })
  image.close()
})

t.test('what cannot be opened or written is refused in one line', skip, async t => {
  const folder = tempFolder(t)
  const file = await onNoise(folder, 16 * M)
  const readOnly = await nbdServer(t, folder, qemuNbd(file, '-r'))
  await t.rejects(openImage(readOnly.address, { access: 'write' }), {
    code: 'READ_ONLY',
    message: 'its server gives it only for reading',
  })
  const cases: [string, RegExp][] = [
    [readOnly.address.replace('disk1', 'other'), /has no such export; look at/],
    ['nbd+unix:///x', /names no socket; write nbd:/],
    [`nbd+unix:///x?socket=${join(folder, 'none')}`, /there is no such socket/],
    [`nbd+unix:///x?socket=${file}`, /nobody listens there/],
    ['nbd://127.0.0.1:1/x', /nobody listens there/],
    ['nbd://me:secret@127.0.0.1/x', /takes no user and no password/],
    ['nbd://127.0.0.1/x?y=z', /parts that mean nothing/],
    ['nbd:///x', /names no host/],
  ]
  for (const [address, says] of cases) {
    const { code, stderr } = await runHere(info, [address], folder)
    t.equal(code, 1, address)
    t.match(stderr, says)
    t.match(stderr, /^vimgfs: [^\n]+\n$/)
    t.notMatch(stderr, /secret/)
  }
})

/** The answers of a server that does not keep to the protocol. */
const GREETING = 'NBDMAGIC'
const HOSTILE: Record<string, (socket: string) => string> = {
  'no NBD server': () => 's.write("SSH-2.0-x".repeat(9))',
  'the old form': () => `s.write(Buffer.concat([Buffer.from("${GREETING}"), Buffer.alloc(200)]))`,
}

for (const [name, answer] of Object.entries(HOSTILE)) {
  t.test(`${name}: refused at once`, async t => {
    const folder = tempFolder(t)
    const server = await nbdServer(t, folder, socket => [
      process.execPath,
      '-e',
      `require("net").createServer(s => { s.on("error", () => {}); ${answer(socket)} }).listen(${JSON.stringify(socket)})`,
    ])
    const { code, stderr } = await runHere(info, [server.address], folder)
    t.equal(code, 1)
    t.match(stderr, /no NBD server answers there|old form of the protocol/)
  })
}

t.test('a server that never answers is given up after --timeout', async t => {
  const folder = tempFolder(t)
  const socket = join(folder, 'silent')
  // The command blocks this thread, so nobody answers.
  const server = createServer().listen(socket)
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    configureSources({ timeoutMs: DEFAULT_TIMEOUT_MS })
  })
  const address = `nbd+unix:///?socket=${socket}`
  const { code, stderr } = await runHere(info, ['--timeout', '1', address], folder)
  t.equal(code, 1)
  t.match(stderr, /^vimgfs: nbd\+unix:[^\n]* its server cannot be used: [^\n]*\n$/)
})

t.test('the store of an export reads the same in pieces of any size', skip, async (t: Test) => {
  const folder = tempFolder(t)
  const file = await onNoise(folder, 3 * M)
  const { address } = await nbdServer(t, folder, qemuNbd(file))
  const kind = kindOfAddress(address)
  const opened = kind?.open(address, 'read')
  if (!opened?.source || !kind) throw new Error('no source')
  const { path, fd, source } = opened
  const store = remoteStore({ path, fd, sizeBytes: 3 * M, source })
  const want = readFileSync(file)
  const random = new Random(3)
  for (let n = 0; n < 50; n++) {
    const at = random.below(3 * M)
    const length = random.below(2 * M)
    const target = Buffer.alloc(length + 7, 0xee)
    const got = store.read(target, 7, length, at)
    if (got !== Math.min(length, 3 * M - at)) t.fail(`${got} of ${length} at ${at}`)
    if (!target.subarray(7, 7 + got).equals(want.subarray(at, at + got))) t.fail(`${at}`)
    if (!target.subarray(7 + got).every(byte => byte === 0xee)) t.fail('written past the end')
  }
  kind.close(source)
  closeSync(fd)
})

t.test('a disk in an archive on an export', { ...skip, ...needs('tar') }, async t => {
  const folder = tempFolder(t)
  const image = await onNoise(folder, 12 * M)
  await run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'qcow2', '-c', image, 'c.qcow2'], {
    cwd: folder,
  })
  const names = ['image.qcow2', 'c.qcow2']
  await run('tar', ['-cf', 'a.tar', ...names, 'export'], { cwd: folder })
  const { address } = await nbdServer(t, folder, qemuNbd(join(folder, 'a.tar'), '-r'))
  for (const name of names) {
    for (const format of ['raw', 'qcow2']) {
      const args = ['-q', '-O', format, '--force', `${address}::${name}`, 'copy']
      const { code, stderr } = await runHere(convert, args, folder)
      t.equal(code, 0, stderr)
      const same = ['compare', '-f', format, '-F', 'qcow2', 'copy', name]
      t.equal((await attempt('qemu-img', same, { cwd: folder })).code, 0, `${name} to ${format}`)
    }
    t.equal((await runHere(compare, [`${address}::${name}`, name], folder)).code, 0, name)
  }
})
