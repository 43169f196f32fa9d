/** `-o scratch=FILE`: an overlay keeps what is written to the disk, for the next mount, `vimgfs commit` and QEMU. */
import {
  copyFileSync,
  readFileSync,
  readdirSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { filesOf } from '../../src/image/scratch/scratch-layer.js'
import { OPENED_FILES } from '../../src/image/opening/store-source.js'
import {
  attemptIn,
  hasEnded,
  HERE,
  kill,
  mount,
  type Mount,
  mountFolder,
  NO_LOG,
  noFuse,
  noLibfuse,
  overLibfuse,
  type Place,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { attempt, needs, run } from '../support/run.js'
import { convert, makeImage, sha256 } from './images.js'

const WRITERS = fileURLToPath(new URL('scratch-writers.mjs', import.meta.url))
const MIB = 2 ** 20
const skip = { ...needs('qemu-img', 'qemu-io'), ...noFuse() }

const state = (file: string) => {
  const { mtimeNs, size } = statSync(file, { bigint: true })
  return { mtimeNs, size, sha: sha256(readFileSync(file)) }
}

/** An image of a format, and the bytes of its disk in a file. */
async function imageOf(folder: string, format: string): Promise<{ file: string; base: string }> {
  const { file } = await makeImage(folder)
  const base = await convert(file, join(folder, 'disk.base'))
  if (format === 'qcow2') return { file, base }
  const other = join(folder, `disk.${format}`)
  await run('qemu-img', ['convert', '-O', format, file, other])
  return { file: other, base }
}

const keep = (t: Test, file: string, overlay: string, place: Place = HERE) =>
  mount(t, file, { place, args: ['-o', `scratch=${overlay}`] })

async function unmounted({ place, folder }: Mount): Promise<void> {
  const { code, stderr } = await vimgfs(place, ['umount', folder])
  if (code !== 0) throw new Error(stderr)
}

const writeAt = async (file: string, mib: number, letter: string): Promise<void> => {
  const script = `head -c ${MIB} /dev/zero | tr '\\0' ${letter} | dd of=${file} bs=1M seek=${mib} conv=notrunc,fsync status=none`
  await run('sh', ['-c', script])
}

const KINDS = [
  ['qcow2', HERE],
  ['raw', HERE],
  ['vmdk', HERE],
  ['qcow2', overLibfuse(HERE)],
] as const

for (const [format, place] of KINDS) {
  t.test(
    `random writes are kept: ${format}, ${place.name}`,
    { ...skip, ...noLibfuse() },
    async t => {
      const { file, base } = await imageOf(sharedFolder(t), format)
      const overlay = join(dirname(file), 'kept.qcow2')
      const before = state(file)
      const mounted = await keep(t, file, overlay, place)
      t.match(mounted.printed.stdout, /kept\.qcow2 keeps that/)
      const disk = mounted.file('disk.raw')
      const task = { files: [{ path: disk, base }], threads: 3, steps: 500, seed: 3 }
      t.equal((await run(process.execPath, [WRITERS, JSON.stringify(task)])).trim(), 'same')
      const now = join(dirname(file), 'now')
      copyFileSync(disk, now)
      await unmounted(mounted)
      t.same(state(file), before, 'the image keeps every byte and its time')
      await run('qemu-img', ['check', '-q', overlay])
      await run('cmp', [now, await convert(overlay, join(dirname(file), 'by-qemu'))])
      await run('qemu-io', ['-f', 'qcow2', '-c', 'write -q -P 0x51 7M 64k', overlay])
      await run('qemu-img', ['rebase', '-u', '-b', basename(file), '-F', format, overlay])
      const again = await keep(t, file, overlay, place)
      await run('cmp', [await convertShared(overlay), again.file('disk.raw')])
      await unmounted(again)
      t.same(state(file), before)
    },
  )
}

/** What QEMU reads while the overlay is mounted. */
async function convertShared(overlay: string): Promise<string> {
  const raw = `${overlay}.raw`
  await run('qemu-img', ['convert', '-U', '-f', 'qcow2', '-O', 'raw', overlay, raw])
  return raw
}

t.test('commit takes it up, and the emptied overlay goes on', skip, async t => {
  const { file } = await imageOf(sharedFolder(t), 'qcow2')
  const overlay = join(dirname(file), 'kept.qcow2')
  const first = await keep(t, file, overlay)
  await writeAt(first.file('disk.raw'), 5, 'a')
  await writeAt(first.file('disk@one.raw'), 5, 'b')
  await unmounted(first)
  const expected = await convert(overlay, join(dirname(file), 'expected'))
  t.equal((await vimgfs(HERE, ['commit', overlay])).code, 0)
  await run('cmp', [expected, await convert(file, join(dirname(file), 'committed'))])
  const second = await keep(t, file, overlay)
  await run('cmp', [expected, second.file('disk.raw')])
  const one = await convert(file, join(dirname(file), 'one'), 'one')
  await run('cmp', [one, second.file('disk@one.raw')])
  await writeAt(second.file('disk.raw'), 6, 'c')
  await unmounted(second)
  const third = await keep(t, file, overlay)
  t.equal(
    readFileSync(third.file('disk.raw'))
      .subarray(6 * MIB, 7 * MIB)
      .toString(),
    'c'.repeat(MIB),
  )
})

t.test('refusals', skip, async t => {
  const folder = sharedFolder(t)
  const { file } = await imageOf(folder, 'qcow2')
  const overlay = join(folder, 'kept.qcow2')
  const mounted = await keep(t, file, overlay)
  await writeAt(mounted.file('disk.raw'), 5, 'a')
  const copy = join(folder, 'copy.qcow2')
  await run('cp', ['-p', file, copy])
  const other = join(folder, 'other.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', file, '-F', 'qcow2', other])
  await run('qemu-io', ['-f', 'qcow2', '-c', 'write -q 0 1k', other])
  const text = join(folder, 'text')
  writeFileSync(text, 'no image\n'.repeat(100))
  const refused = async (image: string, name: string, says: RegExp) => {
    const args = ['mount', '-f', ...NO_LOG, '-o', `scratch=${name}`, image, mountFolder(t)]
    const before = state(name)
    const { code, stderr } = await vimgfs(HERE, args)
    t.match({ code, stderr }, { code: 1, stderr: says })
    t.equal(stderr.trim().split('\n').length, 1, 'one line')
    t.same(state(name), before)
  }
  await refused(copy, overlay, /it is in use/)
  await unmounted(mounted)
  await refused(copy, overlay, /it stands on "disk.qcow2", not on .*copy.qcow2; name another file/)
  await refused(file, file, /this is the image itself/)
  await refused(file, copy, /it stands on no other image/)
  await refused(file, text, /no qcow2 image|not a qcow2/)
  await refused(file, other, /it was not made by -o scratch.*; mount this file itself/)
  const { atime, mtime } = statSync(file)
  await run('qemu-io', ['-f', 'qcow2', '-c', 'write -q -P 0x61 0 1k', copy])
  await run('sh', ['-c', `cat ${copy} > ${file}`])
  await refused(file, overlay, /disk.qcow2 has changed since this file was written/)
  utimesSync(file, atime, mtime)
  await refused(file, overlay, /disk.qcow2 has changed since this file was written/)
})

t.test('an encrypted image has no overlay', skip, async t => {
  const folder = sharedFolder(t)
  const file = join(folder, 'disk.qcow2')
  const secret = join(folder, 'secret')
  writeFileSync(secret, 'open sesame')
  const create = ['create', '-f', 'qcow2', '-o', 'encrypt.format=luks,encrypt.iter-time=10']
  t.equal((await vimgfs(HERE, [...create, '--passphrase-file', secret, file, '4M'])).code, 0)
  const overlay = join(folder, 'kept.qcow2')
  const args = ['mount', '-f', ...NO_LOG, '--passphrase-file', secret, '-o', `scratch=${overlay}`]
  const refused = await vimgfs(HERE, [...args, file, mountFolder(t)])
  t.match(refused, { code: 1, stderr: /it is encrypted, .*; use -o scratch without a file/ })
  t.notOk(readdirSync(folder).includes('kept.qcow2'))
})

t.test('after kill -9 the overlay has leaks at worst, and what was synced', skip, async t => {
  const { file } = await imageOf(sharedFolder(t), 'qcow2')
  const before = state(file)
  const overlay = join(dirname(file), 'kept.qcow2')
  for (let round = 0; round < 3; round++) {
    const mounted = await keep(t, file, overlay)
    const disk = mounted.file('disk.raw')
    await writeAt(disk, 2 + round, 'abc'[round] as string)
    const noise = attemptIn(HERE, 'sh', [
      '-c',
      `for i in $(seq 1 200); do dd if=/dev/urandom of=${disk} bs=64k count=1 seek=$((160 + i)) conv=notrunc; done`,
    ])
    kill(mounted.pid, 'SIGKILL')
    t.ok(await hasEnded(t, mounted.pid))
    await noise
    await vimgfs(HERE, ['umount', '--lazy', mounted.folder])
    const checked = await attempt('qemu-img', ['check', overlay])
    t.ok(checked.code === 0 || checked.code === 3, 'leaks at worst')
    const raw = readFileSync(await convert(overlay, join(dirname(file), 'after')))
    for (let i = 0; i <= round; i++) {
      const found = raw.subarray((2 + i) * MIB, (3 + i) * MIB)
      t.ok(found.equals(Buffer.alloc(MIB, 'abc'[i])), `what was synced in round ${i}`)
    }
  }
  t.same(state(file), before)
})

t.test(
  'it is written as any image that is mounted, so power cuts leave leaks at worst',
  async t => {
    t.equal(filesOf({ isKept: true }), OPENED_FILES)
    t.not(filesOf({ isKept: false }), OPENED_FILES)
  },
)
