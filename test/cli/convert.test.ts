/** `vimgfs convert`: what it refuses, and that nothing half made is left, whatever happens. */
import { spawn, spawnSync } from 'node:child_process'
import {
  chmodSync,
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { run as convert } from '../../src/cli/convert.js'
import { createImage } from '../../src/image/making/create-image.js'
import { noise } from '../fixtures/model.js'
import { buildImage, type Cluster } from '../fixtures/qcow2-builder.js'
import { runHere } from '../support/command.js'
import { MAIN, sharedFolder } from '../support/mount.js'
import { needsRoot, run, tempFolder } from '../support/run.js'

const CLUSTER = 65_536
const SIZE = 8 * CLUSTER
const SPEC = {
  clusterBits: 16,
  sizeBytes: SIZE,
  clusters: new Map<number, Cluster>(
    [0, 1, 2, 5].map(i => [i, { kind: 'data', bytes: noise(CLUSTER, i + 1) }]),
  ),
}
const IMAGE = buildImage(SPEC)
const DISK = Buffer.alloc(SIZE)
for (const i of [0, 1, 2, 5]) noise(CLUSTER, i + 1).copy(DISK, i * CLUSTER)

const convertHere = (...args: string[]) => runHere(convert, args, '/')

function sourceIn(folder: string, name = 'source.qcow2'): string {
  const file = join(folder, name)
  writeFileSync(file, IMAGE.bytes())
  return file
}

/** The conversion is refused in one line, and nothing has changed in `folder`. */
async function refused(t: Test, folder: string, args: string[], message: RegExp, code = 1) {
  const contents = () =>
    readdirSync(folder).map(name => [name, readFileSync(join(folder, name), 'base64')])
  const before = contents()
  const done = await convertHere(...args)
  t.match(done, { code, stdout: '', stderr: message })
  t.match(done.stderr, /^vimgfs: [^\n]*\n$/, 'one line')
  t.strictSame(contents(), before, 'nothing has changed')
}

t.test('wrong usage', async t => {
  const folder = tempFolder(t)
  const source = sourceIn(folder)
  const target = join(folder, 'target')
  const cases: [string[], RegExp][] = [
    [[source], /DST is missing/],
    [['-l', 'x', source, source, target], /-l is for one source, and these are several/],
    [['-B', source, source, source, target], /-B is for one source/],
    [['-o', 'backing_file=x', source, source, target], /backing_file=x is for one source/],
    [['-O', 'qcow3', source, target], /takes .*, not "qcow3"/],
    [['-O', 'vpc', source, target], /no images of the format "vpc" can be made/],
    [['-f', 'other', source, target], /takes .*, not "other"/],
    [['-F', 'raw', source, target], /-F needs -B/],
    [['-S', '513', source, target], /-S takes a multiple of 512 up to 16M, not "513"/],
    [['-O', 'other', source, target], /-O takes /],
    [['-c', '-O', 'vmdk', source, target], /use -o subformat=streamOptimized, or leave out -c/],
    [['-S', 'x', source, target], /-S takes a size such as/],
    [['-m', '0', source, target], /-m takes a number from 1 to 16/],
    [['-n', '-c', source, target], /-c says how to make the target, and -n makes none/],
    [['-n', '-o', 'a=b', source, target], /-o says how/],
    [['-n', '-B', source, source, target], /-B says how/],
    [['-t', 'fast', source, target], /-t takes none, .*, not "fast"/],
    [['-T', 'fast', source, target], /-T takes none, .*, not "fast"/],
    [['-r', '1M', source, target], /-r is not supported: .*; leave it out/],
    [['--bitmaps', '-n', source, target], /--bitmaps says how to make the target/],
    [['--bitmaps', source, source, target], /--bitmaps is for one source/],
    [['--skip-broken-bitmaps', source, target], /--skip-broken-bitmaps needs --bitmaps/],
    [['--target-is-zero', source, target], /--target-is-zero needs -n/],
    [['-O', 'qcow2', '-o', 'backing_fmt=raw', source, target], /backing_fmt needs -B/],
    [['-B', 'a', '-o', 'backing_file=b', source, target], /-B names a, and backing_file b/],
    [
      ['-l', 'snapshot.id=1,name=x', source, target],
      /-l takes snapshot\.id=ID, snapshot\.name=TAG/,
    ],
    [['-c', source, target], /this raw image cannot have compressed data; leave out -c/],
    [['-O', 'qcow2', '-o', 'no=1', source, target], /qcow2 has no option "no"/],
    [
      ['--target-passphrase-file', source, source, target],
      /--target-passphrase-file is for encrypted targets/,
    ],
  ]
  for (const [args, message] of cases) await refused(t, folder, args, message, 2)
})

t.test('what scripts for qemu-img pass', async t => {
  const folder = tempFolder(t)
  const built = buildImage({
    ...SPEC,
    snapshots: [
      {
        id: '1',
        name: 'twin',
        clusters: new Map([[0, { kind: 'data', bytes: noise(CLUSTER, 7) }]]),
      },
      {
        id: '2',
        name: 'twin',
        clusters: new Map([[0, { kind: 'data', bytes: noise(CLUSTER, 8) }]]),
      },
      { id: '3', name: '1', clusters: new Map([[0, { kind: 'data', bytes: noise(CLUSTER, 9) }]]) },
    ],
  })
  const source = join(folder, 'source.qcow2')
  writeFileSync(source, built.bytes())
  const raw = join(folder, 'disk.raw')
  const ignored = ['-W', '-m', '8', '-C', '-t', 'none', '-T', 'none', '-q']
  t.match(await convertHere(...ignored, source, raw), { code: 0, stdout: '', stderr: '' })
  t.ok(readFileSync(raw).equals(DISK))

  const chosen: [string, number][] = [
    ['snapshot.id=1', 7],
    ['snapshot.id=2,snapshot.name=twin', 8],
    ['snapshot.name=1', 9],
    ['1', 9],
    ['2', 8],
  ]
  for (const [choice, seed] of chosen) {
    t.match(await convertHere('--force', '-l', choice, source, raw), { code: 0 }, choice)
    t.ok(readFileSync(raw).subarray(0, CLUSTER).equals(noise(CLUSTER, seed)), choice)
  }
  for (const choice of ['twin', 'snapshot.name=twin']) {
    const found = await convertHere('--force', '-l', choice, source, raw)
    t.match(found, { code: 1, stderr: /occurs 2 times, with the IDs "1", "2"; name one of/ })
  }

  const onto = ['-O', 'qcow2', '-o', 'backing_file=disk.raw,backing_fmt=raw', '-o', 'compat=1.1']
  const top = join(folder, 'top.qcow2')
  t.match(await convertHere(...onto, source, top), { code: 0 })
  t.match(readFileSync(top).subarray(0, 4096).toString('latin1'), /disk\.raw/)

  const volume = join(folder, 'volume')
  writeFileSync(volume, noise(SIZE, 99))
  const into = ['-n', '--target-is-zero', source, volume]
  t.match(
    await convertHere(...into),
    { code: 0, stdout: '', stderr: '' },
    'raw, unless it is an image',
  )
  t.ok(readFileSync(volume).equals(DISK))
  t.match(
    (await convertHere('-O', 'qcow2', '-o', 'help')).stdout,
    /^Options of qcow2 .*cluster_size/s,
  )
})

t.test('targets that must not be replaced', async t => {
  const folder = tempFolder(t)
  const source = sourceIn(folder)
  const there = join(folder, 'there')
  writeFileSync(there, 'something')
  await refused(t, folder, [source, there], /there is a file of this name already; .*--force/)
  await refused(t, folder, ['--force', source, source], /replace a file that it is made of/)
  await refused(t, folder, ['-n', '-O', 'qcow2', source, source], /the disk is read from this file/)
  await refused(t, folder, [source, '/'], /this is (a folder|no file name)/)
  await refused(t, folder, [join(folder, 'none'), join(folder, 'x')], /no such file/)
  await refused(t, folder, [source, join(folder, 'none', 'x')], /its folder cannot be used/)
  t.match(await convertHere('--force', source, there), { code: 0, stderr: '' })
  t.ok(readFileSync(there).equals(DISK), 'replaced with --force')
})

t.test('a backing file of the source, also by a link', async t => {
  const folder = tempFolder(t)
  const base = sourceIn(folder, 'base.qcow2')
  const top = buildImage({
    clusterBits: 16,
    sizeBytes: SIZE,
    backing: { name: 'base.qcow2', format: 'qcow2' },
  })
  const source = join(folder, 'top.qcow2')
  writeFileSync(source, top.bytes())
  const elsewhere = tempFolder(t)
  const link = join(elsewhere, 'link')
  symlinkSync(base, link)
  for (const target of [base, link]) {
    await refused(t, folder, ['--force', source, target], /replace a file that it is made of/)
  }
  const other = join(elsewhere, 'other.qcow2')
  copyFileSync(base, other)
  await refused(
    t,
    elsewhere,
    ['--force', '-O', 'qcow2', '-B', 'other.qcow2', source, other],
    /replace a file that it is made of/,
  )
})

t.test('damaged sources', async t => {
  const cases: [string, (file: string) => void, RegExp, number[]][] = [
    [
      'a table names a cluster beyond the end',
      file => patch(file, IMAGE.l2EntryAt(1), 0x8000_0000_4000_0000n),
      /lies beyond the end of the file, at 65536 of the disk; copy what is left with --salvage/,
      [1],
    ],
    [
      'a table entry is impossible',
      file => patch(file, IMAGE.l2EntryAt(2), 0x8000_0000_0001_0200n),
      /at 131072 of the disk; copy what is left with --salvage/,
      [2],
    ],
  ]
  for (const [title, damage, message, lost] of cases) {
    await t.test(title, async t => {
      const folder = tempFolder(t)
      const source = sourceIn(folder)
      damage(source)
      await refused(t, folder, [source, join(folder, 'target')], message)
      const target = join(folder, 'target')
      const done = await convertHere('--salvage', '--verify', source, target)
      t.match(done, { code: 3, stdout: '' })
      const wanted = Buffer.from(DISK)
      for (const i of lost) wanted.fill(0, i * CLUSTER, (i + 1) * CLUSTER)
      t.ok(readFileSync(target).equals(wanted), 'zeros, and all that is left')
      for (const i of lost) {
        t.match(done.stderr, `${CLUSTER} bytes at ${i * CLUSTER} are zeros in the target: `)
      }
    })
  }
})

t.test('sources that are cut off', async t => {
  const folder = tempFolder(t)
  const whole = IMAGE.bytes()
  for (let size = whole.length - 1; size > 3 * CLUSTER; size -= 50_001) {
    const source = sourceIn(folder)
    truncateSync(source, size)
    const target = join(folder, 'target')
    const done = await convertHere('--force', source, target)
    // Within its last cluster a file may end early: the rest is zeros.
    const isWhole = size > whole.length - CLUSTER
    if (!isWhole) t.match(done, { code: 1, stderr: /^vimgfs: [^\n]*\n$/ }, `${size} bytes`)
    t.equal(existsSync(target), isWhole)
    const saved = await convertHere('--force', '--salvage', source, target)
    t.equal(saved.code, isWhole ? 0 : existsSync(target) ? 3 : 1)
    if (existsSync(target)) {
      const bytes = readFileSync(target)
      const differs = bytes.findIndex((byte, i) => byte !== 0 && byte !== DISK[i])
      t.equal(differs, -1, 'nothing but the disk and zeros')
    }
    spawnSync('rm', ['-f', target])
  }
})

t.test('into an image whose key ends with a newline', async t => {
  const folder = tempFolder(t)
  const source = sourceIn(folder)
  const [target, key] = [join(folder, 'target.qcow2'), join(folder, 'key')]
  writeFileSync(key, 'secret\n')
  const options = { 'encrypt.format': 'luks', 'encrypt.iter-time': 10 }
  const passphrase = readFileSync(key)
  await createImage(target, { format: 'qcow2', sizeBytes: SIZE, options, passphrase })
  const args = ['-n', '--verify', '-O', 'qcow2', '--target-passphrase-file', key, source, target]
  t.strictSame(await convertHere(...args), { code: 0, stdout: '', stderr: '' })
})

t.test('a full disk', needsRoot(), async t => {
  const folder = tempFolder(t)
  const source = sourceIn(folder)
  const small = join(folder, 'small')
  mkdirSync(small)
  await run('mount', ['-t', 'tmpfs', '-o', 'size=200k', 'small', small])
  t.teardown(() => run('umount', [small]))
  for (const args of [[], ['-O', 'qcow2'], ['-O', 'qcow2', '-c']]) {
    await refused(
      t,
      small,
      [...args, source, join(small, 'target')],
      /write failed: no space is left there; make room, or use another folder/,
    )
  }
  t.ok(readFileSync(source).equals(IMAGE.bytes()), 'the source is as it was')
})

/** Makes a disk that takes some time to convert. */
function largeDisk(folder: string): string {
  const file = join(folder, 'large.raw')
  const fd = openSync(file, 'w')
  const piece = noise(2 ** 20, 4)
  for (let at = 0; at < 96; at++) writeSync(fd, piece, 0, piece.length, at * 2 ** 21)
  closeSync(fd)
  return file
}

t.test('killed at any moment: nothing, or all of it', async t => {
  const folder = tempFolder(t)
  const source = largeDisk(folder)
  for (const [i, args] of [[], ['-O', 'qcow2'], ['-O', 'qcow2', '-c']].entries()) {
    for (const signal of ['SIGKILL', 'SIGINT'] as const) {
      const out = join(folder, `${i}${signal}`)
      mkdirSync(out)
      const target = join(out, 'target')
      const command = [MAIN, 'convert', '-p', ...args, source, target]
      const child = spawn(process.execPath, command, { stdio: ['ignore', 'ignore', 'pipe'] })
      // Progress shows that it is under way.
      child.stderr.once('data', () => child.kill(signal))
      await new Promise(resolve => child.on('close', resolve))
      if (!existsSync(target)) t.strictSame(readdirSync(out), [], 'nothing is left')
      else {
        const check = join(out, 'check.raw')
        t.match(await convertHere(target, check), { code: 0 })
        t.ok(readFileSync(check).equals(readFileSync(source)), 'it is whole')
      }
    }
  }
})

t.test('an ordinary user', needsRoot(), async t => {
  const folder = sharedFolder(t)
  const source = sourceIn(folder)
  chmodSync(source, 0o644)
  chmodSync(folder, 0o777)
  const target = join(folder, 'target.qcow2')
  const { status, stderr } = spawnSync(
    process.execPath,
    [MAIN, 'convert', '-O', 'qcow2', '-c', '--verify', source, target],
    { uid: 65_534, gid: 65_534, encoding: 'utf8' },
  )
  t.equal(status, 0, stderr)
  const check = join(folder, 'check.raw')
  t.match(await convertHere(target, check), { code: 0 })
  t.ok(readFileSync(check).equals(DISK))
})

function patch(file: string, at: number, value: bigint): void {
  const fd = openSync(file, 'r+')
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(value)
  writeSync(fd, bytes, 0, 8, at)
  closeSync(fd)
}
