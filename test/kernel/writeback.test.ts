/** Mounts whose kernel keeps what is written and sends it later: -o writeback. */
import {
  closeSync,
  copyFileSync,
  existsSync,
  openSync,
  readFileSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import {
  attemptIn,
  HERE,
  isRoot,
  MAIN,
  mount,
  type Mount,
  mountFolder,
  NO_LOG,
  noFuse,
  runIn,
  sharedFolder,
  until,
  vimgfs,
} from '../support/mount.js'
import { needs, run } from '../support/run.js'

const MIB = 2 ** 20
const FUZZ = fileURLToPath(new URL('./open-modes.mjs', import.meta.url))
const isLong = process.env.VIMGFS_TEST_LONG === '1'
const skip = { ...needs('qemu-img', 'qemu-io', 'bash'), ...noFuse() }

const bash = (script: string) => runIn(HERE, 'bash', ['-ec', script])
const attempt = (script: string) => attemptIn(HERE, 'bash', ['-ec', script])

/** Makes an image full of fives. */
async function makeImage(t: Test, sizeBytes = 2 * MIB): Promise<string> {
  const image = join(sharedFolder(t), 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, String(sizeBytes)])
  await run('qemu-io', ['-c', `write -q -P 0x35 0 ${sizeBytes}`, image])
  return image
}

const serve = (t: Test, image: string, options = 'writeback') =>
  mount(t, image, { args: ['-o', options] })

async function end(t: Test, { folder, place }: Mount, image: string): Promise<void> {
  const { code, stderr } = await vimgfs(place, ['umount', folder])
  t.same({ code, stderr }, { code: 0, stderr: '' })
  t.match(await run('qemu-img', ['check', image]), /No errors were found/)
}

t.test('handles of all kinds read what any of them wrote', skip, async t => {
  const image = await makeImage(t)
  for (const seed of isLong ? [1, 2, 3, 4, 5, 6, 7, 8] : [1, 2]) {
    const mounted = await serve(t, image, seed % 2 ? 'writeback' : 'writeback,commit=1')
    const disk = mounted.file('disk.raw')
    const steps = isLong ? 2000 : 200
    const args = [FUZZ, disk, String(seed), String(steps), 'writeback']
    t.equal((await runIn(HERE, process.execPath, args)).trim(), 'ok', `seed ${seed}`)
    const copy = join(mounted.folder, '..', 'copy')
    copyFileSync(disk, copy)
    await end(t, mounted, image)
    t.match(await run('qemu-img', ['compare', image, copy]), /identical/)
  }
})

t.test('programs that truncate', skip, async t => {
  const image = await makeImage(t)
  const mounted = await serve(t, image)
  const disk = mounted.file('disk.raw')
  const size = 2 * MIB
  const source = join(mounted.folder, '..', 'source')
  writeFileSync(source, Buffer.alloc(size))
  await bash(`printf head | dd of=${source} conv=notrunc status=none
    printf tail | dd of=${source} bs=1 seek=${size - 70_000} conv=notrunc status=none
    fallocate -d ${source}; cat ${disk} >/dev/null`)
  // The second comes right after a handle that writes through the cache.
  for (const before of ['true', `printf x | dd of=${disk} conv=notrunc status=none`]) {
    await bash(`${before}; cp --sparse=always ${source} ${disk}
      test $(stat -c %s ${disk}) = ${size}; cmp ${source} ${disk}`)
  }
  await bash(`printf A | dd of=${disk} status=none; test $(stat -c %s ${disk}) = ${size}
    cmp -i 1 ${source} ${disk}; test $(head -c 1 ${disk}) = A`)

  const busy = await attempt(`exec 3<>${disk}; printf BBBB >&3; printf C >${disk}`)
  t.match(busy.stderr, /busy/i, 'not beside a handle that writes to the cache')
  t.equal(await bash(`head -c 4 ${disk}`), 'BBBB', 'and nothing of that is lost')
  const emptied = await attempt(
    `exec 3<>${disk}; ${process.execPath} -e 'require("fs").ftruncateSync(3, 0)' 3>&3`,
  )
  t.match(emptied.stderr, /EPERM/, 'ftruncate')
  await bash(`exec 3>${disk}; printf DD >&3; exec 4<>${disk}; printf E >&4`)
  t.equal(await bash(`head -c 4 ${disk}`), 'EDBB', 'writers beside one that truncates')
  await end(t, mounted, image)
})

t.test('what is kept is sent in time', skip, async t => {
  const image = await makeImage(t)
  const mounted = await serve(t, image, 'writeback,commit=1')
  const disk = mounted.file('disk.raw')
  const raw = join(mounted.folder, '..', 'raw')
  const has = async (letters: string, at: number) => {
    // The image may change while it is read.
    await attempt(`qemu-img convert -U -O raw ${image} ${raw}`)
    return (await attempt(`tail -c +${at + 1} ${raw} | head -c 4`)).stdout === letters
  }
  const open = `exec 3<>${disk}; printf kept >&3`
  const done = join(mounted.folder, '..', 'done')
  const held = bash(`${open}; while [ ! -e ${done} ]; do read -t 0.05 <> <(:) || true; done`)
  t.ok(await until(() => has('kept', 0)), 'with the commit interval')
  await run('touch', [done])
  await held

  const snapshot = `${process.execPath} ${MAIN} snapshot create ${mounted.folder} one`
  await bash(`exec 3<>${disk}; printf snap >&3; ${snapshot}; printf late >&3`)
  t.equal(await bash(`head -c 8 ${mounted.file('disk@one.raw')}`), 'snap5555')
  t.equal(await bash(`head -c 8 ${disk}`), 'snaplate')
  // Holes are told only where the kernel keeps nothing.
  await bash(`fallocate -p -o 0 -l 1M ${disk}; exec 3<>${disk}; printf data >&3
    cp --sparse=always ${disk} ${raw}; test $(head -c 4 ${raw}) = data`)
  for (const [args, why] of [
    [['resize', mounted.folder, '+1M'], /cannot be resized while .* writeback/],
    [['snapshot', 'revert', mounted.folder, 'one'], /cannot be gone back .* writeback/],
  ] as const) {
    const { code, stderr } = await vimgfs(HERE, args)
    t.equal(code, 1)
    t.match(stderr, why)
  }
  await end(t, mounted, image)
})

t.test('what no close has sent is sent with the commit interval', skip, async t => {
  const image = join(sharedFolder(t), 'disk.img')
  writeFileSync(image, Buffer.alloc(MIB))
  const mounted = await mount(t, image, { args: ['--format', 'raw', '-o', 'writeback,commit=1'] })
  // No other process: one that starts closes its copies of all descriptors, and that sends everything.
  const fd = openSync(mounted.file('disk.raw'), 'r+')
  const read = () => readFileSync(image).subarray(0, 4).toString()
  writeSync(fd, 'kept', 0)
  t.equal(read(), '\0'.repeat(4))
  t.ok(await until(async () => read() === 'kept'))
  closeSync(fd)
})

t.test('what was synced outlives a kill of the server', skip, async t => {
  const image = await makeImage(t)
  const { pid, folder, file } = await serve(t, image, 'writeback,commit=0')
  await bash(`exec 3<>${file('disk.raw')}; printf sure >&3; sync /proc/self/fd/3
    printf lost >&3; kill -9 ${pid}; while [ -e /proc/${pid}/exe ]; do :; done`).catch(() => {})
  await vimgfs(HERE, ['umount', folder])
  t.ok(await until(async () => !existsSync(`/proc/${pid}/exe`)))
  t.equal((await vimgfs(HERE, ['check', image])).code % 3, 0, 'lost space at worst')
  const mounted = await serve(t, image)
  t.equal(await bash(`head -c 4 ${mounted.file('disk.raw')}`), 'sure')
  await end(t, mounted, image)
})

const ext4 = { ...skip, ...(isRoot ? needs('mkfs.ext4', 'losetup') : { skip: 'needs root' }) }
t.test('a file system in a loop device', ext4, async t => {
  const image = await makeImage(t, 16 * MIB)
  const mounted = await serve(t, image)
  const inner = mountFolder(t, HERE, 'inner')
  const disk = mounted.file('disk.raw')
  await bash(`mkfs.ext4 -q -F ${disk}; mount -o loop ${disk} ${inner}
    trap 'umount ${inner}' EXIT
    head -c 3M /dev/zero | tr '\\0' q >${inner}/data; sync ${inner}/data; fstrim ${inner} || true
    cmp ${inner}/data <(head -c 3M /dev/zero | tr '\\0' q)`)
  t.equal(statSync(disk).size, 16 * MIB)
  await end(t, mounted, image)
  const raw = join(mounted.folder, '..', 'raw')
  await run('qemu-img', ['convert', '-O', 'raw', image, raw])
  t.match(await run('e2fsck', ['-fn', raw]), /files/)
})

t.test('what cannot be together is refused', skip, async t => {
  const image = await makeImage(t)
  const folder = mountFolder(t)
  const refused = async (args: readonly string[], code: number, why: RegExp) => {
    const got = await vimgfs(HERE, ['mount', ...NO_LOG, ...args, image, folder])
    t.equal(got.code, code, args.join(' '))
    t.match(got.stderr, why)
    t.equal(got.stderr.trim().split('\n').length, 1)
  }
  await refused(['-o', 'writeback,ro'], 2, /leave out ro or writeback/)
  for (const other of ['scratch', 'partitions', 'manage', 'growable', 'passthrough=on']) {
    await refused(['-o', `writeback,${other}`], 2, new RegExp(`together with ${other}`))
  }
  await run('chmod', ['444', image])
  if (!isRoot) await refused(['-o', 'writeback'], 1, /can only be read/)
})
