/** Snapshots of a mounted image: its files come and go, and hold what was written before. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { statSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import t from 'tap'
import type { Test } from 'tap'
import { type LiveMount, serve } from '../support/live.js'
import { HERE, noFuse, runIn, sharedFolder } from '../support/mount.js'
import { needs, run } from '../support/run.js'

const MIB = 2 ** 20
const skip = { ...needs('qemu-img', 'qemu-io'), ...noFuse() }

async function makeImage(t: Test): Promise<string> {
  const file = join(sharedFolder(t), 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', file, '8M'])
  return file
}

const sh = (script: string) => runIn(HERE, 'sh', ['-ec', script])
/** Fills the first MiB of the disk with a letter. */
const fill = (mounted: LiveMount, letter: string, flags = '') =>
  sh(
    `head -c ${MIB} /dev/zero | tr '\\0' ${letter} | dd of=${mounted.file('disk.raw')} bs=64k conv=notrunc,fsync ${flags} status=none`,
  )
/** Returns the letters that the first MiB of a file has. */
const letters = async (mounted: LiveMount, name: string) =>
  (await sh(`head -c ${MIB} ${mounted.file(name)} | tr -s 'a-z'`)).trim()
const names = async (mounted: LiveMount) => (await sh(`ls ${mounted.folder}`)).trim().split('\n')

async function isSound(t: Test, image: string): Promise<void> {
  t.match(await run('qemu-img', ['check', image]), /No errors were found/)
}

t.test('many changes leave nothing behind in memory', skip, async t => {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  const mounted = await serve(t, await makeImage(t), { threads: 1 })
  const used = () => {
    // The first time only finds what can be freed.
    collect()
    collect()
    const { heapUsed, arrayBuffers, external } = process.memoryUsage()
    return { heapUsed, arrayBuffers, external }
  }
  const change = async (times: number) => {
    for (let i = 0; i < times; i++) {
      await mounted.live.createSnapshot('one', { replace: true })
      // A worker takes a new world with its next request.
      await readFile(mounted.file('.vimgfs/status.json'))
    }
  }
  await change(10)
  const before = used()
  await change(70)
  const after = used()
  for (const key of ['heapUsed', 'arrayBuffers', 'external'] as const) {
    const grown = after[key] - before[key]
    t.ok(grown < 12 * MIB, `${key} has grown by ${grown} bytes`)
  }
  t.equal(await mounted.end(), true)
})

t.test('a check whose command has gone ends, and the mount goes on', skip, async t => {
  const image = await makeImage(t)
  // Checks of larger files get a thread.
  await run('fallocate', ['-o', String(statSync(image).size), '-l', '64M', image])
  const mounted = await serve(t, image)
  const { live } = mounted
  const gone = new AbortController()
  const checks = [live.check(() => {}, gone.signal), live.check(() => {}, gone.signal)]
  gone.abort()
  for (const check of checks) await t.rejects(check, { name: 'MountError' })
  await fill(mounted, 'a')
  await live.createSnapshot('one')
  t.match(await live.check(), { corruptions: 0, checkErrors: 0 })
  t.equal(await mounted.end(), true)
  await isSound(t, image)
})

t.test('taken and deleted', skip, async t => {
  const image = await makeImage(t)
  const mounted = await serve(t, image)
  const { live } = mounted
  t.same(await names(mounted), ['disk.raw'])
  await fill(mounted, 'a')
  await live.createSnapshot('one')
  t.same(await names(mounted), ['disk.raw', 'disk@one.raw'])
  t.equal(await letters(mounted, 'disk@one.raw'), 'a')
  await fill(mounted, 'b', 'oflag=direct')
  t.equal(await letters(mounted, 'disk@one.raw'), 'a')
  await live.createSnapshot('two')
  await fill(mounted, 'c')
  t.equal(await letters(mounted, 'disk@two.raw'), 'b')
  t.equal(await letters(mounted, 'disk@one.raw'), 'a')
  t.same(
    live.snapshots().map(({ name, id }) => `${id} ${name}`),
    ['1 one', '2 two'],
  )
  await live.deleteSnapshots([{ tag: 'one' }])
  t.same(await names(mounted), ['disk.raw', 'disk@two.raw'])
  await t.rejects(sh(`cat ${mounted.file('disk@one.raw')}`), /No such file/)
  // The same name again, for something else.
  await live.deleteSnapshots([{ tag: 'two' }])
  await live.createSnapshot('two')
  t.equal(await letters(mounted, 'disk@two.raw'), 'c')
  await live.createSnapshot('two', { replace: true })
  t.same(await names(mounted), ['disk.raw', 'disk@two.raw'])
  await t.rejects(live.createSnapshot('two'), /it has a snapshot "two" already/)
  await t.rejects(live.deleteSnapshots([{ tag: 'none' }]), /it has no snapshot "none"/)
  t.equal(await mounted.end(), true)
  t.same(mounted.log, [])
  await isSound(t, image)
})

t.test('gone back to', skip, async t => {
  const image = await makeImage(t)
  const mounted = await serve(t, image)
  const { live } = mounted
  await fill(mounted, 'a')
  await live.createSnapshot('one')
  await fill(mounted, 'b')
  t.equal(await letters(mounted, 'disk.raw'), 'b')
  const tag = await live.revert({ tag: 'one' }, false)
  t.match(tag, /^before-revert-/)
  t.equal(await letters(mounted, 'disk.raw'), 'a', 'no cached page stays')
  t.equal(await letters(mounted, `disk@${tag}.raw`), 'b')
  await fill(mounted, 'c')
  t.equal(await live.revert({ tag: `${tag}` }, true), undefined)
  t.equal(await letters(mounted, 'disk.raw'), 'b')
  t.equal(await letters(mounted, 'disk@one.raw'), 'a')
  t.equal(await mounted.end(), true)
  await isSound(t, image)
})

t.test('a file that is open keeps its snapshot', skip, async t => {
  const image = await makeImage(t)
  const mounted = await serve(t, image)
  const { live } = mounted
  await fill(mounted, 'a')
  await live.createSnapshot('one')
  const reader = spawn(
    'sh',
    ['-c', 'exec < "$0"; echo open; read line', mounted.file('disk@one.raw')],
    {
      stdio: ['pipe', 'pipe', 'inherit'],
    },
  )
  t.teardown(() => reader.kill())
  await once(reader.stdout, 'data')
  const inUse = { message: /snapshot "one" is in use: .* has .*disk@one.raw open/ }
  await t.rejects(live.deleteSnapshots([{ tag: 'one' }]), inUse)
  await t.rejects(live.deleteSnapshots([{ tag: 'one' }]), {
    message: new RegExp(`${reader.pid}`),
  })
  const wait = new AbortController()
  const deleted = live.deleteSnapshots([{ tag: 'one' }], { wait: wait.signal })
  // Others need not wait for that.
  await live.createSnapshot('two')
  reader.kill()
  t.same(
    (await deleted).map(({ id }) => id),
    ['1'],
  )
  // A map without a descriptor holds the file, too.
  const mapped = `
    const fs = require('node:fs')
    const koffi = require('koffi')
    const mmap = koffi
      .load('libc.so.6')
      .func('void *mmap(void *address, size_t bytes, int protection, int flags, int fd, int64_t at)')
    const fd = fs.openSync(process.argv[1])
    mmap(null, 4096, 1, 1, fd, 0)
    fs.closeSync(fd)
    console.log('mapped')
    process.stdin.resume()`
  const mapper = spawn(process.execPath, ['-e', mapped, mounted.file('disk@two.raw')], {
    cwd: fileURLToPath(new URL('../..', import.meta.url)),
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  t.teardown(() => mapper.kill())
  await once(mapper.stdout, 'data')
  await t.rejects(live.deleteSnapshots([{ tag: 'two' }]), {
    message: new RegExp(`"two" is in use: .*${mapper.pid}`),
  })
  mapper.kill()
  const writer = spawn(
    'sh',
    ['-c', 'exec 3<> "$0"; echo open; read line', mounted.file('disk.raw')],
    {
      stdio: ['pipe', 'pipe', 'inherit'],
    },
  )
  t.teardown(() => writer.kill())
  await once(writer.stdout, 'data')
  await t.rejects(live.revert({ tag: 'two' }, true), /the disk is in use/)
  t.same(await names(mounted), ['disk.raw', 'disk@two.raw'])
  writer.kill()
})

t.test('a larger disk', skip, async t => {
  const image = await makeImage(t)
  const mounted = await serve(t, image)
  const { live } = mounted
  await fill(mounted, 'a')
  t.same(await live.resize(16 * MIB), { beforeBytes: 8 * MIB, afterBytes: 16 * MIB })
  t.equal((await sh(`stat -c %s ${mounted.file('disk.raw')}`)).trim(), String(16 * MIB))
  await live.createSnapshot('large')
  t.equal((await sh(`stat -c %s ${mounted.file('disk@large.raw')}`)).trim(), String(16 * MIB))
  await t.rejects(live.resize(8 * MIB), /it cannot become smaller/)
  t.equal(await mounted.end(), true)
  await isSound(t, image)
})

t.test('a check while it is mounted', skip, async t => {
  const image = await makeImage(t)
  const mounted = await serve(t, image)
  const { live } = mounted
  await fill(mounted, 'a')
  await live.createSnapshot('one')
  await fill(mounted, 'b')
  t.match(await live.check(), { corruptions: 0, leaks: 0, checkErrors: 0 })
  const told = await live.usage({ names: [{ tag: 'one' }], mapCells: 8 }, () => {})
  t.same(told.problems, [], 'all that was written is counted')
  const { exclusiveBytes = 0 } = told.chosen ?? {}
  t.ok(exclusiveBytes > 0)
  t.equal(told.snapshots[0]?.exclusiveBytes, exclusiveBytes)
  await fill(mounted, 'c')
  t.equal(await letters(mounted, 'disk@one.raw'), 'a')
  t.equal(await mounted.end(), true)
  await isSound(t, image)
})

t.test('a disk that is only read', skip, async t => {
  const image = await makeImage(t)
  const before = statSync(image).mtimeMs
  const mounted = await serve(t, image, { options: ['ro'] })
  const { live } = mounted
  for (const refused of [() => live.createSnapshot('one'), () => live.resize(16 * MIB)]) {
    await t.rejects(async () => void (await refused()), {
      message: /for reading only/,
      context: { hint: /-o rw/ },
    })
  }
  t.match(await live.check(), { corruptions: 0, leaks: 0 })
  t.equal(statSync(image).mtimeMs, before)
})
