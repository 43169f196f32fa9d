/** Disks in tar archives: they read as the file that tar takes out of the archive, and nothing else of the archive is read. */
import {
  copyFileSync,
  mkdirSync,
  readFileSync,
  renameSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { run as check } from '../../src/cli/check.js'
import { run as convert } from '../../src/cli/convert.js'
import { run as compare } from '../../src/cli/compare.js'
import { run as create } from '../../src/cli/create.js'
import { run as info } from '../../src/cli/info.js'
import { run as map } from '../../src/cli/map.js'
import { run as rebase } from '../../src/cli/rebase.js'
import { run as resize } from '../../src/cli/resize.js'
import { run as snapshot } from '../../src/cli/snapshot.js'
import { openImage } from '../../src/image/open-image.js'
import { ChangeWatch, watchedFiles } from '../../src/image/opening/change-watch.js'
import { closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { runHere } from '../support/command.js'
import { attempt, needs, run, tempFolder } from '../support/run.js'
import { qemuImg, qemuIo, randomWrites } from './qemu.js'

const SIZE = 6 * 2 ** 20
const NOISE = Buffer.alloc(SIZE / 8, 0x5a)
const skip = needs('tar', 'qemu-img', 'qemu-io')
const tar = (cwd: string, name: string, ...rest: string[]) =>
  run('tar', ['-cf', name, ...rest], { cwd })

/** Makes a disk of every kind in `folder`; returns the names by which they are opened. */
async function makeDisks(folder: string): Promise<string[]> {
  const write = (name: string, seed: number, ...args: string[]) =>
    qemuIo(join(folder, name), randomWrites(seed, SIZE, { cluster: 65536, count: 10 }), args)
  await qemuImg('create', '-q', '-f', 'qcow2', join(folder, 'base.qcow2'), String(SIZE))
  await write('base.qcow2', 1, '-f', 'qcow2')
  mkdirSync(join(folder, 'sub'))
  const top = join(folder, 'sub/top.qcow2')
  await qemuImg('create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', '../base.qcow2', top)
  await qemuImg('snapshot', '-c', 'old', top)
  await write('sub/top.qcow2', 2, '-f', 'qcow2')
  const made = (name: string, format: string, ...options: string[]) =>
    qemuImg('convert', '-O', format, ...options, top, join(folder, name))
  await made('packed.qcow2', 'qcow2', '-c')
  await made('stream.vmdk', 'vmdk', '-o', 'subformat=streamOptimized')
  await made('sparse.vmdk', 'vmdk', '-o', 'subformat=monolithicSparse')
  await made('flat.vmdk', 'vmdk', '-o', 'subformat=monolithicFlat')
  await made('split.vmdk', 'vmdk', '-o', 'subformat=twoGbMaxExtentSparse')
  await made('plain.img', 'raw')
  return ['base.qcow2', 'sub/top.qcow2', 'packed.qcow2', 'stream.vmdk', 'sparse.vmdk', 'flat.vmdk']
    .concat('split.vmdk', 'plain.img')
    .sort()
}

async function archiveOf(t: Test): Promise<{ folder: string; names: string[] }> {
  const folder = tempFolder(t)
  const names = await makeDisks(folder)
  // The bytes between the disks are noise, never zeros.
  writeFileSync(join(folder, 'noise'), NOISE)
  const others = ['flat-flat.vmdk', 'split-s001.vmdk'].filter(name => statSync(join(folder, name)))
  const all = [...names, ...others].flatMap(name => ['noise', name])
  await tar(folder, 'all.tar', '--hard-dereference', ...all, 'noise')
  return { folder, names }
}

t.test('every kind of disk, by each command that reads', skip, async t => {
  const { folder, names } = await archiveOf(t)
  for (const name of names) {
    const member = `all.tar::${name}`
    const here = (command: (args: string[]) => Promise<number>, ...args: string[]) =>
      runHere(command, ['--allow-path', '.', ...args], folder)
    const raw = name.endsWith('.img') ? ['-f', 'raw'] : []
    await run('qemu-img', ['convert', '-O', 'raw', ...raw, name, 'want.raw'], { cwd: folder })
    const converted = await here(convert, '-O', 'raw', '-q', member, 'got.raw', '--force')
    t.equal(converted.code, 0, `${name}: ${converted.stderr}`)
    t.ok(readFileSync(join(folder, 'got.raw')).equals(readFileSync(join(folder, 'want.raw'))), name)
    await here(convert, '-O', 'qcow2', '-c', '-q', member, 'got.qcow2', '--force')
    const same = ['compare', 'got.qcow2', 'want.raw']
    t.equal((await attempt('qemu-img', same, { cwd: folder })).code, 0, `${name}, compressed`)
    t.equal((await here(compare, member, name)).code, 0, `${name}: compared with the file itself`)
    const described = await here(info, '--output=json', member)
    const own = await here(info, '--output=json', name)
    const [shown, alone] = [described, own].map(({ stdout }) => JSON.parse(stdout))
    t.equal(shown.filename, `all.tar::/${name}`)
    t.strictSame(shown['virtual-size'], alone['virtual-size'])
    const mapped = await here(map, '--output=json', member)
    const mappedAlone = await here(map, '--output=json', name)
    const places = (text: string) =>
      JSON.parse(text).map(({ start, length, data, depth, offset }: Record<string, unknown>) => ({
        ...{ start, length, data, depth, offset },
      }))
    const isWhole = name.endsWith('.qcow2')
    // The files themselves have holes, which they have not in the archive.
    if (isWhole) t.strictSame(places(mapped.stdout), places(mappedAlone.stdout), name)
    if (raw.length === 0) {
      const [checked, alone] = [await here(check, member), await here(check, name)]
      t.equal(checked.code, alone.code, checked.stderr)
      t.equal(checked.stdout.replaceAll(member, name), alone.stdout, `${name}: checked`)
    }
    const image = await openImage(join(folder, member))
    const bytes = Buffer.alloc(image.disk.sizeBytes)
    image.disk.read(bytes, 0)
    image.close()
    t.ok(bytes.equals(readFileSync(join(folder, 'want.raw'))), `${name}: read by the library`)
  }
})

t.test('snapshots, of the image and in names', skip, async t => {
  const { folder } = await archiveOf(t)
  const listed = await runHere(snapshot, ['list', 'all.tar::sub/top.qcow2'], folder)
  t.match(listed.stdout, /\bold\b/)
  const words = ['all.tar::sub/top.qcow2@old', 'base.qcow2']
  t.equal((await runHere(compare, words, folder)).code, 0)
  const changed = ['--allow-path', '.', words[0] as string, 'sub/top.qcow2']
  t.equal((await runHere(compare, changed, folder)).code, 1)
})

t.test('one disk needs no name; several are listed', skip, async t => {
  const { folder } = await archiveOf(t)
  writeFileSync(join(folder, 'x.ovf'), '<Envelope/>')
  await tar(folder, 'one.ova', 'x.ovf', 'stream.vmdk', 'noise')
  t.equal((await runHere(compare, ['one.ova', 'plain.img'], folder)).code, 0)
  const several = await runHere(info, ['all.tar'], folder)
  t.equal(several.code, 1)
  t.match(
    several.stderr,
    /^vimgfs: \S+all\.tar: it has 8 disks; name one of \S+::base\.qcow2, .*\n$/,
  )
  t.notMatch(several.stderr, /flat-flat|split-s001/, 'parts of disks are no disks')
  const none = await runHere(info, ['one.ova::nothing.vmdk'], folder)
  t.match(
    none.stderr,
    /one\.ova: there is no "nothing\.vmdk" in it; it has \S+one\.ova::stream\.vmdk\n/,
  )
  symlinkSync('all.tar', join(folder, 'all'))
  t.equal((await runHere(info, ['all::base.qcow2'], folder)).code, 0, 'the name may say nothing')
  t.match((await runHere(info, ['all'], folder)).stderr, /tar archive.*FILE::DISK/)
  copyFileSync(join(folder, 'base.qcow2'), join(folder, 'a::b.qcow2'))
  t.equal((await runHere(info, ['a::b.qcow2'], folder)).code, 0, 'a file of the whole name wins')
  copyFileSync(join(folder, 'base.qcow2'), join(folder, 'odd.ova'))
  t.equal((await runHere(info, ['odd.ova'], folder)).code, 0, 'the bytes decide')
  t.match((await runHere(info, ['odd.ova::x'], folder)).stderr, /no uncompressed tar archive/)
})

t.test('names lead to nothing outside the archive', skip, async t => {
  const folder = tempFolder(t)
  mkdirSync(join(folder, 'sub'))
  await qemuImg('create', '-q', '-f', 'qcow2', join(folder, 'base.qcow2'), '1M')
  const names = ['base.qcow2', '../base.qcow2', '../../base.qcow2', join(folder, 'base.qcow2')]
  for (const name of names) {
    const top = join(folder, 'sub/top.qcow2')
    await qemuImg('create', '-q', '-f', 'qcow2', '-u', '-F', 'qcow2', '-b', name, top, '1M')
    await tar(folder, 'a.tar', 'sub/top.qcow2')
    const args = ['a.tar', join(folder, 'out.raw'), '--allow-path', folder]
    const { code, stderr } = await runHere(convert, args, folder)
    t.equal(code, 1)
    t.match(stderr, /its backing file ".*" (is not in|does not lie in) the archive.*\n$/, name)
  }
  const cases: [string, RegExp][] = [
    ['flat.vmdk', /extent/],
    ['/etc/passwd', /extent/],
  ]
  for (const [name, says] of cases) {
    const text = `# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 2 FLAT "${name}" 0\n`
    writeFileSync(join(folder, 'd.vmdk'), text)
    await tar(folder, 'd.tar', 'd.vmdk')
    t.match((await runHere(convert, ['d.tar', 'out.raw'], folder)).stderr, says)
  }
})

t.test('a disk ends where it ends in the archive: what follows is never read', skip, async t => {
  const folder = tempFolder(t)
  await qemuImg('create', '-q', '-f', 'qcow2', join(folder, 'd.qcow2'), '1M')
  await run('qemu-io', ['-c', 'write -P 1 0 1M', join(folder, 'd.qcow2')])
  await run('qemu-img', ['convert', '-O', 'qcow2', '-c', 'd.qcow2', 'c.qcow2'], { cwd: folder })
  writeFileSync(join(folder, 'noise'), NOISE)
  for (const [name, cut] of [
    ['d.qcow2', 65536 * 2],
    ['c.qcow2', 512],
  ] as const) {
    const size = statSync(join(folder, name)).size
    truncateSync(join(folder, name), size - cut - (size % 512))
    await tar(folder, 'cut.tar', name, 'noise')
    const [inTar, alone] = await Promise.all(
      [`cut.tar::${name}`, name].map(async image => {
        const opened = await openImage(join(folder, image))
        const read: (string | Buffer)[] = []
        for (let at = 0; at < 2 ** 20; at += 65536) {
          const bytes = Buffer.alloc(65536)
          try {
            opened.disk.read(bytes, at)
            read.push(bytes)
          } catch (error) {
            read.push((error as Error).message)
          }
        }
        opened.close()
        return read
      }),
    )
    t.strictSame(inTar, alone, name)
    t.ok(
      alone?.some(each => typeof each === 'string'),
      'something is lost',
    )
    for (const out of ['raw', 'qcow2']) {
      const args = ['-O', out, `cut.tar::${name}`, 'out', '--force']
      t.equal((await runHere(convert, args, folder)).code, 1, `${name}: not converted`)
    }
  }
})

t.test('what cannot be read in place is refused in one line', skip, async t => {
  const folder = tempFolder(t)
  writeFileSync(join(folder, 'holes.img'), '')
  truncateSync(join(folder, 'holes.img'), 2 ** 20)
  await tar(folder, 'sparse.tar', '-S', 'holes.img')
  t.match(
    (await runHere(info, ['sparse.tar'], folder)).stderr,
    /holes\.img: it lies in the archive in pieces.*take it out: tar -xf .*\n$/,
  )
  await tar(folder, 'cut.ova', 'holes.img')
  truncateSync(join(folder, 'cut.ova'), 4096)
  t.match(
    (await runHere(info, ['cut.ova'], folder)).stderr,
    /cut\.ova::\/holes\.img: the archive ends before the end of this file; restore/,
  )
  const bytes = readFileSync(join(folder, 'cut.ova'))
  bytes[3] = 0x21
  writeFileSync(join(folder, 'cut.ova'), bytes)
  t.match(
    (await runHere(info, ['cut.ova'], folder)).stderr,
    /damaged: .*byte 0, its checksum is wrong/,
  )
})

t.test('an archive is only read, and nothing stands on what is in it', skip, async t => {
  const { folder } = await archiveOf(t)
  const before = readFileSync(join(folder, 'all.tar'))
  const top = 'all.tar::sub/top.qcow2'
  await qemuImg('create', '-q', '-f', 'qcow2', join(folder, 'n.qcow2'), String(SIZE))
  const refused: [(args: string[]) => Promise<number>, string[], RegExp][] = [
    [resize, [top, '+1M'], /lies in an archive, which is only read; .*-o scratch.*tar -xf/],
    [snapshot, ['create', top, 'x'], /lies in an archive, which is only read/],
    [check, ['--repair', 'leaks', top], /lies in an archive, which is only read/],
    [convert, ['-n', '-O', 'qcow2', 'plain.img', top], /lies in an archive/],
    [create, ['-f', 'qcow2', '-F', 'qcow2', '-b', top, 'new.qcow2'], /no image can stand on it/],
    [rebase, ['-F', 'qcow2', '-b', top, 'n.qcow2'], /no image can stand on it/],
    [convert, ['-O', 'qcow2', '-F', 'qcow2', '-B', top, 'plain.img', 'o.qcow2'], /can stand on it/],
  ]
  for (const [command, args, says] of refused) {
    const { code, stderr } = await runHere(command, args, folder)
    t.equal(code, 1, args.join(' '))
    t.match(stderr, says)
    t.match(stderr, /^[^\n]+\n$/, 'one line')
  }
  t.ok(readFileSync(join(folder, 'all.tar')).equals(before))
})

t.test('a change of the archive is noticed', skip, async t => {
  const { folder } = await archiveOf(t)
  const chain = openChain(join(folder, 'all.tar::sub/top.qcow2'))
  t.teardown(() => closeChain(chain))
  const watch = new ChangeWatch(watchedFiles(chain.layers), ChangeWatch.memory(), () => {})
  t.equal(watch.look(), false)
  await tar(folder, 'new.tar', 'noise')
  renameSync(join(folder, 'new.tar'), join(folder, 'all.tar'))
  t.equal(watch.look(), true)
})
