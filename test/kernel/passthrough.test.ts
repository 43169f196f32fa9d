/** FUSE passthrough: which files have it, and that they read and write as all others do, also under faults. */
import {
  appendFileSync,
  constants,
  copyFileSync,
  mkdirSync,
  readFileSync,
  renameSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { release } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import {
  attemptIn,
  call,
  HERE,
  hasEnded,
  isRoot,
  kill,
  type Mount,
  mount,
  noFuse,
  noLibfuse,
  ordinaryUser,
  overLibfuse,
  runIn,
  sharedFolder,
  until,
  vimgfs,
} from '../support/mount.js'
import { needs, run } from '../support/run.js'

const MIB = 2 ** 20
const SIZE = 2 * MIB
const FUZZ = fileURLToPath(new URL('./open-modes.mjs', import.meta.url))
const BESIDE = fileURLToPath(new URL('./beside-writers.mjs', import.meta.url))
const isLong = process.env.VIMGFS_TEST_LONG === '1'

function noPassthrough(): { skip?: string } {
  if (!isRoot) return { skip: 'only root may pass files through' }
  const [major = 0, minor = 0] = release().split('.').map(Number)
  return major > 6 || (major === 6 && minor >= 9) ? {} : { skip: 'needs Linux 6.9' }
}
const skip = { ...needs('qemu-img', 'qemu-io'), ...noFuse(), ...noPassthrough() }

interface Served {
  readonly name: string
  readonly passthrough: boolean
  readonly why?: string
}

const served = async ({ place, file }: Mount): Promise<Served[]> =>
  JSON.parse((await attemptIn(place, 'cat', [file('.vimgfs/status.json')])).stdout).files

/** Makes a raw image with bytes that tell their places apart. */
function rawImage(folder: string, name = 'disk.img', bytes = SIZE): string {
  const image = join(folder, name)
  const words = Array.from({ length: bytes / 4 }, (_, i) => i + 1)
  writeFileSync(image, Buffer.from(Uint32Array.from(words).buffer))
  return image
}

const RAW = ['--format', 'raw']
const FORCED = ['-o', 'ro,passthrough=on']
const fileOf = (image: string) => `${basename(image).replace(/\.[a-z0-9]+$/, '')}.raw`
/** How many bytes the server has read. */
const readBytes = async ({ place, file }: Mount): Promise<number> =>
  JSON.parse((await attemptIn(place, 'cat', [file('.vimgfs/stats.json')])).stdout).bytesRead

t.test('what is passed through, and what is not', skip, async t => {
  const folder = sharedFolder(t)
  const raw = rawImage(folder)
  const odd = rawImage(folder, 'odd.img')
  appendFileSync(odd, 'tail')
  const base = rawImage(folder, 'base.img')
  const over = join(folder, 'over.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', over])

  const cases: [title: string, image: string, args: string[], expected: (string | true)[]][] = [
    ['an odd size', odd, [...RAW, ...FORCED], [true]],
    ['raw with scratch', raw, [...RAW, '-o', 'scratch'], ['scratch']],
    ['an overlay that is written', over, [], ['notes each write', true]],
  ]
  for (const [title, image, args, expected] of cases) {
    const at = await mount(t, image, { args })
    const found = (await served(at)).slice(0, expected.length)
    t.equal(found.length, expected.length, title)
    const before = await readBytes(at)
    for (const [i, want] of expected.entries()) {
      t.equal(found[i]?.passthrough, want === true, `${title}: ${JSON.stringify(found[i])}`)
      if (want !== true) t.match(found[i]?.why, want, title)
      const name = found[i]?.name ?? ''
      t.equal(await call(HERE, 'difference', at.file(name), image === odd ? odd : raw), -1, title)
    }
    const isPast = (await readBytes(at)) - before < SIZE
    t.equal(isPast, expected[0] === true, title)
    await run('umount', [at.folder])
  }
})

t.test('who may not have it is served as before', { ...skip, ...noLibfuse() }, async t => {
  const image = rawImage(sharedFolder(t))
  await run('chmod', ['666', image])
  const other = rawImage(sharedFolder(t))
  for (const [place, why, file] of [
    [await ordinaryUser(t), 'root of the first user namespace', image],
    [overLibfuse(HERE), 'libfuse', other],
  ] as const) {
    const at = await mount(t, file, { place, args: RAW })
    t.equal(await call(place, 'difference', at.file('disk.raw'), file), -1)
    const [first] = await served(at)
    t.match(first?.why, why, place.name)
  }
})

/** Fills a disk's mount with work by handles of all kinds. */
async function useAllModes(t: Test, image: string, args: string[], seed: number, steps: number) {
  const at = await mount(t, image, { args })
  const words = [FUZZ, at.file('disk.raw'), String(seed), String(steps)]
  const { stdout, stderr } = await attemptIn(HERE, process.execPath, words)
  t.equal(stdout + stderr, 'ok\n', `${args.join(' ')}, seed ${seed}`)
  await run('umount', [at.folder])
  t.ok(await hasEnded(t, at.pid))
}

t.test('handles of all kinds see one disk, by each way', skip, async t => {
  const rounds = isLong ? 20 : 1
  for (let round = 0; round < rounds; round++) {
    const images = []
    for (const way of ['auto', 'off']) {
      const image = rawImage(sharedFolder(t))
      images.push(image)
      const steps = isLong ? 20_000 : 800
      await useAllModes(t, image, [...RAW, '-o', `passthrough=${way}`], 19 + round, steps)
      t.equal(readFileSync(image).length, SIZE, 'the file has its size')
    }
    const [passed = '', plain = ''] = images
    t.ok(readFileSync(passed).equals(readFileSync(plain)), 'both ways have written the same')
  }
})

t.test('readers beside writers see what was written before, or meanwhile', skip, async t => {
  const { O_DIRECT, O_RDONLY, O_RDWR } = constants
  for (const way of ['auto', 'off']) {
    const image = rawImage(sharedFolder(t))
    const at = await mount(t, image, { args: [...RAW, '-o', `passthrough=${way}`] })
    const disk = at.file('disk.raw')
    const kinds = [O_RDONLY, O_RDONLY | O_DIRECT, O_RDWR]
    // The kernel reads the bytes of the file itself.
    const readers = [...kinds.map(flags => `${disk}:${flags}`), `${image}:${O_RDONLY}`]
    const words = [BESIDE, disk, '7', isLong ? '100000' : '1000', ...readers]
    const { stdout, stderr } = await attemptIn(HERE, process.execPath, words)
    t.equal(stdout + stderr, 'ok\n', way)
    await run('umount', [at.folder])
  }
})

t.test('a read-only file refuses to be written', skip, async t => {
  const folder = sharedFolder(t)
  const raw = rawImage(folder)
  const over = join(folder, 'over.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', raw, '-F', 'raw', over])
  const before = readFileSync(raw)
  const at = await mount(t, over)
  const [, base] = await served(at)
  t.match(base, { passthrough: true })
  for (const words of [['conv=notrunc'], ['oflag=append', 'conv=notrunc'], []]) {
    const to = ['if=/dev/zero', `of=${at.file(base?.name ?? '')}`, 'count=1', ...words]
    const { code, stderr } = await attemptIn(HERE, 'dd', to)
    t.equal(code, 1)
    t.match(stderr, 'Read-only file system')
  }
  await call(HERE, 'mapWrite', at.file('over.raw'), 100, 'changed', 0)
  t.ok(readFileSync(raw).equals(before), 'the backing file is as it was')
})

t.test('what is written through a map is seen, and synced at the end', skip, async t => {
  const image = rawImage(sharedFolder(t))
  const at = await mount(t, image, { args: RAW })
  const disk = at.file('disk.raw')
  const stamp = async () => (await runIn(HERE, 'stat', ['-c', '%Y.%y', disk])).trim()
  await run('touch', ['-d', '2001-01-01', image])
  const before = await stamp()
  t.equal(await call(HERE, 'mapWrite', disk, 8192, 'through a map', 0), 0)
  t.ok(await until(async () => (await stamp()) !== before), 'the time of the last write follows')
  t.equal(readFileSync(image).toString('latin1', 8192, 8205), 'through a map')
  t.equal(await call(HERE, 'mapped', disk), await call(HERE, 'sha256', image))
  await run('umount', [at.folder])
})

t.test('the disk becomes larger while it is read', skip, async t => {
  const image = rawImage(sharedFolder(t))
  const at = await mount(t, image, { args: RAW })
  t.equal((await vimgfs(HERE, ['resize', image, '+1M'])).code, 0)
  t.equal(await call(HERE, 'difference', at.file('disk.raw'), image), -1)
  t.equal(readFileSync(image).length, SIZE + MIB)
  t.match(await served(at), [{ passthrough: true }])
})

t.test('a file that is cut off, longer, or replaced', skip, async t => {
  const folder = sharedFolder(t)
  for (const [what, change] of [
    ['cut off', (image: string) => truncateSync(image, SIZE / 2)],
    ['longer', (image: string) => appendFileSync(image, 'more')],
  ] as const) {
    const image = rawImage(folder, `${what}.img`)
    const at = await mount(t, image, { args: RAW })
    const read = [
      `if=${at.file(fileOf(image))}`,
      'of=/dev/null',
      'bs=64k',
      'skip=31',
      'status=none',
    ]
    t.equal((await attemptIn(HERE, 'dd', read)).code, 0)
    change(image)
    const { code } = await attemptIn(HERE, 'dd', read)
    t.equal(code, what === 'cut off' ? 1 : 0, what)
    t.match((await served(at))[0], { passthrough: false, why: 'longer or shorter' })
  }
  const image = rawImage(folder, 'replaced.img')
  const copy = join(folder, 'copy.img')
  copyFileSync(image, copy)
  const at = await mount(t, image, { args: RAW })
  writeFileSync(`${image}.new`, Buffer.alloc(SIZE, 9))
  renameSync(`${image}.new`, image)
  t.equal(await call(HERE, 'difference', at.file(fileOf(image)), copy), -1, 'it is the old file')
})

t.test('a read-only image that changes: openings fail until it is opened again', skip, async t => {
  const folder = sharedFolder(t)
  const image = rawImage(folder)
  const at = await mount(t, image, { args: FORCED })
  const disk = at.file('disk.raw')
  const holder = await call(HERE, 'difference', disk, image)
  t.equal(holder, -1)
  writeFileSync(`${image}.new`, Buffer.alloc(SIZE, 9))
  renameSync(`${image}.new`, image)
  const cat = () => attemptIn(HERE, 'cat', [disk], { encoding: 'latin1' } as object)
  t.ok(await until(async () => (await cat()).code === 1), 'EIO')
  const refreshed = await vimgfs(HERE, ['refresh', at.folder])
  t.equal(refreshed.code, 0, refreshed.stderr)
  t.equal(await call(HERE, 'difference', disk, image), -1, 'the new file')
  t.match(await served(at), [{ passthrough: true }])
  t.match(await runIn(HERE, 'df', ['--output=size', '-B1', at.folder]), String(SIZE))
})

t.test('no space on the file system of the image', skip, async t => {
  const folder = sharedFolder(t)
  const small = join(folder, 'small')
  mkdirSync(small)
  await run('mount', ['-t', 'tmpfs', '-o', 'size=1M', 'none', small])
  t.teardown(() => run('umount', ['-l', small]))
  const image = join(small, 'disk.img')
  writeFileSync(image, '')
  truncateSync(image, SIZE)
  const at = await mount(t, image, { args: RAW })
  const disk = at.file('disk.raw')
  const fill = ['if=/dev/zero', `of=${disk}`, 'bs=64k', 'conv=notrunc,fsync', 'status=none']
  const { code, stderr } = await attemptIn(HERE, 'dd', fill)
  t.equal(code, 1)
  t.match(stderr, 'No space left on device')
  t.match(await served(at), [{ passthrough: true }])
  t.equal(await call(HERE, 'difference', disk, image), -1, 'reading goes on')
  await run('umount', [at.folder])
})

t.test('the server is killed', skip, async t => {
  const image = rawImage(sharedFolder(t))
  const at = await mount(t, image, { args: RAW })
  const disk = at.file('disk.raw')
  t.equal(
    (await attemptIn(HERE, 'dd', [`of=${disk}`, 'if=/dev/zero', 'count=1', 'conv=notrunc'])).code,
    0,
  )
  kill(at.pid, 'SIGKILL')
  t.ok(await hasEnded(t, at.pid))
  t.equal((await attemptIn(HERE, 'head', ['-c', '1', disk])).code, 1, 'nothing is opened any more')
  t.equal((await vimgfs(HERE, ['umount', at.folder])).code, 0)
  const again = await mount(t, image, { args: RAW })
  t.equal(await call(HERE, 'difference', again.file('disk.raw'), image), -1)
  t.equal(readFileSync(image).readUInt32LE(0), 0, 'what was written is there')
})
