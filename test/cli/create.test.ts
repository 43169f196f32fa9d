/** `vimgfs create`: what it takes, prints and refuses. */
import {
  existsSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { run as create } from '../../src/cli/create.js'
import { describe } from '../../src/image/info.js'
import { runHere } from '../support/command.js'
import { HERE, vimgfs } from '../support/mount.js'
import { tempFolder } from '../support/run.js'

t.test('a raw image with the name of another format', async t => {
  const folder = tempFolder(t)
  const hint =
    'vimgfs: d.qcow2: it is raw, although its name ends in .qcow2; -f qcow2 makes a qcow2 image\n'
  const { code, stderr } = await runHere(create, ['d.qcow2', '1M'], folder)
  t.strictSame({ code, stderr }, { code: 0, stderr: hint })
  const stated = await runHere(create, ['-f', 'raw', 'e.qcow2', '1M'], folder)
  t.strictSame(stated.stderr, '')
})

t.test('a raw image is the default, and the same from the command line', async t => {
  const folder = tempFolder(t)
  const found = await vimgfs(HERE, ['create', join(folder, 'one.img'), '1.5M'])
  t.strictSame(found, { code: 0, stdout: `${join(folder, 'one.img')}: raw, 1.5 MiB\n`, stderr: '' })
  t.equal(statSync(join(folder, 'one.img')).size, 1.5 * 2 ** 20)
  const here = await runHere(create, ['two.img', '1000'], folder)
  t.strictSame(here, { code: 0, stdout: 'two.img: raw, 1 KiB\n', stderr: '' })
  t.equal(statSync(join(folder, 'two.img')).size, 1024, 'rounded up to whole sectors')
  const quiet = await runHere(create, ['-q', 'three.img', '-o', 'size=4k'], folder)
  t.strictSame(quiet, { code: 0, stdout: '', stderr: '' })
  t.equal(statSync(join(folder, 'three.img')).size, 4096)
})

t.test('options are listed for each format', async t => {
  for (const args of [['-o', '?'], ['-ohelp'], ['--options=help']]) {
    t.match((await runHere(create, args, '/')).stdout, 'Options of raw images')
  }
  for (const format of ['raw', 'qcow2', 'vmdk', 'qcow', 'cow']) {
    const { code, stdout, stderr } = await runHere(create, ['-f', format, '-o', 'help'], '/')
    t.strictSame([code, stderr], [0, ''])
    t.match(stdout, `Options of ${format} images, with their defaults:\n`)
    t.match(stdout, /\n {2}size=SIZE +size of the disk, as SIZE\n/)
  }
})

t.test('several -o, and options of qemu-img that change nothing', async t => {
  const folder = tempFolder(t)
  const args = ['-f', 'qcow2', '-o', 'size=2M,nocow=on', '-o', 'cluster_size=4k', '-q']
  t.strictSame(await runHere(create, [...args, 'disk', '2M'], folder), {
    ...{ code: 0, stdout: '', stderr: '' },
  })
  t.match(describe(join(folder, 'disk'), {}, false), [{ 'cluster-size': 4096 }])
  const found = await runHere(create, [...args, 'other', '1M'], folder)
  t.match(found, { code: 2, stderr: /SIZE is 1M, and the option size another one/ })
})

t.test('JSON describes the new image', async t => {
  const folder = tempFolder(t)
  const args = ['-f', 'qcow2', '-o', 'cluster_size=4k', '--output=json', 'disk.qcow2', '1G']
  const { code, stdout, stderr } = await runHere(create, args, folder)
  t.strictSame([code, stderr], [0, ''])
  const { 'virtual-size': size, 'cluster-size': cluster, format } = JSON.parse(stdout)
  t.strictSame([format, size, cluster], ['qcow2', 2 ** 30, 4096])
})

t.test('the size and the format come from the backing file', async t => {
  const folder = tempFolder(t)
  const run = (...args: string[]) => runHere(create, args, folder)
  await run('-f', 'qcow2', 'base.qcow2', '3M')
  t.equal((await run('-f', 'qcow2', '-b', 'base.qcow2', 'top.qcow2')).code, 0)
  const [top] = describe(join(folder, 'top.qcow2'), {}, false)
  t.equal(top?.['virtual-size'], 3 * 2 ** 20)
  t.equal(top?.['backing-filename'], 'base.qcow2')
  t.equal(top?.['backing-filename-format'], 'qcow2')
  const unseen = await run('-f', 'qcow2', '-u', '-b', 'missing', '-F', 'raw', 'unseen.qcow2', '1M')
  t.strictSame([unseen.code, unseen.stderr], [0, ''])
})

t.test('an existing file is only replaced with --force', async t => {
  const folder = tempFolder(t)
  const run = (...args: string[]) => runHere(create, args, folder)
  for (const name of ['disk.img', 'disk-flat.vmdk', 'data'])
    writeFileSync(join(folder, name), 'old')
  const cases = [
    ['disk.img', '1M'],
    ['-f', 'vmdk', '-o', 'subformat=monolithicFlat', 'disk.vmdk', '1M'],
    ['-f', 'qcow2', '-o', 'data_file=data', 'disk.qcow2', '1M'],
  ]
  for (const args of cases) {
    const { code, stdout, stderr } = await run(...args)
    t.strictSame([code, stdout], [1, ''])
    t.match(stderr, /^vimgfs: .*there is a file of this name already; .*--force\n$/)
  }
  t.same(
    readdirSync(folder).sort(),
    ['data', 'disk-flat.vmdk', 'disk.img'],
    'nothing is left behind',
  )
  for (const name of readdirSync(folder)) t.equal(String(readFileSync(join(folder, name))), 'old')
  for (const args of cases) t.equal((await run('--force', ...args)).code, 0)
})

t.test('a new image does not replace what it stands on', async t => {
  const folder = tempFolder(t)
  const run = (...args: string[]) => runHere(create, args, folder)
  await run('-f', 'qcow2', 'base.qcow2', '1M')
  await run('-f', 'qcow2', '-b', 'base.qcow2', 'middle.qcow2')
  symlinkSync('base.qcow2', join(folder, 'link'))
  for (const target of ['base.qcow2', 'middle.qcow2', 'link']) {
    const { code, stderr } = await run('-f', 'qcow2', '--force', '-b', 'middle.qcow2', target)
    t.equal(code, 1)
    t.match(stderr, /would replace a file that it is made of/)
  }
})

t.test('wrong usage', async t => {
  const folder = tempFolder(t)
  writeFileSync(join(folder, 'base'), Buffer.alloc(2 ** 20))
  const cases: [string[], RegExp][] = [
    [[], /FILE is missing/],
    [['disk'], /SIZE is missing/],
    [['disk', '1X'], /SIZE takes a size/],
    [['disk', '1M', 'more'], /"more" is one argument too many/],
    [['-f', 'vhd', 'disk', '1M'], /no images of the format "vhd" can be made/],
    [['-f', 'vpc', 'disk', '1M'], /no images of the format "vpc" can be made/],
    [['-b', 'base', 'disk'], /a raw image cannot have a backing file/],
    [['-F', 'raw', 'disk', '1M'], /-F needs -b/],
    [['-u', '-b', 'base', '-f', 'qcow2', 'disk'], /-u needs SIZE/],
    [
      ['-o', 'nonsense=1', 'disk', '1M'],
      /raw has no option "nonsense"; vimgfs create -f raw -o help/,
    ],
    [['-f', 'qcow2', '-o', 'cluster_size=3k', 'disk', '1M'], /cluster_size is a power of two/],
    [['-f', 'qcow2', '-o', 'cluster_size', 'disk', '1M'], /cluster_size needs a value/],
    [
      ['-f', 'qcow2', '-o', 'compat=2', 'disk', '1M'],
      /the option compat takes 0.10, 1.1, v2, v3, not "2"/,
    ],
    [['-f', 'qcow2', '-o', 'extended_l2=maybe', 'disk', '1M'], /extended_l2 takes on or off/],
    [['-f', 'qcow2', '-o', 'refcount_bits=3', 'disk', '1M'], /refcount_bits is a power of two/],
    [['-f', 'qcow2', '-o', 'extended_l2=on,cluster_size=8k', 'disk', '1M'], /16K at least/],
    [
      ['-f', 'qcow2', '-o', 'compat=0.10,lazy_refcounts=on', 'disk', '1M'],
      /lazy_refcounts needs compat=1.1/,
    ],
    [['-f', 'qcow2', '-o', 'data_file_raw=on', 'disk', '1M'], /data_file_raw needs data_file/],
    [['-f', 'qcow2', '-o', 'data_file=d,data_file_raw=on', '-b', 'base', 'disk'], /backing file/],
    [['-f', 'qcow2', '-o', 'preallocation=full', '-b', 'base', 'disk'], /needs extended_l2=on/],
    [['-f', 'qcow2', '-o', 'encrypt.iter-time=9', 'disk', '1M'], /needs encrypt.format=luks/],
    [['-f', 'qcow2', '--passphrase-file', 'base', 'disk', '1M'], /is for encrypted images/],
    [['-f', 'qcow2', '-o', 'cluster_size=512', 'disk', '1P'], /needs larger clusters/],
    [['-f', 'vmdk', '-b', 'base', 'disk'], /the parent of a vmdk must be a vmdk/],
    [['-f', 'vmdk', '-o', 'subformat=vmfsSparse', 'disk', '1M'], /name it with -b/],
    [
      ['-f', 'vmdk', '-o', 'subformat=monolithicFlat,zeroed_grain=on', 'disk', '1M'],
      /zeroed_grain/,
    ],
    [['-f', 'vmdk', '-o', 'hwversion="', 'disk', '1M'], /hwversion cannot be/],
    [['-f', 'qcow', 'disk', '0'], /one sector at least/],
    [['--output=xml', 'disk', '1M'], /--output takes human, json/],
  ]
  for (const [args, says] of cases) {
    const { code, stdout, stderr } = await runHere(create, args, folder)
    t.strictSame([code, stdout], [2, ''], args.join(' '))
    t.match(stderr, says)
    t.equal(stderr.split('\n').length, 2, 'in one line')
  }
  t.same(readdirSync(folder), ['base'], 'nothing is made')
})

t.test('what cannot be made', async t => {
  const folder = tempFolder(t)
  const cases: [string[], RegExp][] = [
    [['no/disk', '1M'], /its folder cannot be used: .*make the folder first/],
    [['-f', 'qcow2', '-b', 'missing', 'disk'], /missing/],
    [['-f', 'qcow2', '-o', 'data_file=disk', 'disk', '1M'], /two files of the new image/],
  ]
  for (const [args, says] of cases) {
    const { code, stdout, stderr } = await runHere(create, args, folder)
    t.strictSame([code, stdout], [1, ''], args.join(' '))
    t.match(stderr, says)
  }
  t.same(readdirSync(folder), [], 'nothing is left behind')
})

t.test('a passphrase from a file, without its newline', async t => {
  const folder = tempFolder(t)
  writeFileSync(join(folder, 'key'), 'secret\n')
  const args = ['-f', 'qcow2', '-o', 'encrypt.format=luks,encrypt.iter-time=10']
  const made = await runHere(create, [...args, '--passphrase-file', 'key', 'disk', '1M'], folder)
  t.strictSame([made.code, made.stderr], [0, ''])
  const { openImage } = await import('../../src/index.js')
  const image = await openImage(join(folder, 'disk'), { passphrase: 'secret' })
  image.close()
  t.ok(existsSync(join(folder, 'disk')))
})

t.test('words of qemu-img', async t => {
  const folder = tempFolder(t)
  for (const [compat, version] of [
    ['v2', 2],
    ['v3', 3],
  ] as const) {
    await runHere(create, ['-q', '-f', 'qcow2', '-o', `compat=${compat}`, compat, '1M'], folder)
    t.equal(readFileSync(join(folder, compat)).readUInt32BE(4), version)
  }
  await runHere(create, ['-q', 'hex', '0x1400'], folder)
  t.equal(statSync(join(folder, 'hex')).size, 0x1400)
})

t.test('a vmdk without bytes, which nobody could open', async t => {
  const folder = tempFolder(t)
  for (const subformat of ['monolithicSparse', 'twoGbMaxExtentFlat']) {
    const args = ['-f', 'vmdk', '-o', `subformat=${subformat}`, 'disk.vmdk', '0']
    t.strictSame(await runHere(create, args, folder), {
      ...{ code: 2, stdout: '', stderr: 'vimgfs: a vmdk disk has one sector at least\n' },
    })
  }
  t.strictSame(readdirSync(folder), [])
})
