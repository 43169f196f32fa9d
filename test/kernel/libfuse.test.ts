/** The libfuse transport: missing features, obstacles to a mount, and disks above 4 GiB. */
import { randomFillSync } from 'node:crypto'
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { type Lack, LACKS, lackLines } from '../../src/fs/libfuse/lacks.js'
import { loop, mountDevice } from '../support/loop.js'
import {
  attemptIn,
  call,
  hasEnded,
  HERE,
  isMounted,
  isRoot,
  isRunning,
  MAIN,
  mount,
  type Mount,
  mountFolder,
  namespace,
  NO_LOG,
  noFuse,
  noLibfuse,
  ordinaryUser,
  overLibfuse,
  type Place,
  READ_ONLY,
  runIn,
  sharedFolder,
  vimgfs,
  sampleImage,
} from '../support/mount.js'
import { needs, needsRoot, run } from '../support/run.js'

const SAMPLE = sampleImage(t)
const ROOT = new URL('../..', import.meta.url).pathname
const MIB = 2 ** 20
const DISK_BYTES = 16 * MIB
const skip = { ...noLibfuse(), ...needs('fallocate', 'qemu-img', 'qemu-io') }
const LIBFUSE = overLibfuse(HERE)

/** The sample's disk, written. */
const mountSample = (t: Test, place = LIBFUSE): Promise<Mount> =>
  mount(t, sampleImage(t), { place })

const statsOf = async ({ place, file }: Mount) =>
  JSON.parse(await runIn(place, 'cat', [file('.vimgfs/stats.json')]))

async function onlyError(t: Test, { place, file }: Mount, kind: string) {
  const errors: string[] = (await call(place, 'lacking', file('disk.raw')))[kind]
  t.equal(new Set(errors).size, 1, errors.join(' '))
  return errors[0]
}

/** Shows that each feature is missing: returns the errno of a program that asks for it, or asserts and returns nothing. */
const SHOWN: Record<keyof typeof LACKS, (t: Test, m: Mount) => Promise<string | undefined>> = {
  fallocate: (t, mounted) => onlyError(t, mounted, 'fallocate'),
  xattr: (t, mounted) => onlyError(t, mounted, 'xattr'),
  tmpfile: (t, mounted) => onlyError(t, mounted, 'tmpfile'),
  renameFlags: (t, mounted) => onlyError(t, mounted, 'renameFlags'),
  seek: async (t, { place, file }) => {
    t.same(await call(place, 'data', file('disk.raw')), [[0, DISK_BYTES]])
    return undefined
  },
  requestBytes: async (t, mounted) => {
    const { place, file } = mounted
    const { READ: readBefore = 0, WRITE: writtenBefore = 0 } = (await statsOf(mounted)).requests
    const dd = ['bs=1M', 'count=4', 'status=none']
    await runIn(place, 'dd', [`if=${file('disk.raw')}`, 'of=/dev/null', 'iflag=direct', ...dd])
    const source = join(mounted.folder, '..', 'source')
    writeFileSync(source, randomFillSync(Buffer.alloc(4 * MIB)))
    const to = [`of=${file('disk.raw')}`, 'conv=notrunc', 'oflag=direct']
    await runIn(place, 'dd', [`if=${source}`, ...to, ...dd])
    const { READ, WRITE } = (await statsOf(mounted)).requests
    t.ok(READ - readBefore >= 32, `${READ - readBefore} reads`)
    t.equal(WRITE - writtenBefore, 32, 'each as large as may be')
    return undefined
  },
  readdirplus: async (t, mounted) => {
    await runIn(mounted.place, 'ls', ['-l', mounted.folder])
    t.notOk((await statsOf(mounted)).requests.READDIRPLUS)
    return undefined
  },
  passthrough: async (t, { place, file }) => {
    const status = JSON.parse(await runIn(place, 'cat', [file('.vimgfs/status.json')]))
    t.match(status.files, [{ name: 'disk.raw', passthrough: false, why: /libfuse/ }])
    return undefined
  },
  nanoseconds: async (t, { place, file }) => {
    for (const name of ['disk.raw', 'disk@fresh-install.raw']) {
      const { mtimeNs } = await call(place, 'stat', file(name))
      t.equal(BigInt(mtimeNs) % 1_000_000n, 0n, name)
    }
    return undefined
  },
  threads: async (t, { place, file }) => {
    const status = JSON.parse(await runIn(place, 'cat', [file('.vimgfs/status.json')]))
    t.match(status, { threads: 1, transport: 'libfuse' })
    return undefined
  },
  sizes: async (t, { place, file }) => {
    for (const name of ['stats.json', 'status.json']) {
      const text = await runIn(place, 'cat', [file(`.vimgfs/${name}`)])
      const { size } = await call(place, 'stat', file(`.vimgfs/${name}`))
      t.equal(String(Buffer.byteLength(text)), size, name)
      t.match(text, /^\{\n.*\n\}\n +\n$/s)
    }
    return undefined
  },
  fusermountDevice: async t => {
    const user = await ordinaryUser(t)
    const full = mountFolder(t, user)
    writeFileSync(join(full, 'file'), '')
    await refused(t, user, full, /it is not empty, and libfuse 2 lets only root mount there/)
    if (!isRoot) return undefined
    const { user: shutOut } = await namespace(t, { deviceMode: 0o600 })
    await refused(t, shutOut, mountFolder(t, user), /\/dev\/fuse is closed to you, and libfuse 2/)
    return undefined
  },
}

t.test('each missing feature fails with the documented errno', skip, async t => {
  const mounted = await mountSample(t)
  for (const [name, lack] of Object.entries<Lack>(LACKS)) {
    await t.test(lack.what, async t => {
      const error = await SHOWN[name as keyof typeof LACKS](t, mounted)
      // Linux has one number for both.
      t.equal(error?.replace('ENOTSUP', 'EOPNOTSUPP'), lack.errno)
    })
  }
  const log = mounted.log()
  for (const line of lackLines()) t.ok(log.includes(JSON.stringify(line)), line)
})

t.test('a disk of 6 GiB: bytes below, across and above 4 GiB', skip, async t => {
  const folder = sharedFolder(t)
  const [image, source, copy] = ['disk.qcow2', 'source', 'copy'].map(n => join(folder, n)) as [
    string,
    string,
    string,
  ]
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '6G'])
  const places = [2047, 2048, 4095, 5000, 6141]
  const pieces = places.map(() => randomFillSync(Buffer.alloc(3 * MIB)))
  const written = await mount(t, image, { place: LIBFUSE })
  const disk = written.file('disk.raw')
  t.equal((await call(HERE, 'stat', disk)).size, String(6 * 2 ** 30))
  for (const [index, seek] of places.entries()) {
    writeFileSync(source, pieces[index]!)
    const direct = index % 2 ? ['oflag=direct'] : []
    const how = ['bs=1M', 'conv=notrunc', 'status=none', ...direct]
    await runIn(HERE, 'dd', [`if=${source}`, `of=${disk}`, `seek=${seek}`, ...how])
  }
  // Where two writes overlap, the later one counts.
  pieces[1]!.copy(pieces[0]!, MIB, 0, 2 * MIB)
  const areThere = async (file: string, title: string) => {
    for (const [index, skip] of places.entries()) {
      const how = ['bs=1M', 'count=3', 'status=none']
      await runIn(HERE, 'dd', [`if=${file}`, `of=${copy}`, `skip=${skip}`, ...how])
      t.ok(readFileSync(copy).equals(pieces[index]!), `${title}: ${skip} MiB`)
    }
  }
  await areThere(disk, 'at once')
  t.equal((await vimgfs(HERE, ['umount', written.folder])).code, 0)
  await run('qemu-img', ['check', '-q', image])
  const again = await mount(t, image, { args: READ_ONLY })
  await areThere(again.file('disk.raw'), 'by the direct transport')
  t.equal((await vimgfs(HERE, ['umount', again.folder])).code, 0)
  const once = await mount(t, image, { place: LIBFUSE, args: READ_ONLY })
  await areThere(once.file('disk.raw'), 'mounted anew')
})

let mounts = 0

/** Mounts the sample, which must fail with one line that matches. */
async function refused(t: Test, place: Place, folder: string, message: RegExp, main = MAIN) {
  // Alternate between background and foreground.
  for (const how of [mounts++ % 2 === 0 ? [] : ['-f']]) {
    const words = ['mount', '--transport', 'libfuse', ...NO_LOG, ...how, ...READ_ONLY]
    const args = [main, ...words, SAMPLE, folder]
    const { code, stdout, stderr } = await attemptIn(place, process.execPath, args)
    t.same({ code, stdout }, { code: 1, stdout: '' }, place.name)
    t.match(stderr, message)
    t.match(stderr, /^vimgfs: [^\n]*\n$/, 'one line')
  }
}

/** Copies the program, with or without the package, and returns its main.js. A link would lead to all packages. */
function copyOf(t: Test, hasPackage: boolean): { main: string; dist: string } {
  const folder = sharedFolder(t)
  const dist = join(folder, 'dist')
  cpSync(join(dirname(MAIN), '..'), dist, { recursive: true })
  copyFileSync(join(ROOT, 'package.json'), join(folder, 'package.json'))
  mkdirSync(join(folder, 'node_modules'))
  for (const name of readdirSync(join(ROOT, 'node_modules'))) {
    if (name === 'fuse-native' && !hasPackage) continue
    symlinkSync(join(ROOT, 'node_modules', name), join(folder, 'node_modules', name))
  }
  return { main: join(dist, 'cli', 'main.js'), dist }
}

const MISSING =
  /fuse-native, which --transport libfuse needs, is not installed; install it with npm install .*fuse-native@2\.2\.6$/m

t.test('without the package: one line with the command that installs it', noFuse(), async t => {
  const { main } = copyOf(t, false)
  await refused(t, HERE, mountFolder(t), MISSING, main)
  const folder = mountFolder(t)
  const args = [main, 'mount', ...NO_LOG, ...READ_ONLY, SAMPLE, folder]
  t.equal((await attemptIn(HERE, process.execPath, args)).code, 0, 'the direct one does without')
  t.equal((await vimgfs(HERE, ['umount', folder])).code, 0)
})

t.test('a kernel that is too old for the direct transport', skip, async t => {
  const mountOld = async (hasPackage: boolean, ...options: string[]) => {
    const { main, dist } = copyOf(t, hasPackage)
    const oldest = /(\bOLDEST_MINOR_VERSION ?=) ?\d+/
    for (const name of readdirSync(dist).filter(name => /\.c?js$/.test(name))) {
      const text = readFileSync(join(dist, name), 'utf8')
      if (oldest.test(text)) writeFileSync(join(dist, name), text.replace(oldest, '$1 999'))
    }
    const folder = mountFolder(t)
    const log = join(folder, '..', 'log')
    const words = ['mount', '--log-file', log, ...options, ...READ_ONLY, SAMPLE, folder]
    const finished = await attemptIn(HERE, process.execPath, [main, ...words])
    return { ...finished, folder, log: readFileSync(log, 'utf8') }
  }
  const taken = await mountOld(true)
  t.equal(taken.code, 0, taken.stderr)
  t.match(taken.log, 'the direct transport is not possible: libfuse is tried')
  t.match(taken.log, '"transport":"libfuse"')
  t.match(await runIn(HERE, 'ls', [taken.folder]), 'disk.raw')
  t.equal((await vimgfs(HERE, ['umount', taken.folder])).code, 0)

  for (const { code, stderr } of [
    await mountOld(false),
    await mountOld(true, '--transport', 'direct'),
  ]) {
    t.equal(code, 1)
    t.match(
      stderr,
      /^vimgfs: this kernel speaks FUSE 7\.\d+; 7\.999 [^\n]*--transport libfuse[^\n]*\n$/,
    )
  }
})

t.test('mount points in use', skip, async t => {
  for (const place of [HERE, LIBFUSE]) {
    const { folder, file } = await mountSample(t, place)
    const message = /is mounted there already; unmount it with vimgfs umount/
    await refused(t, HERE, folder, message)
    t.ok(existsSync(file('disk.raw')), 'and stays')
  }
})

t.test('subvolumes', { ...skip, ...needsRoot(), ...needs('mkfs.btrfs', 'btrfs') }, async t => {
  const image = join(sharedFolder(t), 'btrfs.raw')
  writeFileSync(image, '')
  truncateSync(image, 128 * MIB)
  await run('mkfs.btrfs', ['-q', image])
  const { folder } = await mountDevice(t, (await loop(t, image)).device, 'btrfs')
  const subvolume = join(folder, 'subvolume')
  await run('btrfs', ['subvolume', 'create', subvolume])
  await refused(t, HERE, subvolume, /it is a subvolume.*choose a folder in it/)
  const inside = join(subvolume, 'inside')
  mkdirSync(inside)
  await mount(t, SAMPLE, { place: LIBFUSE, folder: inside, args: READ_ONLY })
  await mount(t, SAMPLE, { folder: subvolume, args: READ_ONLY })
})

t.test('root mounts on a folder that is not empty', { ...skip, ...needsRoot() }, async t => {
  const folder = mountFolder(t)
  writeFileSync(join(folder, 'file'), '')
  await mount(t, SAMPLE, { place: LIBFUSE, folder, args: READ_ONLY })
})

t.test('permissions that ordinary users may lack', { ...skip, ...needsRoot() }, async t => {
  await t.test('/dev/fuse is missing', async t => {
    const { root } = await namespace(t, { deviceMode: 'missing' })
    await refused(
      t,
      root,
      mountFolder(t, root),
      /\/dev\/fuse cannot be opened: no such file; .*modprobe/,
    )
  })
  await t.test('mounts for others', async t => {
    const { user } = await namespace(t, { fuseConf: '# user_allow_other\n' })
    const place = { ...user, transport: 'libfuse' as const }
    for (const option of ['allow_root', 'allow_other']) {
      const folder = mountFolder(t, user)
      const args = ['mount', ...NO_LOG, '-o', `ro,${option}`, SAMPLE, folder]
      const { code, stderr } = await vimgfs(place, args)
      t.equal(code, 1)
      t.match(stderr, /^vimgfs: [^\n]*need the line user_allow_other in [^\n]*\n$/)
      t.notOk(await isMounted(place, folder))
    }
  })
})

t.test('users that may use the mount', { ...skip, ...needsRoot() }, async t => {
  const { root, user } = await namespace(t, { fuseConf: 'user_allow_other\n' })
  const reading = async (place: Place, folder: string) =>
    (await attemptIn(place, 'head', ['-c2', join(folder, 'disk.raw')])).code === 0
  const cases = [
    { options: 'ro', isFor: { root: false, user: true } },
    { options: 'ro,allow_root', isFor: { root: true, user: true } },
    { options: 'ro,allow_other', isFor: { root: true, user: true } },
  ]
  for (const { options, isFor } of cases) {
    const place = overLibfuse(user)
    const { folder } = await mount(t, SAMPLE, { place, args: ['-o', options] })
    const found = { root: await reading(root, folder), user: await reading(user, folder) }
    t.same(found, isFor, `an ordinary user's, ${options}`)
  }
  for (const [options, isForUser] of [
    ['ro', false],
    ['ro,allow_root', false],
    ['ro,allow_other', true],
  ] as const) {
    const place = overLibfuse(root)
    const { folder } = await mount(t, SAMPLE, { place, args: ['-o', options] })
    t.equal(await reading(user, folder), isForUser, `root's, ${options}`)
    t.ok(await reading(root, folder))
  }
})

t.test('seconds of small requests', { ...skip, ...needs('fio') }, async t => {
  const { file, pid } = await mountSample(t)
  const how = ['--rw=randrw', '--bs=4k', '--direct=1', '--ioengine=psync', '--allow_file_create=0']
  const time = ['--time_based', '--runtime=3']
  await runIn(HERE, 'fio', ['--name=job', `--filename=${file('disk.raw')}`, ...how, ...time])
  t.ok(isRunning(pid))
})

t.test('a connection that root aborts ends the server', { ...skip, ...needsRoot() }, async t => {
  const { folder, pid } = await mountSample(t)
  const line = readFileSync('/proc/self/mountinfo', 'utf8').split('\n')
  const minor = line
    .find(l => l.includes(` ${folder} `))
    ?.split(' ')[2]
    ?.split(':')[1]
  const control = `/sys/fs/fuse/connections/${minor}/abort`
  if (!existsSync(control)) return t.comment('no fusectl here')
  writeFileSync(control, '1')
  t.ok(await hasEnded(t, pid))
  t.notOk(await isMounted(HERE, folder), 'and takes the mount with it')
})
