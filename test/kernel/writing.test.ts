/** Writes a disk in all the ways that programs use, and compares it with the image's contents. */
import { randomFillSync } from 'node:crypto'
import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  openSync,
  readFileSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  attemptIn,
  call,
  everyPlace,
  hasEnded,
  HERE,
  isMounted,
  isRoot,
  isRunning,
  kill,
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
  runIn,
  sharedFolder,
  until,
  vimgfs,
  withoutNotices,
} from '../support/mount.js'
import { needs, needsRoot, run } from '../support/run.js'

const MIB = 2 ** 20
const SIZE = 24 * MIB + 3584
const FORMATS = ['raw', 'qcow', 'qcow2', 'vmdk'] as const
const { O_DIRECT } = constants
const skip = { ...needs('qemu-img', 'qemu-io', 'fallocate'), ...noFuse() }

interface Image {
  readonly file: string
  /** In the mount. */
  readonly name: string
  /** The name of the disk for QEMU. */
  content(): Promise<Buffer>
}

async function makeImage(place: Place, folder: string, format: string): Promise<Image> {
  const file = join(folder, `disk.${format}`)
  await run('qemu-img', ['create', '-q', '-f', format, file, String(SIZE)])
  await run('qemu-io', ['-f', format, '-c', 'write -q -P 0x11 0 8M', file])
  if (isRoot) chownSync(file, place.uid, place.uid)
  chmodSync(file, 0o644)
  const content = async () => {
    const raw = join(folder, 'content')
    await run('qemu-img', ['convert', '-U', '-f', format, '-O', 'raw', file, raw])
    return readFileSync(raw)
  }
  return { file, name: 'disk.raw', content }
}

async function unmounted(t: Test, { place, folder, pid }: Mount, image: Image, format: string) {
  const { code, stdout, stderr } = await vimgfs(place, ['umount', folder])
  t.same([code, stdout, withoutNotices(stderr)], [0, '', ''], 'it is unmounted')
  t.notOk(isRunning(pid))
  if (format === 'raw') return
  // QEMU does not check qcow.
  const checked = await vimgfs(place, ['check', image.file])
  t.equal(checked.code, 0, checked.stdout)
  if (format !== 'qcow') await run('qemu-img', ['check', '-q', '-f', format, image.file])
}

const bytes = (length: number): Buffer => randomFillSync(Buffer.alloc(length))

t.test('by root and by an ordinary user', skip, async t => {
  for (const place of await everyPlace(t)) {
    // The user matters to files and permissions, not to formats.
    for (const format of place === HERE ? FORMATS : (['qcow2'] as const)) {
      await t.test(`${format} by ${place.name}`, t => writing(t, place, format))
    }
  }
})

async function writing(t: Test, place: Place, format: string): Promise<void> {
  const folder = sharedFolder(t)
  const image = await makeImage(place, folder, format)
  const expected = Buffer.alloc(SIZE)
  expected.fill(0x11, 0, 8 * MIB)
  const mounted = await mount(t, image.file, { place, args: ['--format', format] })
  const disk = mounted.file(image.name)
  const in_ = (command: string, ...args: string[]) => runIn(place, command, args)
  const expectedFile = join(folder, 'expected')
  writeFileSync(expectedFile, expected)
  const same = async (title: string) => {
    await in_('cmp', expectedFile, disk)
    t.pass(title)
  }
  const expect = (offset: number, content: Buffer) => {
    content.copy(expected, offset)
    const fd = openSync(expectedFile, 'r+')
    writeSync(fd, content, 0, content.length, offset)
    closeSync(fd)
  }
  t.match(mounted.printed.stdout, /, read-write\n/)
  t.equal(mounted.printed.stderr, '')

  await t.test('dd, cp and the shell open it with O_TRUNC: nothing else is lost', async t => {
    const source = join(folder, 'source')
    const content = bytes(3_000_000)
    writeFileSync(source, content)
    expect(0, content)
    await in_('dd', `if=${source}`, `of=${disk}`, 'bs=64k', 'status=none')
    await same('dd without notrunc')
    await in_('dd', `if=${source}`, `of=${disk}`, 'bs=1M', 'seek=9', 'conv=notrunc', 'status=none')
    expect(9 * MIB, content)
    await same('dd with notrunc')
    writeFileSync(source, bytes(100_000))
    expect(0, readFileSync(source))
    await in_('cp', source, disk)
    await same('cp')
    await in_('sh', '-c', `printf hello > ${disk}`)
    expect(0, Buffer.from('hello'))
    await same('the shell')
    await in_(
      'dd',
      `if=${source}`,
      `of=${disk}`,
      'bs=4k',
      'count=20',
      'oflag=direct',
      'status=none',
    )
    expect(0, readFileSync(source).subarray(0, 81920))
    await same('past the page cache')
    await in_('touch', disk)
    t.equal((await call(place, 'stat', disk)).size, String(SIZE))
  })

  await t.test('its end is an end', async t => {
    t.match(await call(place, 'ends', disk, SIZE), {
      ...{ inside: 10_000, over: 5000, at: 'ENOSPC', behind: 'ENOSPC' },
      ...{ directOver: 4096, directAt: 'ENOSPC', append: 'ENOSPC' },
      ...{ shorter: 'EPERM', longer: 'EPERM', same: 'done' },
      ...{ fsync: 'done', fdatasync: 'done', utimes: 'done', chmod: 'done' },
      chown: isRoot && place.uid === 0 ? 'done' : 'EPERM',
      size: SIZE,
    })
    expect(SIZE - 10_000, Buffer.alloc(10_000, 'e'))
    await same('what fitted is there')
    for (const [args, message] of [
      [['-s', '0', disk], 'Operation not permitted'],
      [['-s', '1G', disk], 'Operation not permitted'],
    ] as const) {
      t.match((await attemptIn(place, 'truncate', args)).stderr, message)
    }
    const dd = ['if=/dev/zero', `of=${disk}`, 'bs=1M', 'seek=24', 'count=2', 'conv=notrunc']
    t.match((await attemptIn(place, 'dd', dd)).stderr, 'No space left on device')
    expect(24 * MIB, Buffer.alloc(3584))
    await same('dd over the end')
  })

  await t.test('fallocate', async t => {
    const fallocate = (...args: string[]) => attemptIn(place, 'fallocate', [...args, disk])
    if (place.transport) {
      for (const args of [
        ['-p', '-o', '1M', '-l', '2M'],
        ['-z', '-l', '4096'],
        ['-l', '24M'],
      ])
        t.equal((await fallocate(...args)).code, 1, args.join(' '))
      await same('nothing')
      return
    }
    const taken = () => statSync(image.file).blocks * 512
    const before = taken()
    t.equal((await fallocate('-p', '-o', '1M', '-l', '2M')).code, 0)
    expect(MIB, Buffer.alloc(2 * MIB))
    await same('a hole')
    const isGivenBack = async () => {
      await in_('sync', disk)
      return taken() <= before - 2 * MIB + 65536
    }
    t.ok(await until(isGivenBack), 'the image is smaller')
    t.equal((await fallocate('-z', '-o', '4096000', '-l', '1000000')).code, 0)
    expect(4_096_000, Buffer.alloc(1_000_000))
    await same('zeros')
    t.equal((await fallocate('-p', '-o', '24M', '-l', '2M')).code, 0)
    expect(24 * MIB, Buffer.alloc(3584))
    await same('a hole over the end')
    t.equal((await fallocate('-l', '24M')).code, 0, 'room that is there')
    t.match((await fallocate('-l', '25M')).stderr, 'No space left on device')
    t.match((await fallocate('-n', '-l', '25M')).stderr, 'No space left on device')
    t.match((await fallocate('-c', '-o', '0', '-l', '4096')).stderr, 'not supported')
    await same('and nothing else')
  })

  await t.test('mappings', async t => {
    for (const [index, flags] of [0, O_DIRECT].entries()) {
      t.equal(await call(place, 'mapWrite', disk, 777 + index * 10_000, 'mapped', flags), 0)
      expect(777 + index * 10_000, Buffer.from('mapped'))
      await same(index ? 'opened with O_DIRECT' : 'written back by msync')
    }
  })

  await t.test('many at once, buffered and direct', async t => {
    t.same(await call(place, 'crowd', disk, 200), [], 'what was written is read at once')
    await in_('cp', disk, join(folder, 'now'))
    expect(0, readFileSync(join(folder, 'now')))
  })

  await t.test('times and blocks follow', async t => {
    const started = Date.now()
    await in_(
      'dd',
      'if=/dev/urandom',
      `of=${disk}`,
      'bs=64k',
      'count=16',
      'seek=320',
      'conv=notrunc',
    )
    const { mtimeMs, blocks } = await call(place, 'stat', disk)
    const written = Number(mtimeMs)
    t.ok(written >= started - 1000 && written <= Date.now() + 1000, 'it was written now')
    const map: { length: number; data: boolean }[] = JSON.parse(
      await run('qemu-img', ['map', '-U', '-f', format, '--output=json', image.file]),
    )
    const data = map.reduce((sum, piece) => sum + (piece.data ? piece.length : 0), 0)
    t.ok(await until(async () => Number((await call(place, 'stat', disk)).blocks) > 0), `${blocks}`)
    t.ok(Number((await call(place, 'stat', disk)).blocks) * 512 <= data + 65536, 'not too many')
    await in_('cp', disk, join(folder, 'later'))
    expect(0, readFileSync(join(folder, 'later')))
  })

  const stats = JSON.parse(await in_('cat', mounted.file('.vimgfs/stats.json')))
  t.ok(stats.bytesWritten > 3_000_000 && stats.flushes > 0)
  t.ok(stats.latency.write.samples > 0)
  const status = JSON.parse(await in_('cat', mounted.file('.vimgfs/status.json')))
  t.match(status, { readOnly: false, failure: null, disk: 'disk.raw' })

  await unmounted(t, mounted, image, format)
  t.ok((await image.content()).equals(expected), 'all of it is in the image')
  t.notMatch(mounted.log(), '"level":50')
}

for (const place of [HERE, overLibfuse(HERE)]) {
  const skipped = place.transport && noLibfuse().skip ? noLibfuse() : skip
  t.test(`the image holds every write, by ${place.name}`, skipped, t => keeping(t, place))
}

async function keeping(t: Test, place: Place): Promise<void> {
  const write = (disk: string, letter: string, ...more: string[]) =>
    runIn(HERE, 'sh', [
      '-c',
      `printf ${letter.repeat(512)} | dd of=${disk} conv=notrunc ${more} 2>&1`,
    ])
  const ways: { title: string; args?: string[]; act(m: Mount, disk: string): Promise<unknown> }[] =
    [
      { title: 'after the last close', act: (_, disk) => write(disk, 'A') },
      {
        title: 'after a few seconds, however long it is open',
        args: ['-o', 'commit=1'],
        act: async (mounted, disk) => {
          const fd = await open(disk, 'r+')
          t.teardown(() => fd.close().catch(() => {}))
          await fd.write(Buffer.alloc(512, 'A'), 0, 512, 0)
          const flushes = async () =>
            JSON.parse(await runIn(HERE, 'cat', [mounted.file('.vimgfs/stats.json')])).flushes
          t.ok(await until(async () => (await flushes()) > 0))
        },
      },
      {
        title: 'after SIGTERM',
        act: async ({ pid, folder }, disk) => {
          await runIn(HERE, 'sh', [
            '-c',
            `exec 3<>${disk}; printf ${'A'.repeat(512)} >&3; kill -TERM ${pid};
             while grep -q ' ${folder} ' /proc/self/mountinfo; do sleep 0.05; done`,
          ])
        },
      },
    ]
  for (const { title, args = ['-o', 'commit=0'], act } of ways) {
    await t.test(title, async t => {
      const image = await makeImage(HERE, sharedFolder(t), 'qcow2')
      const mounted = await mount(t, image.file, { place, args })
      await act(mounted, mounted.file(image.name))
      // Writes that the server had not flushed are lost with it.
      kill(mounted.pid, 'SIGKILL')
      await hasEnded(t, mounted.pid)
      t.equal((await image.content()).toString('latin1', 0, 512), 'A'.repeat(512))
    })
  }
}

t.test('snapshots and layers below cannot be written', skip, async t => {
  const folder = sharedFolder(t)
  const [base, image] = [join(folder, 'base.qcow2'), join(folder, 'disk.qcow2')]
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', base, '4M'])
  await run('qemu-io', ['-c', 'write -q -P 0x22 0 1M', base])
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', image])
  await run('qemu-io', ['-c', 'write -q -P 0x33 64k 64k', image])
  await run('qemu-img', ['snapshot', '-c', 'one', image])
  const before = readFileSync(base)
  const { folder: mnt, file } = await mount(t, image)
  const snapshot = readFileSync(file('disk@one.raw'))
  for (const name of ['disk@one.raw', 'disk@base.raw']) {
    const changes = await call(HERE, 'changes', mnt, file(name))
    const { fallocate, ...others } = changes
    t.equal(fallocate, 'EBADF')
    for (const [what, error] of Object.entries(others)) t.equal(error, 'EROFS', `${name}: ${what}`)
  }
  await runIn(HERE, 'dd', ['if=/dev/urandom', `of=${file('disk.raw')}`, 'bs=64k', 'count=64'])
  t.ok(readFileSync(file('disk@one.raw')).equals(snapshot), 'written over: the snapshot stays')
  const disk = await call(HERE, 'changes', mnt, file('disk.raw'))
  t.match(disk, {
    ...{ 'open w': 'done', 'open a': 'done', 'open trunc': 'done', access: 'done', utimes: 'done' },
    ...{ truncate: 'EPERM', chmod: 'done', setxattr: 'ENOTSUP' },
    ...{ create: 'EROFS', unlink: 'EROFS', rename: 'EROFS', link: 'EROFS', mkdir: 'EROFS' },
  })
  t.equal((await vimgfs(HERE, ['umount', mnt])).code, 0)
  t.ok(readFileSync(base).equals(before), 'the backing file is the same to the byte')
  await run('qemu-img', ['check', '-q', image])
})

t.test('growing', skip, async t => {
  for (const format of ['raw', 'qcow2']) {
    const image = await makeImage(HERE, sharedFolder(t), format)
    const args = ['--format', format, '-o', 'growable']
    const mounted = await mount(t, image.file, { args })
    const disk = mounted.file(image.name)
    const size = async () => Number((await call(HERE, 'stat', disk)).size)
    await runIn(HERE, 'truncate', ['-s', '30M', disk])
    t.equal(await size(), 30 * MIB)
    t.match((await attemptIn(HERE, 'truncate', ['-s', '29M', disk])).stderr, 'not permitted')
    t.match((await attemptIn(HERE, 'truncate', ['-s', '0', disk])).stderr, 'not permitted')
    await runIn(HERE, 'sh', ['-c', `printf grown >> ${disk}`])
    t.equal(await size(), 30 * MIB + 512, 'by whole sectors')
    await unmounted(t, mounted, image, format)
    t.equal((await image.content()).toString('latin1', 30 * MIB, 30 * MIB + 5), 'grown', format)
  }
})

t.test('a vmdk does not grow', skip, async t => {
  const image = await makeImage(HERE, sharedFolder(t), 'vmdk')
  const mounted = await mount(t, image.file, { args: ['-o', 'growable'] })
  const disk = mounted.file(image.name)
  t.match((await attemptIn(HERE, 'truncate', ['-s', '30M', disk])).stderr, 'Permission denied')
  t.equal(Number((await call(HERE, 'stat', disk)).size), SIZE)
  await runIn(HERE, 'sh', ['-c', `printf still | dd of=${disk} conv=notrunc status=none`])
  await unmounted(t, mounted, image, 'vmdk')
  t.equal((await image.content()).toString('latin1', 0, 5), 'still')
})

t.test('images that cannot be written', skip, async t => {
  const check = async (t: Test, place: Place, file: string) => {
    const refused = await vimgfs(place, [
      ...['mount', ...NO_LOG, '-o', 'rw', file],
      mountFolder(t, place),
    ])
    t.equal(refused.code, 1)
    t.match(refused.stderr, /^vimgfs: [^\n]*disk\.qcow2: it is write-protected \([^\n]*-o ro\)\n$/)
    const { printed, file: inMount } = await mount(t, file, { place })
    t.match(printed.stderr, /^vimgfs: [^\n]*: it is write-protected \(.*\), mounted read-only\n$/)
    t.match(printed.stdout, ', read-only\n')
    const { stderr } = await attemptIn(place, 'sh', ['-c', `printf x > ${inMount('disk.raw')}`])
    t.match(stderr, /Read-only file system|Permission denied|cannot create/)
    const status = await runIn(place, 'cat', [inMount('.vimgfs/status.json')])
    t.match(JSON.parse(status), { readOnly: true, failure: null })
    const asked = await mount(t, file, { place, args: ['-o', 'ro'] })
    t.equal(asked.printed.stderr, '', 'whoever asks for it is not warned')
  }
  await t.test('by their mode', async t => {
    const place = await ordinaryUser(t)
    const image = await makeImage(place, sharedFolder(t), 'qcow2')
    chmodSync(image.file, 0o444)
    await check(t, place, image.file)
  })
  await t.test('on a read-only file system', needsRoot(), async t => {
    const { root } = await namespace(t)
    const folder = sharedFolder(t)
    const image = await makeImage(root, folder, 'qcow2')
    await runIn(root, 'mount', ['--bind', folder, folder])
    await runIn(root, 'mount', ['-o', 'remount,ro,bind', folder])
    await check(t, root, image.file)
  })
  await t.test('marked corrupt', async t => {
    const image = await makeImage(HERE, sharedFolder(t), 'qcow2')
    const content = readFileSync(image.file)
    content.writeUInt8(2, 79)
    writeFileSync(image.file, content)
    const { code, stderr } = await vimgfs(HERE, ['mount', '-o', 'rw', image.file, mountFolder(t)])
    t.equal(code, 1)
    t.match(stderr, /^vimgfs: [^\n]*it is marked corrupt; [^\n]*\n$/)
    const { printed, folder } = await mount(t, image.file)
    t.match(
      printed.stderr,
      /^[^\n]*: it is marked corrupt, mounted read-only; what is readable is shown[^\n]*\n$/,
    )
    t.match(printed.stdout, ', read-only\n')
    t.ok(await isMounted(HERE, folder))
    t.ok(readFileSync(image.file).equals(content), 'it is as it was')
  })
})

t.test('mounting and unmounting changes nothing', skip, async t => {
  for (const format of FORMATS) {
    const image = await makeImage(HERE, sharedFolder(t), format)
    const before = readFileSync(image.file)
    const { mtimeMs } = statSync(image.file)
    const mounted = await mount(t, image.file)
    await runIn(HERE, 'cat', [mounted.file(image.name)])
    await runIn(HERE, 'sync', [mounted.file(image.name)])
    await unmounted(t, mounted, image, format)
    t.ok(readFileSync(image.file).equals(before), format)
    t.equal(statSync(image.file).mtimeMs, mtimeMs)
  }
})

t.test('a full disk under the image', { ...skip, ...needsRoot() }, async t => {
  const { root } = await namespace(t)
  const folder = sharedFolder(t)
  // A disk of the image's own that is full before the guest's is.
  await runIn(root, 'mount', ['-t', 'tmpfs', '-o', 'size=4m,mode=777', 'none', folder])
  const image = join(folder, 'disk.qcow2')
  await runIn(root, 'qemu-img', ['create', '-q', '-f', 'qcow2', image, '16M'])
  const mounted = await mount(t, image, { place: root, folder: mountFolder(t, root) })
  const dd = [...['if=/dev/urandom', `of=${mounted.file('disk.raw')}`, 'bs=64k', 'conv=notrunc']]
  t.match((await attemptIn(root, 'dd', dd)).stderr, 'No space left on device')
  t.match(JSON.parse(await runIn(root, 'cat', [mounted.file('.vimgfs/status.json')])), {
    failure: null,
  })
  await runIn(root, 'mount', ['-o', 'remount,size=40m', folder])
  await runIn(root, 'dd', [...dd, 'count=256'])
  const { code, stderr } = await vimgfs(root, ['umount', mounted.folder])
  t.same([code, withoutNotices(stderr)], [0, ''], 'a full disk that gets room again works again')
  await runIn(root, 'qemu-img', ['check', '-q', image])
})

t.test('umount says so if writes could not be saved', skip, async t => {
  const image = await makeImage(HERE, sharedFolder(t), 'qcow2')
  const mounted = await mount(t, image.file, { args: ['-o', 'commit=0'] })
  const { pid } = mounted
  const disk = mounted.file(image.name)
  t.equal(await call(HERE, 'writeThenLimit', disk, 16 * MIB, 'KKK', pid, 4096), 0)
  for (let i = 0; i < 2; i++) {
    const { code, stderr } = await vimgfs(HERE, ['umount', mounted.folder])
    t.equal(code, 1)
    t.match(stderr, /^vimgfs: [^\n]*could not be saved \([^\n]*stays mounted[^\n]*--lazy [^\n]*\n$/)
    t.ok(isRunning(pid))
  }
  await runIn(HERE, 'prlimit', ['--pid', String(pid), '--fsize=unlimited:unlimited'])
  await unmounted(t, mounted, image, 'qcow2')
  t.equal((await image.content()).toString('latin1', 16 * MIB, 16 * MIB + 3), 'KKK')
})
