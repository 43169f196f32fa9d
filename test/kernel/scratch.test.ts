/** Scratch copies: programs write the disk and its snapshots, and the image stays as it is. */
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import {
  attemptIn,
  hasEnded,
  HERE,
  isRoot,
  kill,
  mount,
  type Mount,
  mountFolder,
  NO_LOG,
  noFuse,
  noLibfuse,
  ordinaryUser,
  overLibfuse,
  type Place,
  runIn,
  sharedFolder,
  vimgfs,
  withoutNotices,
} from '../support/mount.js'
import { attempt, needs, needsRoot, run } from '../support/run.js'
import { convert, makeImage, sha256 } from './images.js'

const WRITERS = fileURLToPath(new URL('scratch-writers.mjs', import.meta.url))
const MIB = 2 ** 20
const SCRATCH = ['-o', 'scratch']
const skip = { ...needs('qemu-img', 'qemu-io', 'fallocate'), ...noFuse() }
const qemuImg = (...args: string[]) => run('qemu-img', args)

/** An image, and the raw content of each file of its mount by name. */
interface Shown {
  readonly file: string
  readonly files: ReadonlyMap<string, string>
  readonly args?: readonly string[]
}

async function plainImage(folder: string): Promise<Shown> {
  const { file } = await makeImage(folder)
  return { file, files: await contents(folder, file, ['one', 'two']) }
}

async function contents(folder: string, file: string, tags: readonly string[]) {
  const files = new Map([['disk.raw', await convert(file, join(folder, 'disk.base'))]])
  for (const tag of tags) {
    files.set(`disk@${tag}.raw`, await convert(file, join(folder, `${tag}.base`), tag))
  }
  return files
}

/** An overlay without snapshots on an image with some. */
async function chainImage(folder: string): Promise<Shown> {
  const { file: base } = await makeImage(folder)
  const lower = join(folder, 'lower.qcow2')
  copyFileSync(base, lower)
  const files = new Map([
    ['disk@lower@one.raw', await convert(lower, join(folder, 'one.base'), 'one')],
  ])
  await qemuImg('create', '-q', '-f', 'qcow2', '-b', 'lower.qcow2', '-F', 'qcow2', base)
  await run('qemu-io', ['-c', 'write -q -P 0x31 5M 128k', base])
  files.set('disk.raw', await convert(base, join(folder, 'disk.base')))
  return { file: base, files }
}

async function otherImage(folder: string, format: string, ...options: string[]): Promise<Shown> {
  const { file } = await makeImage(folder)
  const inner = join(folder, 'other')
  mkdirSync(inner)
  const other = join(inner, `disk.${format}`)
  await qemuImg('convert', '-O', format, ...options, file, other)
  const raw = join(folder, 'disk.base')
  await qemuImg('convert', '-f', format, '-O', 'raw', other, raw)
  return { file: other, files: new Map([['disk.raw', raw]]), args: ['--format', format] }
}

async function encryptedImage(folder: string): Promise<Shown> {
  const raw = join(folder, 'disk.base')
  writeFileSync(raw, Buffer.alloc(8 * MIB, 'plain text '))
  const secret = join(folder, 'secret')
  writeFileSync(secret, 'open sesame')
  const file = join(folder, 'disk.qcow2')
  const create = ['create', '-f', 'qcow2', '-o', 'encrypt.format=luks,encrypt.iter-time=10']
  await runIn(HERE, process.execPath, [
    ...[join(WRITERS, '../../../dist/cli/main.js'), ...create],
    ...['--passphrase-file', secret, file, `${8 * MIB}`],
  ])
  await runIn(HERE, process.execPath, [
    ...[join(WRITERS, '../../../dist/cli/main.js'), 'convert', '-n', '-f', 'raw', '-O', 'qcow2'],
    ...['--target-passphrase-file', secret, raw, file],
  ])
  return { file, files: new Map([['disk.raw', raw]]), args: ['--passphrase-file', secret] }
}

const KINDS: Record<string, (folder: string) => Promise<Shown>> = {
  'qcow2 with snapshots': plainImage,
  'a chain with a snapshot below': chainImage,
  raw: folder => otherImage(folder, 'raw'),
  'compressed qcow2': folder => otherImage(folder, 'qcow2', '-c'),
  'streamOptimized vmdk': folder => otherImage(folder, 'vmdk', '-o', 'subformat=streamOptimized'),
  VHD: folder => otherImage(folder, 'vpc', '-o', 'force_size=on'),
  'encrypted qcow2': encryptedImage,
}

/** All that must stay as it is. */
const state = (file: string) => {
  const { mtimeNs, size, ino } = statSync(file, { bigint: true })
  return { mtimeNs, size, ino, sha: sha256(readFileSync(file)) }
}

async function writing(
  t: Test,
  shown: Shown,
  place: Place,
  steps: number,
  args: readonly string[] = [],
) {
  if (isRoot) chownSync(shown.file, place.uid, place.uid)
  // Write-protected, so that nothing could be written by mistake.
  chmodSync(shown.file, 0o444)
  const before = state(shown.file)
  const scratch = ['--format', 'qcow2', ...(shown.args ?? []), ...SCRATCH, ...args]
  const mounted = await mount(t, shown.file, { place, args: scratch })
  t.match(mounted.printed.stdout, /scratch copies/)
  const files = [...shown.files].map(([name, base]) => ({ path: mounted.file(name), base }))
  const task = JSON.stringify({ files, threads: 4, steps, seed: 7 })
  t.equal((await runIn(place, process.execPath, [WRITERS, task])).trim(), 'same')
  return { mounted, before }
}

async function unmounted(t: Test, { place, folder, pid }: Mount) {
  const { code, stderr } = await vimgfs(place, ['umount', folder])
  t.same([code, withoutNotices(stderr)], [0, ''])
  t.ok(await hasEnded(t, pid))
}

for (const [kind, make] of Object.entries(KINDS)) {
  t.test(`random writes by several threads to ${kind}`, skip, async t => {
    const folder = sharedFolder(t)
    const shown = await make(folder)
    const names = readdirSync(dirname(shown.file))
    const { mounted, before } = await writing(t, shown, HERE, 600)
    await unmounted(t, mounted)
    t.same(state(shown.file), before, 'the image keeps every byte and its time')
    t.same(readdirSync(dirname(shown.file)), names, 'nothing is left beside it')
    const again = await mount(t, shown.file, { args: [...(shown.args ?? []), '-o', 'ro'] })
    for (const [name, base] of shown.files) await run('cmp', [base, again.file(name)])
  })
}

t.test('by an ordinary user', skip, async t => {
  const place = await ordinaryUser(t)
  const shown = await plainImage(sharedFolder(t))
  const { mounted, before } = await writing(t, shown, place, 300)
  await unmounted(t, mounted)
  t.same(state(shown.file), before)
})

t.test('over libfuse', { ...skip, ...noLibfuse() }, async t => {
  const shown = await plainImage(sharedFolder(t))
  const { mounted, before } = await writing(t, shown, overLibfuse(HERE), 500)
  await unmounted(t, mounted)
  t.same(state(shown.file), before)
})

/** Runs `dd`, which says how far it came. */
const dd = (place: Place, ...words: string[]) =>
  attemptIn(place, 'dd', ['conv=notrunc,fsync', 'status=none', ...words])

t.test('scratch-size bounds all files together, and discarding gives back', skip, async t => {
  const { file, files } = await plainImage(sharedFolder(t))
  const { mtimeNs } = state(file)
  const mounted = await mount(t, file, { args: ['-o', 'scratch,scratch-size=8M,commit=1'] })
  const [disk, one, two] = ['disk.raw', 'disk@one.raw', 'disk@two.raw'].map(mounted.file)
  const write = (name: string, mib: number, at = 0) =>
    dd(HERE, 'if=/dev/urandom', `of=${name}`, 'bs=64k', `count=${mib * 16}`, `seek=${at * 16}`)
  t.equal((await write(disk!, 4)).code, 0)
  t.equal((await write(one!, 3)).code, 0)
  const full = await write(two!, 2)
  t.match(full, { code: 1, stderr: /No space left on device/ })
  t.equal((await write(disk!, 4)).code, 0, 'what is there already can be written')
  await run('cmp', ['-n', `${8 * MIB}`, '-i', `${8 * MIB}`, two!, files.get('disk@two.raw')!])
  const one2 = sha256(readFileSync(files.get('disk@one.raw')!).subarray(3 * MIB))
  t.equal(await rest(one!, 3), one2, 'the rest of a file reads as before')
  await run('fallocate', ['--punch-hole', '--offset', '0', '--length', '4M', disk!])
  t.equal((await write(two!, 2, 4)).code, 0, 'what is discarded can be written again')
  t.match(await write(one!, 4, 10), { code: 1, stderr: /No space left on device/ })
  await unmounted(t, mounted)
  t.same(state(file).mtimeNs, mtimeNs)
})

/** The bytes from `mib` on, read past the page cache. */
async function rest(file: string, mib: number): Promise<string> {
  const script = `dd if=${file} bs=64k skip=${mib * 16} iflag=direct status=none | sha256sum`
  return (await run('sh', ['-c', script])).split(' ')[0] as string
}

t.test('a full file system', { ...skip, ...needsRoot(), ...needs('mkfs.ext4') }, async t => {
  const folder = sharedFolder(t)
  const { file, files } = await plainImage(folder)
  const before = state(file)
  const small = join(folder, 'small')
  mkdirSync(small)
  await run('truncate', ['-s', '8M', join(folder, 'small.ext4')])
  await run('mkfs.ext4', ['-q', '-F', join(folder, 'small.ext4')])
  await run('mount', ['-o', 'loop', join(folder, 'small.ext4'), small])
  t.teardown(() => attempt('umount', ['-l', small]))
  const mounted = await mount(t, file, { args: ['-o', `scratch,scratch-dir=${small}`] })
  const [disk, one] = ['disk.raw', 'disk@one.raw'].map(mounted.file)
  const zeros = join(folder, 'zeros')
  writeFileSync(zeros, Buffer.alloc(MIB, 1))
  t.equal((await dd(HERE, `if=${zeros}`, `of=${one}`, 'bs=1M')).code, 0)
  const full = await dd(HERE, 'if=/dev/urandom', `of=${disk}`, 'bs=64k', 'count=300', 'seek=320')
  t.match(full, { code: 1, stderr: /No space left on device/ })
  await run('cmp', ['-n', `${MIB}`, one!, zeros])
  t.equal(await rest(one!, 1), sha256(readFileSync(files.get('disk@one.raw')!).subarray(MIB)))
  await run('cmp', ['-n', `${20 * MIB}`, disk!, files.get('disk.raw')!])
  t.equal(
    (await dd(HERE, `if=${zeros}`, `of=${one}`, 'bs=1M')).code,
    0,
    'what is there already can be written',
  )
  t.equal(
    JSON.parse(readFileSync(join(mounted.folder, '.vimgfs/status.json'), 'utf8')).failure,
    null,
  )
  await unmounted(t, mounted)
  t.same(state(file), before)
  t.same(readdirSync(small), ['lost+found'], 'nothing is left there')
})

/** The files without names that a server has open. */
const unnamed = (pid: number): string[] =>
  readdirSync(`/proc/${pid}/fd`)
    .map(fd => `/proc/${pid}/fd/${fd}`)
    .filter(link => readlinkSync(link).endsWith(' (deleted)'))
    .filter(link => statSync(link).isFile() && !readlinkSync(link).startsWith('/memfd:'))

t.test(
  'nothing readable is in the file of an encrypted image',
  { ...skip, ...needsRoot() },
  async t => {
    const shown = await encryptedImage(sharedFolder(t))
    const mounted = await mount(t, shown.file, { args: [...(shown.args ?? []), ...SCRATCH] })
    const marked = join(dirname(shown.file), 'marked')
    writeFileSync(marked, Buffer.alloc(MIB, 'a secret line\n'))
    t.equal(
      (await dd(HERE, `if=${marked}`, `of=${mounted.file('disk.raw')}`, 'bs=1M', 'seek=2')).code,
      0,
    )
    const [file, ...others] = unnamed(mounted.pid)
    t.same(others, [])
    const bytes = readFileSync(file!)
    t.ok(bytes.length > MIB)
    t.notOk(bytes.includes('secret'))
    t.notOk(bytes.includes('plain text'))
    await run('cmp', ['-n', `${MIB}`, '-i', `${2 * MIB}:0`, mounted.file('disk.raw'), marked])
  },
)

t.test(
  'files are made when a program writes, and nothing is left after kill -9',
  { ...skip, ...needsRoot() },
  async t => {
    const { file } = await plainImage(sharedFolder(t))
    const before = state(file)
    const names = readdirSync(dirname(file))
    const mounted = await mount(t, file, { args: SCRATCH })
    await run('sha256sum', [mounted.file('disk.raw'), mounted.file('disk@one.raw')])
    t.same(unnamed(mounted.pid), [], 'reading makes none')
    t.equal(
      (await dd(HERE, 'if=/dev/urandom', `of=${mounted.file('disk@one.raw')}`, 'bs=1M', 'count=4'))
        .code,
      0,
    )
    t.equal(unnamed(mounted.pid).length, 1)
    kill(mounted.pid, 'SIGKILL')
    t.ok(await hasEnded(t, mounted.pid))
    t.same(readdirSync(dirname(file)), names)
    t.same(state(file), before)
  },
)

t.test('modes, locks, and what else the mount shows', { ...skip, ...needsRoot() }, async t => {
  const { file } = await plainImage(sharedFolder(t))
  chmodSync(file, 0o640)
  const mounted = await mount(t, file, { args: SCRATCH })
  const mode = (name: string) => (statSync(mounted.file(name)).mode & 0o777).toString(8)
  t.same([mode('disk.raw'), mode('disk@one.raw')], ['640', '640'])
  await run('chmod', ['600', mounted.file('disk@one.raw')])
  t.same([mode('disk.raw'), mode('disk@one.raw'), mode('disk@two.raw')], ['640', '600', '640'])
  const status = JSON.parse(readFileSync(join(mounted.folder, '.vimgfs/status.json'), 'utf8'))
  t.match(status, { readOnly: false, failure: null, scratch: dirname(file) })
  const locked = await attempt('qemu-io', ['-f', 'qcow2', '-c', 'write 0 512', file])
  t.match(locked, { code: 1, stderr: /lock/ }, 'others may not write the image')
  t.equal((await attempt('qemu-io', ['-r', '-f', 'qcow2', '-c', 'read 0 512', file])).code, 0)
  t.match(await attempt('touch', [mounted.file('new')]), { code: 1, stderr: /Read-only/ })
  const snapshot = await vimgfs(HERE, ['snapshot', 'create', file, 'three'])
  t.match(snapshot, { code: 1 })
})

t.test('truncating a snapshot leaves the others alone', skip, async t => {
  const { file, files } = await plainImage(sharedFolder(t))
  const mounted = await mount(t, file, { args: SCRATCH })
  const one = mounted.file('disk@one.raw')
  const input = join(dirname(file), 'input')
  writeFileSync(input, Buffer.alloc(MIB, 'x'))
  await run('sh', ['-c', `cat ${input} > ${one}`])
  t.equal(statSync(one).size, statSync(files.get('disk@one.raw')!).size, 'its size is fixed')
  await run('cmp', ['-n', `${MIB}`, one, input])
  for (const name of ['disk.raw', 'disk@two.raw'])
    await run('cmp', [mounted.file(name), files.get(name)!])
})

const REFUSALS: readonly {
  readonly options: string
  readonly says: RegExp
  readonly code?: number
}[] = [
  { options: 'ro,scratch', says: /leave out ro or scratch/, code: 2 },
  { options: 'force-share,scratch', says: /force-share is for reading only/, code: 2 },
  { options: 'scratch-dir=/tmp', says: /-o scratch-dir needs -o scratch/, code: 2 },
  { options: 'scratch-size=1G', says: /-o scratch-size needs -o scratch/, code: 2 },
  { options: 'scratch,scratch-size=much', says: /-o scratch-size takes a size/, code: 2 },
  { options: 'scratch,scratch-dir=', says: /-o scratch-dir needs a value/, code: 2 },
  {
    options: 'scratch,scratch-dir=/no/such',
    says: /\/no\/such: .*; name another folder with -o scratch-dir=DIR/,
  },
  {
    options: 'scratch,scratch-dir=/proc',
    says: /\/proc: .*; name another folder with -o scratch-dir=DIR/,
  },
]

t.test('refusals', skip, async t => {
  const { file } = await plainImage(sharedFolder(t))
  for (const { options, says, code = 1 } of REFUSALS) {
    const refused = await vimgfs(HERE, [
      'mount',
      '-f',
      ...NO_LOG,
      '-o',
      options,
      file,
      mountFolder(t),
    ])
    t.match(refused, { code, stderr: says }, options)
    t.equal(refused.stderr.trim().split('\n').length, 1, 'one line')
  }
})

t.test('a folder that only others may write', { ...skip, ...needsRoot() }, async t => {
  const place = await ordinaryUser(t)
  const { file } = await plainImage(sharedFolder(t))
  chmodSync(dirname(file), 0o755)
  const folder = mountFolder(t, place)
  const refused = await vimgfs(place, ['mount', '-f', ...NO_LOG, ...SCRATCH, file, folder])
  const says = /this folder cannot take the scratch file: .*; name a folder with -o scratch-dir=DIR/
  t.match(refused, { code: 1, stderr: says })
  const own = sharedFolder(t)
  const mounted = await mount(t, file, { place, args: ['-o', `scratch,scratch-dir=${own}`] })
  t.equal(
    (await dd(place, 'if=/dev/urandom', `of=${mounted.file('disk@one.raw')}`, 'bs=4k', 'count=1'))
      .code,
    0,
  )
})

t.test('memory takes nothing unless it is named', { ...skip, ...needsRoot() }, async t => {
  const { file } = await plainImage(sharedFolder(t))
  const folder = sharedFolder(t)
  await run('mount', ['-t', 'tmpfs', 'none', folder])
  t.teardown(() => attempt('umount', ['-l', folder]))
  // The image lies on a disk, and its folder in memory.
  const image = join(folder, 'disk.qcow2')
  writeFileSync(image, '')
  await run('mount', ['--bind', file, image])
  t.teardown(() => attempt('umount', ['-l', image]))
  const refused = await vimgfs(HERE, ['mount', '-f', ...NO_LOG, ...SCRATCH, image, mountFolder(t)])
  t.match(refused, {
    code: 1,
    stderr: /is in memory, and the image is not; name a folder with -o scratch-dir=DIR/,
  })
  await mount(t, image, { args: ['-o', `scratch,scratch-dir=${folder}`] })
  const copy = join(folder, 'copy.qcow2')
  copyFileSync(file, copy)
  await mount(t, copy, { args: SCRATCH })
  t.ok(existsSync(copy))
})
