/** Programs that replace the content of a file, applied to the disk's file: it must equal the source afterwards. */
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { constants } from 'node:os'
import t, { type Test } from 'tap'
import {
  attemptIn,
  call,
  HERE,
  mount,
  type Mount,
  noFuse,
  noLibfuse,
  overLibfuse,
  type Place,
  runIn,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { needs, run } from '../support/run.js'

const MIB = 2 ** 20
const SIZE = 8 * MIB
const { EPERM } = constants.errno
const skip = { ...needs('qemu-img', 'qemu-io'), ...noFuse() }
const places: readonly Place[] = noLibfuse().skip ? [HERE] : [HERE, overLibfuse(HERE)]

/** Mounts a disk that is full of nines. */
async function fullDisk(t: Test, place: Place): Promise<Mount & { image: string; disk: string }> {
  const image = join(sharedFolder(t), 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, String(SIZE)])
  await run('qemu-io', ['-c', `write -q -P 0x39 0 ${SIZE}`, image])
  const mounted = await mount(t, image, { place })
  return { ...mounted, image, disk: mounted.file('disk.raw') }
}

/** Makes a source with data between holes, not in whole pages, and a hole at its end; or one hole. */
async function sources(t: Test): Promise<{ folder: string; names: readonly string[] }> {
  const folder = sharedFolder(t)
  const bytes = Buffer.alloc(SIZE)
  for (let i = 0; i < 5; i++) {
    const at = i * MIB + i * 123_457
    for (let k = 0; k < 70_001; k++) bytes[at + k] = 1 + ((k * (i + 3)) % 255)
  }
  bytes.write('alone', 7 * MIB + 300)
  writeFileSync(join(folder, 'holes'), bytes)
  writeFileSync(join(folder, 'zeros'), Buffer.alloc(SIZE))
  for (const name of ['holes', 'zeros']) await run('fallocate', ['-d', join(folder, name)])
  for (const name of ['holes', 'zeros']) {
    await run('tar', ['-C', folder, '-cSf', join(folder, `${name}.tar`), name])
  }
  return { folder, names: ['holes', 'zeros'] }
}

/** Shell commands, with `$S` for the source and `$D` for the disk; the first word is the program. */
const COMMANDS: readonly string[] = [
  ...['auto', 'always', 'never'].map(how => `cp --sparse=${how} $S $D`),
  'cat $S > $D',
  'dd if=$S of=$D bs=64k',
  'dd if=$S of=$D bs=512k conv=sparse',
  'dd if=$S of=$D bs=512 conv=sparse',
  'dd if=$S of=$D bs=4k conv=sparse oflag=direct',
  'dd if=$S bs=64k conv=sparse > $D',
  'tar -xSOf $S.tar > $D',
  'rsync -I --inplace $S $D',
  'rsync -I --inplace -S $S $D',
  'qemu-img convert -f raw -O raw $S $D',
  'qemu-img convert -n -f raw -O raw $S $D',
  'qemu-img convert -t none -m 8 -W -f raw -O raw $S $D',
  'nbdcopy $S $D',
  'ddrescue -q -f $S $D',
  'ddrescue -q -f -S -t $S $D',
]

for (const place of places) {
  t.test(`${place.name}: programs that replace all bytes`, skip, async t => {
    const { folder, names } = await sources(t)
    for (const name of place === HERE ? names : names.slice(0, 1)) {
      const { disk, image, folder: mountpoint } = await fullDisk(t, place)
      const source = join(folder, name)
      const nines = join(folder, 'nines')
      writeFileSync(nines, Buffer.alloc(SIZE, '9'))
      for (const command of COMMANDS) {
        const [program = ''] = command.split(' ')
        if (needs(program).skip) continue
        await runIn(place, 'dd', [`if=${nines}`, `of=${disk}`, 'bs=1M', 'conv=notrunc'])
        await runIn(place, 'sh', ['-c', `S=${source} D=${disk}; ${command}`])
        const { code, stdout } = await attemptIn(place, 'cmp', [source, disk])
        t.equal(code, 0, `${command}, ${name}: ${stdout}`)
      }
      t.equal((await vimgfs(place, ['umount', mountpoint])).code, 0)
      await run('qemu-img', ['compare', '-q', '-f', 'raw', '-F', 'qcow2', source, image])
      await run('qemu-img', ['check', '-q', image])
    }
  })

  t.test(`${place.name}: bytes past the last written one stay`, skip, async t => {
    const { disk } = await fullDisk(t, place)
    await runIn(place, 'dd', ['if=/dev/zero', `of=${disk}`, 'bs=512', 'count=1'])
    t.equal(statSync(disk).size, SIZE, 'its size is what it was')
    const expected = Buffer.alloc(SIZE, '9').fill(0, 0, 512)
    t.ok(readFileSync(disk).equals(expected))
    await runIn(place, 'sh', ['-c', `: > ${disk}`])
    t.ok(readFileSync(disk).equals(expected))
  })

  t.test(`${place.name}: after that, nothing is appended inside of the disk`, skip, async t => {
    const { disk } = await fullDisk(t, place)
    await runIn(place, 'dd', ['if=/dev/zero', `of=${disk}`, 'bs=512', 'count=1'])
    const { code, stderr } = await attemptIn(place, 'sh', ['-c', `printf x >> ${disk}`])
    t.not(code, 0, stderr)
    t.ok(readFileSync(disk).equals(Buffer.alloc(SIZE, '9').fill(0, 0, 512)))
  })

  t.test(
    `${place.name}: a process that can have no such handle sees the whole disk`,
    skip,
    async t => {
      const { disk } = await fullDisk(t, place)
      const script = `exec 3> ${disk}; printf 12345 >&3; stat -Lc %s /dev/fd/3
      exec 4< ${disk}; dd bs=1 skip=1M count=1 status=none <&4
      exec 3>&- 4> ${disk}; printf 123 >&4; sh -c 'exec 4>&-; stat -c %s ${disk}'`
      // libfuse does not tell who asks.
      const others = place === HERE ? SIZE : 3
      t.equal(await runIn(place, 'sh', ['-c', script]), `5\n9${others}\n`)
    },
  )

  t.test(`${place.name}: emptying it by name is refused`, skip, async t => {
    const { disk } = await fullDisk(t, place)
    t.equal(await call(place, 'truncateByName', disk, 0), EPERM)
    const { code, stderr } = await attemptIn(place, 'truncate', ['-s', '0', disk])
    t.equal(code, 1)
    t.match(stderr, 'not permitted')
    t.equal(statSync(disk).size, SIZE)
    t.ok(readFileSync(disk).equals(Buffer.alloc(SIZE, '9')))
  })

  for (const how of ['open', 'ftruncate']) {
    t.test(`${place.name}: a reader beside it keeps no old bytes, by ${how}`, skip, async t => {
      const { disk } = await fullDisk(t, place)
      // A handle that writes through the page cache holds the page that it begins in.
      const first = how === 'open' && !place.transport ? 10_000 : 8192
      const { empty, written, after, steps } = await call(place, 'truncating', disk, how, first)
      t.same([empty, written, after], [0, 30_000, SIZE])
      const all = 65_536
      const gap = first > 8192 ? [['0', first - 8192]] : []
      t.same(steps, [
        [['9', all]],
        [['9', all]],
        [
          ['0', first],
          ['a', 100],
          ['9', all - first - 100],
        ],
        [
          ['0', 4096],
          ['b', 4096],
          ...gap,
          ['a', 100],
          ['0', 20_480 - first - 100],
          ['c', 100],
          ['9', all - 20_580],
        ],
        [
          ['0', 4096],
          ['b', 4096],
          ...gap,
          ['a', 100],
          ['0', 20_480 - first - 100],
          ['c', 100],
          ['0', 30_000 - 20_580],
          ['9', all - 30_000],
        ],
      ])
    })
  }

  t.test(`${place.name}: writes of one handle in any order`, skip, async t => {
    for (const direct of [0, 1]) {
      const { disk } = await fullDisk(t, place)
      const got = await call(place, 'unordered', disk, direct)
      const expected = Array.from({ length: 24 }, (_, i) => (i % 2 ? 97 + (i - 1) / 2 : 0))
      t.same(got, [...expected, 0x39, 0x39], direct ? 'O_DIRECT' : 'buffered')
    }
  })
}
