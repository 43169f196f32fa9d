/** Files that are taken for raw disks: what mounting says of them, and which it refuses. */
import fs from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import t from 'tap'
import { noise } from '../fixtures/model.js'
import {
  HERE,
  mount,
  mountFolder,
  NO_LOG,
  noFuse,
  noLibfuse,
  overLibfuse,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { needs, needsRoot, run } from '../support/run.js'

const MIB = 2 ** 20
const UNKNOWN =
  /^vimgfs: [^\n]*: its format was guessed as raw, but it has no partition table and no file system that is known \(--format raw [^\n]*\), mounted read-only\n$/

for (const { place, skip } of [
  { place: HERE, skip: noFuse() },
  { place: overLibfuse(HERE), skip: noLibfuse() },
]) {
  t.test(place.name, skip, async t => {
    const folder = sharedFolder(t)
    const unknown = join(folder, 'unknown.img')
    fs.writeFileSync(unknown, noise(MIB, 3))
    const fresh = join(folder, 'fresh.img')
    fs.writeFileSync(fresh, Buffer.alloc(MIB))

    const guessed = await mount(t, unknown, { place })
    t.match(guessed.printed.stderr, UNKNOWN)
    t.match(
      guessed.printed.stdout,
      /^unknown\.raw \(1 MiB\) in [^\n]*, raw \(guessed\), read-only\n/,
    )

    const copy = join(folder, 'copy.img')
    fs.copyFileSync(unknown, copy)
    const stated = await mount(t, copy, { place, args: ['--format', 'raw'] })
    t.equal(stated.printed.stderr, '')
    t.match(stated.printed.stdout, /, raw, read-write\n/)

    const zeros = await mount(t, fresh, { place })
    t.equal(zeros.printed.stderr, '')
    t.match(zeros.printed.stdout, /, raw \(guessed\), read-write\n/)

    const { code, stderr } = await vimgfs(place, [
      ...['mount', ...NO_LOG, '-o', 'rw', unknown, mountFolder(t, place)],
    ])
    t.equal(code, 1)
    t.match(
      stderr,
      /^vimgfs: [^\n]*unknown\.img: [^\n]*guessed as raw[^\n]*; if it is one, give --format raw\n$/,
    )
  })
}

t.test('files that are no disk', noFuse(), async t => {
  const folder = sharedFolder(t)
  const image = join(folder, 'disk.qcow2.gz')
  fs.writeFileSync(image, gzipSync(noise(MIB, 3)))
  const says =
    /^vimgfs: [^\n]*disk\.qcow2\.gz: this is a file that is compressed with gzip, not a disk; unpack it with gunzip -k[^\n]*--format raw[^\n]*\n$/
  for (const words of [
    ['mount', ...NO_LOG],
    ['mount', ...NO_LOG, '-o', 'ro'],
    ['info'],
    ['check'],
  ]) {
    const where = words[0] === 'mount' ? [mountFolder(t)] : []
    const { code, stdout, stderr } = await vimgfs(HERE, [...words, image, ...where])
    t.equal(code, 1, words.join(' '))
    t.equal(stdout, '')
    t.match(stderr, says)
  }
  const shown = await mount(t, image, { args: ['--format', 'raw'] })
  t.match(shown.printed.stdout, /, raw, read-write\n/)
})

t.test('block devices', { ...noFuse(), ...needsRoot(), ...needs('losetup', 'mke2fs') }, async t => {
  const folder = sharedFolder(t)
  const file = join(folder, 'device')
  fs.writeFileSync(file, noise(4 * MIB, 3))
  const device = (await run('losetup', ['--find', '--show', file])).trim()
  t.teardown(() => run('losetup', ['--detach', device]))
  const unknown = await mount(t, device)
  t.match(unknown.printed.stderr, UNKNOWN)
  t.equal((await vimgfs(HERE, ['umount', unknown.folder])).code, 0)
  await run('mke2fs', ['-q', '-F', device])
  const known = await mount(t, device)
  t.match(known.printed.stdout, /, raw \(guessed\), read-write\n/)
  t.equal((await vimgfs(HERE, ['umount', known.folder])).code, 0)
})
