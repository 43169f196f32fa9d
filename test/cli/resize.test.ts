/** `vimgfs resize`: what it prints and refuses. */
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { run as create } from '../../src/cli/create.js'
import { run as resize } from '../../src/cli/resize.js'
import { openImage } from '../../src/image/open-image.js'
import { runHere } from '../support/command.js'
import { tempFolder } from '../support/run.js'

t.test('sizes, differences and what is printed', async t => {
  const folder = tempFolder(t)
  const run = (...args: string[]) => runHere(resize, args, folder)
  await runHere(create, ['-f', 'qcow2', 'disk.qcow2', '1M'], folder)
  t.strictSame(await run('disk.qcow2', '2M'), {
    code: 0,
    stdout: 'disk.qcow2: 2 MiB (before: 1 MiB)\n',
    stderr: '',
  })
  t.strictSame((await run('-q', 'disk.qcow2', '+1M')).stdout, '')
  t.match((await run('disk.qcow2', '+1')).stdout, /\(before: 3 MiB\)/)
  const { stdout } = await run('--output=json', '--shrink', 'disk.qcow2', '-1M')
  const expected = { filename: 'disk.qcow2', before: 3146240, after: 2097664, lost: 0 }
  t.strictSame(JSON.parse(stdout), expected)
  writeFileSync(join(folder, 'disk.img'), Buffer.alloc(1000, 1))
  t.equal((await run('-f', 'raw', 'disk.img', '+0')).code, 0)
  t.equal(statSync(join(folder, 'disk.img')).size, 1024, 'whole sectors')
})

t.test('data is not cut off by mistake', async t => {
  const folder = tempFolder(t)
  const run = (...args: string[]) => runHere(resize, args, folder)
  for (const format of ['raw', 'qcow2']) {
    const file = join(folder, `disk.${format}`)
    await runHere(create, ['-f', format, file, '1M'], folder)
    const image = await openImage(file, { format, access: 'write' })
    image.disk.write(Buffer.alloc(65536, 7), 2 ** 20 - 65536)
    image.close()
    const before = readFileSync(file)
    const without = await run('-f', format, file, '512k')
    t.equal(without.code, 1)
    t.match(without.stderr, /the disk has 1048576 bytes, and 524288 are less; .*--shrink/)
    const lost = await run('-f', format, '--shrink', file, '-512k')
    t.equal(lost.code, 1)
    t.match(lost.stderr, /65536 bytes of data lie past the new end; .*--force/)
    t.ok(readFileSync(file).equals(before), 'nothing has changed')
    const forced = await run('-f', format, '--shrink', '--force', file, '512k')
    t.match(forced.stdout, /512 KiB \(before: 1 MiB\); 64 KiB of data were cut off/)
  }
})

t.test('what cannot be resized', async t => {
  const folder = tempFolder(t)
  const run = (...args: string[]) => runHere(resize, args, folder)
  for (const format of ['qcow', 'cow']) {
    await runHere(create, ['-f', format, `disk.${format}`, '1M'], folder)
    const { code, stderr } = await run(`disk.${format}`, '2M')
    t.equal(code, 1)
    t.match(stderr, `the size of a ${format} disk does not change; convert it`)
  }
  await runHere(create, ['-f', 'qcow2', 'disk.qcow2', '1M'], folder)
  const vmdk = join(tempFolder(t), 'disk.vmdk')
  const child = join(vmdk, '..', 'child.vmdk')
  const stream = join(vmdk, '..', 'stream.vmdk')
  await runHere(create, ['-f', 'vmdk', vmdk, '1M'], folder)
  await runHere(create, ['-f', 'vmdk', '-b', 'disk.vmdk', child], folder)
  await runHere(create, ['-f', 'vmdk', '-o', 'subformat=streamOptimized', stream, '1M'], folder)
  const cases: [string[], number, RegExp][] = [
    [['disk.qcow2'], 2, /SIZE is missing/],
    [['disk.qcow2', '1X'], 2, /SIZE takes a size/],
    [['disk.qcow2', '-1k'], 2, /a smaller disk needs --shrink/],
    [['--shrink', 'disk.qcow2', '-2M'], 2, /the disk has 1048576 bytes, and cannot have -1048576/],
    [['--preallocation=some', 'disk.qcow2', '2M'], 2, /--preallocation takes off, metadata/],
    [['missing', '2M'], 1, /missing/],
    [['disk.qcow2', '4P'], 1, /too large for its clusters/],
    [[child, '2M'], 1, /a disk on a parent is as large as the parent/],
    [[stream, '2M'], 1, /stream-optimized/],
    [[vmdk, '2M'], 1, /child\.vmdk/],
    [['--preallocation=full', '--force', vmdk, '2M'], 2, /vmdk has no preallocation=full/],
    [['--force', vmdk, '7P'], 1, /too many/],
  ]
  for (const [args, expected, says] of cases) {
    const { code, stdout, stderr } = await run(...args)
    t.strictSame([code, stdout], [expected, ''], args.join(' '))
    t.match(stderr, says)
    t.equal(stderr.split('\n').length, 2, 'in one line')
  }
  const image = await openImage(join(folder, 'disk.qcow2'), { access: 'write' })
  t.match((await run('disk.qcow2', '2M')).stderr, /disk\.qcow2: /, 'an image in use')
  image.close()
  t.same(readdirSync(folder).sort(), ['disk.cow', 'disk.qcow', 'disk.qcow2'])
})
